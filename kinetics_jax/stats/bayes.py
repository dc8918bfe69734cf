"""Bayesian intervals of accuracies: problems of different hardness, drawn from an unknown Beta distribution."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from jaxtyping import Num

from kinetics_jax.stats.estimators import Amount, EstimateError
from kinetics_jax.stats.special import log_gamma

MEANS, SPREADS = 96, 32  # cells of the grid over the population


def bayesian_interval(
    n: Num[npt.ArrayLike, " problems"],
    c: Num[npt.ArrayLike, " problems"],
    *,
    k: npt.ArrayLike = 1,
    target: str = "population",
    confidence: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> tuple[Amount, Amount]:
    """Credible interval of pass@k: the middle `confidence` of the posterior, c right of n graded samples.

    The model: a problem's samples are right with a probability p of its own, and p ~ Beta(m s, (1 - m) s) over the
    problems. The prior is uniform in the mean m and in 1 / (1 + s): hardness may be all alike or all or nothing.
    The posterior of (m, s) is summed over a grid, each problem's p drawn from the Beta that its own samples make of it.
    A flat prior for every problem by itself, instead, would draw hard and easy problems alike towards one half: with
    few samples a problem its intervals miss the mean.

    `target`: "population" for the mean pass@k over all problems of the kind (what `accuracy_interval` is for),
    "problems" for the mean over just these ones, whose only chance is that of the samples. `k` is a whole number or an
    array, of fresh samples (more than n can be asked for); returns (low, high), each of k's shape. Same inputs and
    seed, same interval. Raises EstimateError unless 0 <= c <= n, k >= 1 and 0 < confidence < 1,
    and for another target.
    """
    n, c, k = np.atleast_1d(n).astype(np.float64), np.atleast_1d(c).astype(np.float64), np.asarray(k, np.float64)
    if n.ndim != 1 or n.shape != c.shape or not n.size or np.any(c < 0) or np.any(c > n):
        raise EstimateError("a Bayesian interval needs 0 <= c <= n for each of at least one problem")
    if np.any(k < 1):
        raise EstimateError(f"pass@k needs k >= 1, got {k}")
    if target not in ("population", "problems"):
        raise EstimateError(f"target {target!r} is not known (known: population, problems)")
    if not 0 < confidence < 1:
        raise EstimateError(f"confidence must be between 0 and 1, got {confidence}")
    rng = np.random.default_rng(seed)
    a, b = _population(n, c, draws, rng)
    trials = k.ravel()[:, None]  # [k, draws] from here on
    if target == "population":  # E[(1 - p)^k] = B(a, b + k) / B(a, b)
        log_failing = log_gamma(b + trials) - log_gamma(b) + log_gamma(a + b) - log_gamma(a + b + trials)
        solved = -np.expm1(log_failing)
    else:
        failing = rng.beta(b[:, None] + n - c, a[:, None] + c)  # [draws, problems]
        solved = np.stack([1 - np.mean(failing**trial, axis=1) for trial in trials.ravel()])
    tail = (1 - confidence) / 2
    low, high = np.quantile(solved, [tail, 1 - tail], axis=1)
    return low.reshape(k.shape)[()], high.reshape(k.shape)[()]


def _population(n: np.ndarray, c: np.ndarray, draws: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draws (a, b) of the population's Beta from its posterior, `[draws]` each."""
    mean = (np.arange(MEANS) + 0.5)[:, None] / MEANS
    spread = (np.arange(SPREADS) + 0.5)[None] / SPREADS  # 1 / (1 + s)
    a, b = _beta(mean, spread)
    # log B(a + c, b + n - c) - log B(a, b), summed over problems; gammas once for every value that occurs
    likelihood = np.zeros_like(a)
    for base, values, sign in ((a, c, 1), (b, n - c, 1), (a + b, n, -1)):
        occurring, times = np.unique(values, return_counts=True)
        risen = log_gamma(base[..., None] + occurring) - log_gamma(base)[..., None]
        likelihood += sign * (risen @ times)
    weights = np.exp(likelihood - likelihood.max()).ravel()
    cells = rng.choice(weights.size, size=draws, p=weights / weights.sum())
    row, column = np.divmod(cells, SPREADS)
    return _beta((row + rng.random(draws)) / MEANS, (column + rng.random(draws)) / SPREADS)


def _beta(mean: np.ndarray, spread: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(a, b) of the Beta with this mean and this spread, 1 / (1 + a + b)."""
    strength = 1 / np.maximum(spread, 1e-9) - 1
    least = 1e-6  # log_gamma is infinite at 0
    return np.maximum(mean * strength, least), np.maximum((1 - mean) * strength, least)
