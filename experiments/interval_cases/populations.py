"""Populations of problems whose truth is known: solve rates to draw, alone and in pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

Rates = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]  # solve rates of so many problems
Pairs = Callable[[np.random.Generator, tuple[int, ...]], tuple[np.ndarray, np.ndarray]]  # of two configurations

TASK = "OTIS Mock AIME 2024-2025"  # 45 problems, of which many runs have 8 samples or more
LEAST_SAMPLES = 8


def beta(a: float, b: float) -> Rates:
    return lambda rng, shape: rng.beta(a, b, shape)


def always(rate: float) -> Rates:
    return lambda rng, shape: np.full(shape, rate)


def except_for(share: float, rate: float, others: Rates) -> Rates:
    """`share` of the problems have this rate, the rest are drawn from `others`."""
    return lambda rng, shape: np.where(rng.random(shape) < share, rate, others(rng, shape))


def those(rates: np.ndarray) -> Rates:
    """Problems drawn from given ones."""
    return lambda rng, shape: rates[rng.integers(len(rates), size=shape)]


POPULATIONS: dict[str, Rates] = {
    "mixed, Beta(1, 1)": beta(1, 1),
    "all or nothing, Beta(0.5, 0.5)": beta(0.5, 0.5),
    "alike, Beta(2, 2)": beta(2, 2),
    "hard, Beta(0.3, 1.5)": beta(0.3, 1.5),
    "very hard, Beta(0.2, 3)": beta(0.2, 3),
    "very easy, Beta(3, 0.2)": beta(3, 0.2),
    "easy, Beta(8, 2)": beta(8, 2),
    "two points, 0.1 and 0.9": except_for(0.5, 0.1, always(0.9)),
    "5 % fail outright, the rest solved": except_for(0.05, 0, always(1)),
    "5 % fail outright, the rest Beta(8, 2)": except_for(0.05, 0, beta(8, 2)),
    "5 % fail outright, the rest 0.95": except_for(0.05, 0, always(0.95)),
    "5 % fail outright, the rest Beta(1, 1)": except_for(0.05, 0, beta(1, 1)),
    "10 % fail outright, the rest solved": except_for(0.1, 0, always(1)),
    "10 % fail outright, the rest Beta(8, 2)": except_for(0.1, 0, beta(8, 2)),
    "5 % solved outright, the rest never": except_for(0.05, 1, always(0)),
    "5 % solved outright, the rest Beta(2, 8)": except_for(0.05, 1, beta(2, 8)),
    "narrow, Beta(20, 20)": beta(20, 20),
    "narrow and easy, Beta(12, 2)": beta(12, 2),
    "10 % fail outright, the rest 0.9": except_for(0.1, 0, always(0.9)),
}
# Problems about equally hard: redrawing is enough, and a problem of another kind is added for caution alone.
ALIKE = ("easy, Beta(8, 2)", "narrow, Beta(20, 20)", "narrow and easy, Beta(12, 2)")


def losing(share: float, rates: Rates, *, against: Rates | None = None) -> Pairs:
    """The first fails a share of the problems outright and equals the second elsewhere, or has rates of its own while
    the second has those of `against`."""

    def pair(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        own = rates(rng, shape)
        other = own if against is None else against(rng, shape)
        return np.where(rng.random(shape) < share, 0, own), other

    return pair


def shifted(rates: Rates, by: float) -> Pairs:
    """The first's log odds are lower by `by` on every problem."""

    def pair(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        other = rates(rng, shape)
        return other / (other + (1 - other) * np.exp(by)), other

    return pair


def matched(first: np.ndarray, second: np.ndarray) -> Pairs:
    """Two runs on the same problems, drawn together."""

    def pair(rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
        drawn = rng.integers(len(first), size=shape)
        return first[drawn], second[drawn]

    return pair


PAIRS: dict[str, Pairs] = {
    "equal, Beta(1, 1)": losing(0, beta(1, 1)),
    "equal, Beta(0.5, 0.5)": losing(0, beta(0.5, 0.5)),
    "log odds lower by 0.4, Beta(1, 1)": shifted(beta(1, 1), 0.4),
    "5 % lost, Beta(1, 1)": losing(0.05, beta(1, 1)),
    "5 % lost, Beta(0.5, 0.5)": losing(0.05, beta(0.5, 0.5)),
    "5 % lost, Beta(12, 1)": losing(0.05, beta(12, 1)),
}
EASY: dict[str, tuple[Rates, Rates | None]] = {  # rates of the first where it does not fail, and of the second
    "both solve all": (always(1), None),
    "second solves all, first 0.99": (always(0.99), always(1)),
    "second solves all, first 0.97": (always(0.97), always(1)),
    "second solves all, first Beta(12, 1)": (beta(12, 1), always(1)),
    "both 0.97": (always(0.97), None),
    "both Beta(1, 1)": (beta(1, 1), None),
}


def epoch_runs(path: Path) -> dict[str, np.ndarray]:
    """Solve rates `[problems]` of every run with at least 8 samples of each of the 45 problems.

    `path`: a CSV with the columns task, run, problem, correct of graded samples, Epoch AI's (epoch.ai, CC BY 4.0).
    """
    samples: Any = pd.read_csv(path, usecols=["task", "run", "problem", "correct"])
    samples = samples[samples["task"] == TASK]
    counts = samples.groupby(["run", "problem"])["correct"].agg(["size", "mean"])
    problems = samples["problem"].nunique()
    whole = {
        str(run): table["mean"].to_numpy()
        for run, table in counts.groupby(level="run")
        if len(table) == problems and table["size"].min() >= LEAST_SAMPLES
    }
    if not whole:
        raise SystemExit(f"{path}: no run of {TASK!r} has {LEAST_SAMPLES} samples of every problem")
    return whole
