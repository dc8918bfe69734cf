"""How often nominal 95 % intervals cover the truth on synthetic problems: both bootstraps and both Bayesian ones.

    python experiments/interval_coverage.py --json out.json

A repetition draws problems with solve rates p ~ Beta(a, b) and Bernoulli samples of each, and checks whether every
interval covers the mean accuracy: over the population, a / (a + b), or over just these problems, the mean of their p.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from kinetics_jax.stats.bayes import bayesian_interval
from kinetics_jax.stats.estimators import cluster_bootstrap

POPULATIONS = {
    "mixed, Beta(1, 1)": (1.0, 1.0),
    "all or nothing, Beta(0.5, 0.5)": (0.5, 0.5),
    "alike, Beta(2, 2)": (2.0, 2.0),
    "hard, Beta(0.3, 1.5)": (0.3, 1.5),
    "very hard, Beta(0.2, 3)": (0.2, 3.0),
}
SIZES = ((10, 4), (10, 32), (30, 1), (30, 8), (30, 32), (45, 16), (100, 8))  # problems, samples of each


def intervals(right: np.ndarray, samples: int, seed: int, draws: int) -> dict[str, tuple[float, float]]:
    """Every interval of one repetition, `right [problems]` of `samples` each."""
    accuracy, n = right / samples, np.full(len(right), samples)
    return {
        "percentile bootstrap": cluster_bootstrap(accuracy, method="percentile", resamples=draws, seed=seed),
        "expanded bootstrap": cluster_bootstrap(accuracy, resamples=draws, seed=seed),
        "Bayesian": bayesian_interval(n, right, draws=draws, seed=seed),
        "Bayesian, these problems": bayesian_interval(n, right, target="problems", draws=draws, seed=seed),
    }


def coverage(
    shape: tuple[float, float], problems: int, samples: int, *, repetitions: int, draws: int, seed: int
) -> dict[str, tuple[float, float]]:
    """For every interval: the share of repetitions in which it covers the truth, and its mean width."""
    rng = np.random.default_rng(seed)
    held: dict[str, list[bool]] = {}
    widths: dict[str, list[float]] = {}
    for repetition in range(repetitions):
        rates = rng.beta(*shape, problems)
        right = rng.binomial(samples, rates)
        for name, (low, high) in intervals(right, samples, repetition, draws).items():
            truth = np.mean(rates) if name.endswith("these problems") else shape[0] / sum(shape)
            held.setdefault(name, []).append(bool(low <= truth <= high))
            widths.setdefault(name, []).append(high - low)
    return {name: (float(np.mean(held[name])), float(np.mean(widths[name]))) for name in held}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument(
        "--draws", type=int, default=1000, help="resamples or posterior draws per interval (%(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the coverages here")
    arguments = parser.parse_args()
    rows = []
    cases = [(name, shape, *size) for name, shape in POPULATIONS.items() for size in SIZES]
    for name, shape, problems, samples in tqdm(cases, desc="cases"):
        coverages = coverage(
            shape,
            problems,
            samples,
            repetitions=arguments.repetitions,
            draws=arguments.draws,
            seed=arguments.seed,
        )
        rows += [
            {"population": name, "problems": problems, "samples": samples, "interval": kind, "held": held, "width": w}
            for kind, (held, w) in coverages.items()
        ]
    table = pd.DataFrame(rows)
    wide = table.pivot_table(
        index=["population", "problems", "samples"], columns="interval", values=["held", "width"], sort=False
    )
    print((100 * wide["held"]).round(1).to_string())
    print("\nmean width")
    print(wide["width"].round(3).to_string())
    error = 100 * np.sqrt(0.95 * 0.05 / arguments.repetitions)
    print(f"\n{arguments.repetitions} repetitions: a coverage of 95 % is known to ± {error:.1f} (one standard error)")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        settings = {name: getattr(arguments, name) for name in ("repetitions", "draws", "seed")}
        arguments.json.write_text(json.dumps({**settings, "nominal": 0.95, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
