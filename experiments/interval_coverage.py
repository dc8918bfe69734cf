"""How often nominal 95 % intervals hold the truth, and how wide they are: accuracies, differences and power laws.

    python experiments/interval_coverage.py [--epoch samples.csv.gz] [--quick] [--json out.json]
    python experiments/interval_coverage.py --tables out.json

A repetition draws problems of a known population, and samples of each; a cell is a population, a number P of problems,
n samples of each and the k of pass@k. Beside the default intervals (`stats.intervals`) stands the bootstrap that they
replaced. Pairs give the error of the test of non-inferiority at a margin equal to the true loss, and its power where
nothing is lost. With --epoch real runs are populations too: 45 problems each, whose measured rates are taken for true.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from interval_cases.populations import (
    EASY,
    PAIRS,
    POPULATIONS,
    Pairs,
    Rates,
    epoch_runs,
    losing,
    matched,
    those,
)
from interval_cases.tables import BINS, Row, markdown, read, show, write
from tqdm import tqdm

from kinetics_jax.analysis.power_laws import power_law
from kinetics_jax.stats.estimators import cluster_bootstrap, pass_at_k
from kinetics_jax.stats.intervals import accuracy_interval, difference_interval

SIZES = (10, 15, 30, 60)  # problems
SAMPLES = ((1, 1), (8, 1), (8, 8), (64, 1), (64, 64))  # n, k
EPOCH_SIZES, EPOCH_SAMPLES = (10, 15, 30, 45), ((8, 1), (8, 8))
PAIR_SIZES, PAIR_SAMPLES = (10, 15, 30, 100), (8, 32)
MARGINS = (0.03, 0.05, 0.1)
POINTS = (4, 6, 8, 12, 20, 24)


def measured(interval: Callable[..., Any], truth: float, *values: np.ndarray, draws: int, seed: int) -> Row:
    """Coverage, mean width and the share above the truth of an interval, of `values [problems, repetitions]` each."""
    low, high = interval(*values, resamples=draws, seed=seed)
    held = (low <= truth + 1e-9) & (truth <= high + 1e-9)
    return {"held": np.mean(held), "width": np.mean(high - low), "above": np.mean(low > truth + 1e-9)}


def accuracy_cells(
    populations: dict[str, Rates], sizes: tuple[int, ...], samples: tuple[tuple[int, int], ...], plan: Row
) -> Iterator[Row]:
    """A row for every population, P, n and k; truths outside 0.02 … 0.98 are left out."""
    for index, (name, rates) in enumerate(populations.items()):
        rng = np.random.default_rng([plan["seed"], index])
        many = rates(rng, (plan["truth"],))
        for n, k in samples:
            truth = float(np.mean(1 - (1 - many) ** k))
            if not BINS[0] <= truth <= BINS[-1]:
                continue
            for problems in sizes:
                right = rng.binomial(n, rates(rng, (problems, plan["repetitions"])))
                values = pass_at_k(n, right, k)
                new = measured(accuracy_interval, truth, values, draws=plan["draws"], seed=index)
                old = measured(cluster_bootstrap, truth, values, draws=plan["draws"], seed=index)
                yield {"population": name, "P": problems, "n": n, "k": k, "truth": truth} | beside(new, old)


def pair_cells(populations: dict[str, Pairs], sizes: tuple[int, ...], samples: tuple[int, ...], plan: Row) -> list[Row]:
    """A row for every pair of configurations, P and n: the difference of pass@1."""
    rows = []
    for index, (name, pairs) in enumerate(populations.items()):
        rng = np.random.default_rng([plan["seed"], 1, index])
        truth = float(np.mean(np.subtract(*pairs(rng, (plan["truth"],)))))
        for n in samples:
            for problems in sizes:
                values = drawn_pair(pairs, problems, n, plan["repetitions"], rng)
                new = measured(difference_interval, truth, *values, draws=plan["draws"], seed=index)
                old = measured(redrawn_difference, truth, *values, draws=plan["draws"], seed=index)
                rows.append({"population": name, "P": problems, "n": n, "truth": truth} | beside(new, old))
    return rows


def noninferiority_cells(
    populations: dict[str, tuple[Rates, Rates | None]], sizes: tuple[int, ...], plan: Row
) -> list[Row]:
    """The test of non-inferiority: error where the first fails `margin` of the problems outright, power where none.

    Where the first's rates are lower elsewhere too, the margin is the whole loss, and the power's loss is what is left.
    """
    rows = []
    for index, (name, (own, against)) in enumerate(populations.items()):
        for share in MARGINS:
            rng = np.random.default_rng([plan["seed"], 2, index])
            worse, as_good = losing(share, own, against=against), losing(0, own, against=against)
            margin = -float(np.mean(np.subtract(*worse(rng, (plan["truth"],)))))
            for problems in sizes:
                row: Row = {"population": name, "fail outright": share, "margin": margin, "P": problems}
                for column, pairs in (("error", worse), ("power", as_good)):
                    values = drawn_pair(pairs, problems, 8, plan["repetitions"], rng)
                    for kind, interval in (("", difference_interval), ("bootstrap ", redrawn_difference)):
                        row[kind + column] = measured(interval, -margin, *values, draws=plan["draws"], seed=index)[
                            "above"
                        ]
                rows.append(row)
    return rows


def drawn_pair(
    pairs: Pairs, problems: int, n: int, repetitions: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    first, second = pairs(rng, (problems, repetitions))
    return rng.binomial(n, first) / n, rng.binomial(n, second) / n


def redrawn_difference(first: np.ndarray, second: np.ndarray, **options: Any) -> Any:
    return cluster_bootstrap(first - second, **options)


def beside(new: Row, old: Row) -> Row:
    """Coverage and width, with the bootstrap's."""
    ratio = new["width"] / old["width"]
    return {
        "held": new["held"],
        "width": new["width"],
        "bootstrap held": old["held"],
        "bootstrap width": old["width"],
        "ratio": ratio,
    }


