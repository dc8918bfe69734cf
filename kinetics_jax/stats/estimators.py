"""Unbiased estimates from n samples of a problem, and intervals that respect that samples of a problem go together."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Num

from kinetics_jax.errors import UserError
from kinetics_jax.stats.special import stirling_remainder, student_t_quantile

MAX_FACTORS = 64  # pass@k is a product of at most this many factors, else Stirling's series
ROUNDING = 1e-12  # values that differ by less are equal
MIN_STIRLING = 16  # the smallest argument of Stirling's series here

Amount = Any  # a float64 for numbers, an array of them, of the broadcast shape, for arrays


class EstimateError(UserError):
    """Raised for an estimate that these samples cannot give; the message says which and why."""


def pass_at_k(n: npt.ArrayLike, c: npt.ArrayLike, k: npt.ArrayLike) -> Amount:
    """Probability that k of n samples, drawn without replacement, hold at least one of the c correct ones.

    The paper's coverage estimator, 1 - C(n-c, k) / C(n, k): unbiased for the pass rate of k fresh samples. Whole
    numbers or arrays that broadcast; returns a float64 of the broadcast shape, its relative error below 1e-12 for n up
    to 10**5 and beyond. Raises EstimateError unless they are whole, 0 <= c <= n and 1 <= k <= n.
    """
    n, c, k = np.asarray(n), np.asarray(c), np.asarray(k)
    if any(np.any(value != np.floor(value)) for value in (n, c, k)):
        raise EstimateError(f"pass@k needs whole numbers: n = {_range(n)}, c = {_range(c)}, k = {_range(k)}")
    if np.any(k < 1) or np.any(k > n):
        raise EstimateError(f"pass@k needs 1 <= k <= n: k = {_range(k)} with n = {_range(n)} samples")
    if np.any(c < 0) or np.any(c > n):
        raise EstimateError(f"pass@k needs 0 <= c <= n: c = {_range(c)} correct of n = {_range(n)} samples")
    n, c, k = np.broadcast_arrays(*(value.astype(np.float64) for value in (n, c, k)))
    fewer, more = np.minimum(c, k), np.maximum(c, k)  # the formula is symmetric in c and k
    log_miss = np.zeros(n.shape)
    certain = more + fewer > n
    short = (fewer <= MAX_FACTORS) & ~certain
    for i in range(int(np.max(fewer, where=short, initial=0))):  # the product of `fewer` factors
        counts = short & (i < fewer)
        log_miss += np.log1p(np.where(counts, -more / np.where(counts, n - i, 1.0), 0.0))
    long = ~short & ~certain
    log_miss[long] = _log_miss(n[long], fewer[long], more[long])
    return np.where(certain, 1.0, -np.expm1(log_miss))[()]


def _log_miss(n: np.ndarray, c: np.ndarray, k: np.ndarray) -> np.ndarray:
    """log C(n-c, k) / C(n, k) for c, k > MAX_FACTORS and c + k <= n, by Stirling's series; nothing cancels.

    With a = n - c, b = n - k, d = n - c - k it is log a! + log b! - log n! - log d!, and ab = nd + ck. Where d is too
    small for the series the probability is below 1e-20, and only that it is small matters.
    """
    a, b, d = n - c, n - k, n - c - k
    ratio = np.where(d > 0, c * k / (a * b), 0.0)
    leading = k * np.log1p(-c / n) + c * np.log1p(-k / n) - d * np.log1p(-ratio)
    d = np.maximum(d, MIN_STIRLING)
    corrections = stirling_remainder(a) + stirling_remainder(b) - stirling_remainder(n) - stirling_remainder(d)
    return leading + 0.5 * np.log1p(c * k / (n * d)) + corrections


def average(n: Num[npt.ArrayLike, " problems"], c: Num[npt.ArrayLike, " problems"]) -> float:
    """Accuracy of a single sample: the mean over problems of c / n, with c right of n graded samples.

    Problems weigh alike, however many samples each has. Raises EstimateError without a problem, for one without a
    sample, and unless 0 <= c <= n.
    """
    n, c = np.atleast_1d(n), np.atleast_1d(c)
    if not n.size or np.any(n < 1):
        raise EstimateError("an average needs at least one problem, and a graded sample of each")
    return float(np.mean(pass_at_k(n, c, 1)))


def expected_max(values: Num[npt.ArrayLike, " n"], k: int) -> float:
    """Expected largest of k values drawn without replacement from `values`; exact, by order statistics.

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
    values_by_problem: Num[npt.ArrayLike, "problems ..."],
    *,
    clusters: npt.ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
    method: str = "expanded",
) -> tuple[Amount, Amount]:
    """Bootstrap interval of the mean over problems: whole problems are redrawn, never single samples.

    For amounts without bounds: tokens, costs, seconds. Accuracies and their differences have `accuracy_interval` and
    `difference_interval` (stats/intervals.py): where nearly all problems succeed, or nearly all fail, redrawing shows
    nothing of the rest, and this interval is too narrow (experiments/interval_coverage.py).

    `values_by_problem` holds one value per problem, or several (one for every N, say). Returns `(low, high)`, each of
    the trailing shape; NaN for one problem. The interval is for the mean over all problems of the kind, not for these
    ones alone. Same values and seed, same interval, whatever the order of the problems. `clusters` names each problem's
    cluster (any labels): whole clusters are redrawn then, and the mean is still that over problems.

    `method`: "expanded" takes the percentiles whose normal quantile is sqrt(P / (P-1)) times Student's t quantile of
    P-1 degrees, for P problems or clusters (Hesterberg 2015, arXiv 1411.5279, section 3.3); "percentile" takes the
    nominal ones, which is too narrow for few problems: by a sixth for ten, by a twentieth for thirty. Both stay within
    the values' range.

    Raises EstimateError without a problem, for a confidence outside (0, 1), another method, or labels that are not one
    per problem.
    """
    values = np.asarray(values_by_problem, np.float64)
    if values.ndim == 0 or len(values) == 0:
        raise EstimateError("a bootstrap needs at least one problem")
    if not 0 < confidence < 1:
        raise EstimateError(f"confidence must be between 0 and 1, got {confidence}")
    if method not in ("expanded", "percentile"):
        raise EstimateError(f"bootstrap method {method!r} is not known (known: expanded, percentile)")
    means, sizes = clustered(values, clusters)
    problems = len(means)
    if problems == 1:
        nothing = np.full(values.shape[1:], np.nan)[()]
        return nothing, nothing
    # Each column in an order of its own: only its own distribution matters to its interval.
    order = np.argsort(means, axis=0, kind="stable")
    means = np.take_along_axis(means, order, axis=0)
    weights = np.ones_like(means) if sizes is None else sizes[order]
    rng = np.random.default_rng(seed)
    # How often each problem is drawn is all that a mean needs; a batch of draws at a time bounds the memory.
    redrawn = []
    for start in range(0, resamples, 256):
        draws = rng.integers(problems, size=(min(256, resamples - start), problems))
        counts = np.stack([np.bincount(draw, minlength=problems) for draw in draws])
        redrawn.append(counts @ (weights * means) / (problems if sizes is None else counts @ weights))
    tail = (1 - confidence) / 2
    if method == "expanded":
        tail = expanded_tail(tail, problems)
    low, high = np.quantile(np.concatenate(redrawn), [tail, 1 - tail], axis=0)
    return low.reshape(values.shape[1:])[()], high.reshape(values.shape[1:])[()]


