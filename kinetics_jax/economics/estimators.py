"""Unbiased estimates from n samples of a problem, and intervals that respect that samples of a problem go together."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kinetics_jax.errors import UserError


class EstimateError(UserError):
    """An estimate that the samples at hand cannot give; the message says which and why."""


def pass_at_k(n: npt.ArrayLike, c: npt.ArrayLike, k: npt.ArrayLike) -> Any:
    """Probability that k of n samples, drawn without replacement, hold at least one of the c correct ones.

    The paper's coverage estimator, 1 - C(n-c, k) / C(n, k): unbiased for the pass rate of k fresh samples. Whole
    numbers or arrays that broadcast; returns a float64 of the broadcast shape. Taken as a product of
    min(c, k) factors, exact to rounding for large n. Raises EstimateError unless 0 <= c <= n and 1 <= k <= n.
    """
    n, c, k = np.asarray(n), np.asarray(c), np.asarray(k)
    if np.any(k < 1) or np.any(k > n):
        raise EstimateError(f"pass@k needs 1 <= k <= n: k = {_range(k)} with n = {_range(n)} samples")
    if np.any(c < 0) or np.any(c > n):
        raise EstimateError(f"pass@k needs 0 <= c <= n: c = {_range(c)} correct of n = {_range(n)} samples")
    return np.vectorize(_pass_at_k, otypes=[np.float64])(n, c, k)[()]


def _pass_at_k(n: int, c: int, k: int) -> float:
    if c + k > n:
        return 1.0
    fewer, more = min(c, k), max(c, k)  # the formula is symmetric in c and k
    return float(-np.expm1(np.sum(np.log1p(-more / (n - np.arange(fewer, dtype=np.float64))))))


def expected_max(values: npt.ArrayLike, k: int) -> float:
    """Expected largest of k values drawn without replacement from `values [n]`; exact, by order statistics.

    Raises EstimateError unless 1 <= k <= n.
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)
    if not 1 <= k <= n:
        raise EstimateError(f"the largest of {k} draws cannot be estimated from {n} values")
    drawn = np.arange(k)
    # P(all k draws are among the first i values), i = 0 … n
    below = np.prod(np.clip(np.arange(n + 1)[:, None] - drawn, 0, None) / (n - drawn), axis=1)
    return float(np.sum(ordered * np.diff(below)))


def cluster_bootstrap(
    values_by_problem: npt.ArrayLike, *, confidence: float = 0.95, resamples: int = 4000, seed: int = 0
) -> tuple[Any, Any]:
    """Percentile bootstrap interval of the mean over problems: whole problems are redrawn, never single samples.

    `values_by_problem [problems, ...]` holds one value per problem, or several that share its draw (one for every N,
    say). Returns `(low, high)`, each of the trailing shape; NaN for a single problem, which says nothing about
    others. Same inputs and seed, same interval. Raises EstimateError without a problem or for a confidence outside
    (0, 1).
    """
    values = np.asarray(values_by_problem, np.float64)
    if values.ndim == 0 or len(values) == 0:
        raise EstimateError("a bootstrap needs at least one problem")
    if not 0 < confidence < 1:
        raise EstimateError(f"confidence must be between 0 and 1, got {confidence}")
    problems = len(values)
    if problems == 1:
        nothing = np.full(values.shape[1:], np.nan)[()]
        return nothing, nothing
    rng = np.random.default_rng(seed)
    # How often each problem is drawn is all that a mean needs; a batch of draws at a time bounds the memory.
    means = []
    for start in range(0, resamples, 256):
        draws = rng.integers(problems, size=(min(256, resamples - start), problems))
        counts = np.stack([np.bincount(draw, minlength=problems) for draw in draws])
        means.append(np.tensordot(counts / problems, values, axes=1))
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return low[()], high[()]


def _range(values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} … {high}"
