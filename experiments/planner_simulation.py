"""Is the planner's word kept? Its advice on simulated samples whose truth is known.

    python experiments/planner_simulation.py --json experiments/results/planner_simulation.json

Nine configurations (three models under three attentions) solve problems of shared difficulty, 8 samples each; N is 1,
2, 4 or 8, and a budget leaves some of the 36 out. Every repetition draws new problems, asks the planner, and compares
what it says with the truth: the accuracies over 40,000 other problems. Printed for every population, number of problems
and budget:

    regret        accuracy lost by the choice against the best within the budget; `said`: what the planner expected
    best          how often the best was chosen; `said`: with what mean probability
    reported      accuracy as measured, minus the truth; `expected`: with the optimism of choosing taken off
    interval      how often the interval held the truth; `run`: how often that of one run held a fresh run's score
    set           how often the configurations that cannot be told from the best held the best (nominal 95 %), and their
                  mean number, of how many
    surely        how often the runner-up was called surely less accurate; `wrong`: how often that was not so

Populations: `mixed` problems; `easy` ones, where sparse attention loses one in 20 or 10 outright; `hard` ones; and
`alike`, where all nine are equally good, so that every "surely" between them at one N is wrong.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from kinetics_jax.analysis.advice import advise
from kinetics_jax.analysis.planner import Budget, Options
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.files import write_atomic
from kinetics_jax.stats.estimators import pass_at_k

ABILITY = {"mixed": (-1.2, 0.0, 1.0), "easy": (3.0, 4.0, 5.0), "hard": (-6.0, -5.0, -4.0), "alike": (0.0, 0.0, 0.0)}
HANDICAP = (0.0, 0.15, 0.6)  # of the attentions
LOST = (0.0, 0.05, 0.1)  # of easy problems, by the attentions, outright
SECONDS = np.outer((1.0, 2.5, 6.0), (1.0, 0.6, 0.4)).ravel()  # of a sample
TRIALS = np.array((1, 2, 4, 8))
SAMPLES = 8
LIMITS = (3.0, 8.0, 24.0)  # seconds
PROBLEMS = (10, 30, 96)
TRUTH = 40_000  # problems
CHIP = Hardware("simulated", 1e9, 1e8, 1e9)


def rates(rng: np.random.Generator, problems: int, population: str) -> np.ndarray:
    """How likely each configuration solves each problem with one sample, `[problems, 9]`."""
    hardness = 2 * rng.standard_normal((problems, 1, 1))
    taste = 0.7 * rng.standard_normal((problems, 3, 1)) + 0.3 * rng.standard_normal((problems, 3, 3))
    handicap = np.zeros(3) if population == "alike" else np.array(HANDICAP)
    rate = 1 / (1 + np.exp(hardness + taste + handicap - np.array(ABILITY[population])[:, None]))
    if population == "easy":
        rate = rate * (rng.random((problems, 3, 3)) >= np.array(LOST))
    return rate.reshape(problems, 9)


def truth(population: str) -> np.ndarray:
    """Accuracy of the 36 rows over all problems of a population; of equal ones (`alike`) exactly equal."""
    rate = rates(np.random.default_rng(0), TRUTH, population)
    solved = np.mean(1 - (1 - rate[:, :, None]) ** TRIALS, axis=0)
    if population == "alike":
        solved[:] = solved.mean(axis=0)
    return solved.ravel()


def simulated_options(rng: np.random.Generator, problems: int, population: str) -> Options:
    """What a planner sees: samples of new problems."""
    right = rng.binomial(SAMPLES, rates(rng, problems, population))
    solved = pass_at_k(SAMPLES, right[:, :, None], TRIALS).reshape(problems, -1).T
    rows = [(f"model {i // 3}", f"attention {i % 3}", int(n)) for i in range(9) for n in TRIALS]
    table = pd.DataFrame(rows, columns=["model", "attention", "N"]).assign(
        cap=1,
        batch=1,
        fits=1,
        parameters=1.0,
        accuracy=solved.mean(axis=1).round(12),
        seconds=np.outer(SECONDS, TRIALS).ravel(),
        dollars=math.nan,
    )
    return Options(table, solved, CHIP, 1, problems, ())


def repetition(
    population: str, problems: int, true: np.ndarray, seed: Sequence[int], limits: Sequence[float] = LIMITS
) -> list[dict[str, Any]]:
    """What the planner said on one draw of problems, and what was so: a row for every budget."""
    rng = np.random.default_rng(seed)
    options = simulated_options(rng, problems, population)
    fresh = rates(rng, problems, population)
    rows = []
    for limit in limits:
        advice = advise(options, Budget(seconds=limit))
        within = options.table["seconds"].to_numpy() <= limit
        best = true[within].max()
        chosen, rival = advice.chosen, advice.runner_up
        sure = (
            rival is not None
            and advice.why_not[rival].endswith(" surely so")
            and "not surely" not in advice.why_not[rival]
        )
        configuration, n = divmod(chosen, len(TRIALS))
        score = np.mean(rng.random(problems) < 1 - (1 - fresh[:, configuration]) ** TRIALS[n])
        rows.append(
            {
                "population": population,
                "problems": problems,
                "limit": limit,
                "regret": best - true[chosen],
                "regret_said": advice.regret,
                "best": true[chosen] == best,
                "best_said": min(1.0, sum(p for row, p in advice.probabilities.items() if true[row] == true[chosen])),
                "reported": advice.accuracy - true[chosen],
                "expected": advice.expected_accuracy - true[chosen],
                "interval": advice.low <= true[chosen] <= advice.high,
                "run": advice.run_low <= score <= advice.run_high,
                "set": any(true[row] == best for row in advice.alternatives),
                "size": len(advice.alternatives),
                "of": len(advice.probabilities),
                "surely": sure,
                "wrong": sure and true[rival] >= true[chosen],
            }
        )
    return rows


def simulate(populations: Sequence[str], problems: Sequence[int], repetitions: int) -> pd.DataFrame:
    """All repetitions, a row each and budget."""
    rows = []
    for population in populations:
        true = truth(population)
        for count in problems:
            for seed in tqdm(range(repetitions), desc=f"{population}, {count} problems", leave=False):
                rows += repetition(population, count, true, [count, seed])
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means over repetitions; `surely` and `wrong` are counts."""
    groups: Any = rows.groupby(["population", "problems", "limit"], sort=False)
    table: Any = groups.mean(numeric_only=True).astype(float)
    for name in ("surely", "wrong"):
        table[name] = groups[name].sum().astype(int)
    return table.reset_index()