def expanded_tail(tail: float, units: int) -> float:
    """The share below the lower end of a percentile interval of `units` redrawn problems, so that the nominal `tail` is
    beyond it (Hesterberg 2015, arXiv 1411.5279, section 3.3); smaller the fewer there are.
    """
    reach = math.sqrt(units / (units - 1)) * student_t_quantile(tail, units - 1)
    return NormalDist().cdf(reach)


def clustered(
    values: Float[np.ndarray, "problems ..."], clusters: npt.ArrayLike | None
) -> tuple[Float[np.ndarray, "clusters columns"], Float[np.ndarray, " clusters"] | None]:
    """Means over each cluster's problems, in columns, and the clusters' sizes (None: all alike).

    Without `clusters` every problem is one. Raises EstimateError unless there is one label per problem.
    """
    columns = values.reshape(len(values), -1)
    if clusters is None:
        return columns, None
    labels = np.asarray(clusters)
    if labels.shape != (len(values),):
        raise EstimateError(f"clusters need one label per problem: {len(values)} problems, labels {labels.shape}")
    _, member, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), columns.shape[1]))
    np.add.at(sums, member, columns)
    return sums / sizes[:, None], sizes.astype(np.float64) if np.ptp(sizes) else None


def _range(values: np.ndarray) -> str:
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} … {high}"