def law_cells(plan: Row) -> list[Row]:
    """Coverage of a power law's exponent and scale, with and without an offset, over lognormal noise of 20 %."""
    rows = []
    for offset in (False, True):
        repetitions = plan["repetitions"] if not offset else plan["offset repetitions"]
        for points in POINTS:
            rng = np.random.default_rng([plan["seed"], 3, points])
            x = np.geomspace(60, 20_000, points)
            held = []
            for repetition in range(repetitions):
                y = 3 * x**0.7 * np.exp(0.2 * rng.standard_normal(points)) + (100 if offset else 0)
                law = power_law(x, y, offset=offset, resamples=200, seed=repetition)
                ends = (law.exponent_interval, 0.7), (law.scale_interval, 3.0)
                held.append([low <= truth <= high for (low, high), truth in ends])
            exponent, scale = np.mean(held, axis=0) if held else (np.nan, np.nan)
            rows.append({"offset": offset, "points": points, "exponent": exponent, "scale": scale})
    return [row for row in rows if not np.isnan(row["exponent"])]


def run(plan: Row, epoch: Path | None, quick: bool) -> dict[str, list[Row]]:
    """Every table's rows."""
    few = slice(0, None, 2) if quick else slice(None)
    sizes, samples = SIZES[few], SAMPLES[1:3] if quick else SAMPLES
    tables: dict[str, list[Row]] = {
        "accuracies": list(tqdm(accuracy_cells(POPULATIONS, sizes, samples, plan), desc="accuracies", unit="cell")),
        "differences": pair_cells(PAIRS, PAIR_SIZES[few], PAIR_SAMPLES, plan),
        "non-inferiority": noninferiority_cells(EASY, PAIR_SIZES[few], plan),
        "power laws": law_cells(plan),
    }
    if epoch is not None:
        runs = sorted(epoch_runs(epoch).values(), key=np.mean)[:: 11 if quick else 1]
        real = {f"run {index + 1}": those(rates) for index, rates in enumerate(runs)}
        cells = accuracy_cells(real, EPOCH_SIZES[few], EPOCH_SAMPLES, plan)
        tables["Epoch runs"] = list(tqdm(cells, desc="Epoch runs", unit="cell"))
        pairs = {f"runs {i + 1} and {i + 5}": matched(runs[i], runs[i + 4]) for i in range(0, len(runs) - 4, 8)}
        tables["Epoch pairs"] = pair_cells(pairs, EPOCH_SIZES[few], (8,), plan)
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--epoch", type=Path, help="graded samples of Epoch AI's runs (CSV, CC BY 4.0)")
    parser.add_argument("--quick", action="store_true", help="seconds: fewer cells and repetitions")
    parser.add_argument("--repetitions", type=int, help="data sets in a cell (1000, quick: 300)")
    parser.add_argument("--draws", type=int, help="resamples of an interval (1000, quick: 400)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write every cell here")
    parser.add_argument("--tables", type=Path, help="only print the tables of this result, in Markdown")
    arguments = parser.parse_args()
    if arguments.tables is not None:
        print("\n\n".join(f"{name}\n\n{table}" for name, table in markdown(read(arguments.tables)).items()))
        return
    if arguments.epoch is not None and not arguments.epoch.is_file():
        raise SystemExit(f"{arguments.epoch}: no such file; it is Epoch AI's, CC BY 4.0, not part of this repository")
    plan = {
        "repetitions": arguments.repetitions or (300 if arguments.quick else 1000),
        "draws": arguments.draws or (400 if arguments.quick else 1000),
        "offset repetitions": 0 if arguments.quick else 40,
        "truth": 50_000 if arguments.quick else 400_000,  # problems
        "seed": arguments.seed,
    }
    tables = run(plan, arguments.epoch, arguments.quick)
    print(show(tables))
    error = 100 * np.sqrt(0.95 * 0.05 / plan["repetitions"])
    print(f"\n{plan['repetitions']} repetitions: a coverage of 95 % is known to ± {error:.1f} (one standard error)")
    if arguments.json:
        write(arguments.json, plan, tables)


if __name__ == "__main__":
    main()