def calibration(rows: pd.DataFrame, edges: Sequence[float] = (0, 0.3, 0.6, 0.8, 1)) -> pd.DataFrame:
    """Of the choices that were said to be best with a probability between two edges: how many, the mean of what was
    said, and how many were.
    """
    binned: Any = rows.groupby(["problems", pd.cut(rows["best_said"], list(edges))], observed=True)
    table: Any = binned.agg(choices=("best", "size"), said=("best_said", "mean"), were=("best", "mean")).reset_index()
    return table.assign(best_said=table["best_said"].astype(str))


def markdown(record: Mapping[str, Any]) -> str:
    """The recorded rows as a table for a page: means over the budgets."""
    rows: Any = pd.DataFrame(record["rows"])
    means = rows.groupby(["population", "problems"], sort=False).mean(numeric_only=True).reset_index()
    lines = [
        "| problems | | regret (said) | best chosen (said) | reported − truth | expected − truth | interval holds | "
        "run holds | set holds the best | its size |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['population']} | {row['problems']} | {row['regret']:.3f} ({row['regret_said']:.3f}) | "
        f"{row['best']:.0%} ({row['best_said']:.0%}) | {row['reported']:+.3f} | {row['expected']:+.3f} | "
        f"{row['interval']:.0%} | {row['run']:.0%} | {row['set']:.0%} | {row['size']:.1f} of {row['of']:.0f} |"
        for row in means.to_dict("records")
    ]
    return "\n".join(lines)


def report(populations: Sequence[str], repetitions: int, path: Path | None, problems: Sequence[int] = PROBLEMS) -> None:
    """Prints what the module's docstring says, and writes it to `path`."""
    rows: Any = simulate(populations, problems, repetitions)
    table, said = summary(rows), calibration(rows[rows["population"] != "alike"])
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print("\nHow often the chosen was the best, by the probability that was said (without `alike`):")
    print(said.to_string(index=False, float_format=lambda value: f"{value:.2f}"))
    sure, wrong = int(rows["surely"].sum()), int(rows["wrong"].sum())
    print(f"\n{sure} of {len(rows)} runners-up were called surely less accurate, {wrong} of them wrongly.")
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        written = {
            "repetitions": repetitions,
            "rows": table.round(4).to_dict(orient="records"),
            "calibration": said.round(4).to_dict(orient="records"),
            "surely": sure,
            "wrong": wrong,
        }
        write_atomic(path, json.dumps(written, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=100, help="data sets of each kind (%(default)s)")
    parser.add_argument("--populations", nargs="+", choices=ABILITY, default=list(ABILITY))
    parser.add_argument("--problems", nargs="+", type=int, default=list(PROBLEMS))
    parser.add_argument("--json", type=Path, help="write the table here")
    arguments = parser.parse_args()
    report(arguments.populations, arguments.repetitions, arguments.json, arguments.problems)


if __name__ == "__main__":
    main()
