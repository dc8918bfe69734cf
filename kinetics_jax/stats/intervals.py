"""Intervals of accuracies and of their differences that hold near 0 and 1 too, where redrawing problems shows nothing.

Both are Bayesian bootstraps (Rubin, Ann. Statist. 9, 1981) with one more problem, unlike those seen, at the bound: the
lower end allows for a problem that fails outright, the upper end for one that is solved. Where that problem is sure to
be there, the interval is Clopper and Pearson's for values of 0 or 1 (Biometrika 26, 1934), and Gaffke's for others
(Math. Methods Statist. 14, 2005). It need not be there where enough failures were seen to show what failures are like:
see `_unlike`, whose numbers were chosen by simulation (experiments/interval_coverage.py).
"""

from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Num

from kinetics_jax.stats.estimators import ROUNDING, Amount, EstimateError, clustered
from kinetics_jax.stats.special import student_t_quantile

DIGITS = 12  # decimals of an interval's ends
COLUMNS = 256  # intervals at a time, and
WEIGHTS = 1 << 22  # weights at a time: bound the memory
RARE = 0.05  # a share of problems of another kind which stays within the interval, nearly
ROOM = 0.8  # how nearly: the chance that none is seen and the interval ends before it, in tails
MOST_ROOM = 0.15  # the largest chance of a further problem where many failures were seen
MOST_EXPONENT = 100.0  # beyond it the room is MOST_ROOM whatever the tail
GOLDEN = (5**0.5 - 1) / 2
LEAST_SHAPE = 0.02  # of the weights: below, one problem has all the weight


def accuracy_interval(
    values: Num[npt.ArrayLike, "problems ..."],
    *,
    clusters: npt.ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> tuple[Amount, Amount]:
    """Interval of the mean over all problems of the kind, of values in 0 … 1: accuracies, pass@k, votes.

    `values` holds one value per problem, or several (one for every N, say). Returns `(low, high)`, each of the trailing
    shape, within 0 … 1 and never of zero width. `clusters` names each problem's cluster (any labels): problems of one
    cluster go together, as translations of one question do, and the mean is still that over problems. Same values and
    seed, same interval, whatever the order of the problems.

    Raises EstimateError without a problem, for values beyond 0 … 1, for a confidence outside (0, 1), or labels that are
    not one per problem.
    """
    values = _within(values, 0.0, 1.0)
    means, sizes = clustered(values, clusters)
    tail = _tail(confidence)
    alike = np.ptp(means, axis=0) <= ROUNDING
    seen = [np.where(alike, 0, effective_number(side)) for side in (1 - means, means)]
    unlike = tuple(_unlike(each, len(means), tail) for each in seen)
    low, high = _interval(means, sizes, (0.0, 1.0), unlike, tail=tail, resamples=resamples, seed=seed)
    return _ends(low, high, (0.0, 1.0), values.shape[1:])


def difference_interval(
    first: Num[npt.ArrayLike, "problems ..."],
    second: Num[npt.ArrayLike, "problems ..."],
    *,
    clusters: npt.ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> tuple[Amount, Amount]:
    """Interval of the mean difference, first minus second, of two configurations on the same problems.

    Both hold values in 0 … 1 of the same problems in the same order; shapes, `clusters` and errors as of
    `accuracy_interval`. The ends are within -1 … 1 and never the same. Hardness that both share cancels. The lower end
    allows for one more problem which the first fails outright, or the second solves outright, whichever loses more; the
    upper end for the opposite.
    """
    first, second = _within(first, 0.0, 1.0), _within(second, 0.0, 1.0)
    if first.shape != second.shape:
        raise EstimateError(
            f"a paired difference needs a value of each problem from both, got shapes {first.shape} and {second.shape}"
        )
    (one, sizes), (other, _) = clustered(first, clusters), clustered(second, clusters)
    tail = _tail(confidence)
    apart, middle = one - other, (one + other) / 2
    # What shows a loss: problems that differ, and those that neither fail nor succeed with all samples. Three say much.
    shown = np.minimum(effective_number(np.abs(apart)), np.sum((4 * middle * (1 - middle)) ** 2, axis=0))
    alike = np.ptp(apart, axis=0) <= ROUNDING
    unlike = _unlike(np.where(alike, 0, shown**3), len(one), tail)
    further = -np.where(alike, 1, np.maximum(other, 1 - one)), np.where(alike, 1, np.maximum(one, 1 - other))
    low, high = _interval(apart, sizes, further, (unlike, unlike), tail=tail, resamples=resamples, seed=seed)
    return _ends(low, high, (-1.0, 1.0), first.shape[1:])


def effective_number(losses: Float[np.ndarray, "problems columns"]) -> Float[np.ndarray, " columns"]:
    """How many problems of equal loss would vary as these: sum squared over sum of squares; 0 without a loss."""
    total = losses.sum(axis=0)
    return np.divide(total**2, (losses**2).sum(axis=0), out=np.zeros_like(total), where=total > ROUNDING)


def _unlike(seen: Float[np.ndarray, " columns"], problems: int, tail: float) -> Float[np.ndarray, " columns"]:
    """The chance that a further problem of another kind has to be allowed for, `seen` failures being known.

    1 for none, and then 1 / (1 + seen), as in Hoppe's urn (J. Math. Biol. 20, 1984); never below `room`, with which a
    share of 5 % of another kind that so many problems do not show is still about reached.
    """
    room = min(MOST_ROOM, ROOM * tail * math.exp(min(-problems * math.log1p(-RARE), MOST_EXPONENT)))
    return room + (1 - room) / (1 + seen)


def _tail(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise EstimateError(f"confidence must be between 0 and 1, got {confidence}")
    return (1 - confidence) / 2


def _interval(
    values: Float[np.ndarray, "problems columns"],
    sizes: Float[np.ndarray, " problems"] | None,
    further: tuple[Float[np.ndarray, "problems columns"] | float, ...],
    unlike: tuple[Float[np.ndarray, " columns"], ...],
    *,
    tail: float,
    resamples: int,
    seed: int,
) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " columns"]]:
    """Both ends of each column's mean; for each end a further problem's value and the chance that there is one.

    The further problem weighs Beta(1, problems), as if it were one of them; what it is like is drawn from the rows.
    """
    problems = len(values)
    # Sorted, each column by itself: only its own distribution matters, and the order of problems does not.
    order = np.argsort(values, axis=0, kind="stable")
    values = np.take_along_axis(values, order, axis=0)
    others = [np.sort(other, axis=0) if isinstance(other, np.ndarray) else other for other in further]
    rng = np.random.default_rng(seed)
    redrawn = _redrawn(values, None if sizes is None else sizes[order], tail, resamples, rng)
    steps = np.arange(resamples)
    # Evenly spread, and by the golden ratio also among the draws below any chance: less noise than random ones.
    ranks = np.argsort(np.argsort(steps * GOLDEN % 1))
    weight = 1 - ((ranks + 1) / resamples) ** (1 / problems)
    level, row = (steps + 0.5) / resamples, rng.permutation(steps % problems)
    ends: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for start in range(0, values.shape[1], COLUMNS):
        some = slice(start, start + COLUMNS)
        means = redrawn[some]
        for sign, end, other, chance in zip((1, -1), ends, others, unlike, strict=True):
            away = (other[:, some].T[:, row] if isinstance(other, np.ndarray) else other) - means
            away *= np.where(level < chance[some, None], weight, 0.0)
            away += means
            away *= sign  # both ends are lower ones, and equally exact: the share at the tail is that of the tail
            end.append(sign * np.quantile(away, tail, axis=1, method="interpolated_inverted_cdf"))
    return np.concatenate(ends[0]), np.concatenate(ends[1])


def _redrawn(
    values: Float[np.ndarray, "problems columns"],
    sizes: Float[np.ndarray, "problems columns"] | None,
    tail: float,
    resamples: int,
    rng: np.random.Generator,
) -> Float[np.ndarray, "columns resamples"]:
    """Means over randomly weighed problems.

    The weights are Dirichlet of a shape below one, so that a mean over them varies as Student's t says of so few
    problems.
    """
    problems = len(values)
    shape = LEAST_SHAPE
    if problems > 1:
        narrower = NormalDist().inv_cdf(tail) / student_t_quantile(tail, problems - 1)
        shape = max(shape, ((problems - 1) * narrower**2 - 1) / problems)
    means = np.empty((values.shape[1], resamples))
    for start in range(0, resamples, at_once := max(1, WEIGHTS // problems)):
        many = min(at_once, resamples - start), problems
        # gamma(shape) = gamma(shape + 1) * uniform ** (1 / shape), in logarithms: small shapes underflow
        logs = np.log(rng.standard_gamma(shape + 1, many)) + np.log(rng.random(many)) / shape
        weights = np.exp(logs - logs.max(axis=1, keepdims=True))
        weights /= weights.sum(axis=1, keepdims=True)
        if sizes is None:
            means[:, start : start + at_once] = values.T @ weights.T
        else:
            means[:, start : start + at_once] = ((sizes * values).T @ weights.T) / (sizes.T @ weights.T)
    return means


def _within(values: npt.ArrayLike, least: float, most: float) -> np.ndarray:
    values = np.asarray(values, np.float64)
    if values.ndim == 0 or len(values) == 0:
        raise EstimateError("an interval needs at least one problem")
    if not np.all((values >= least - ROUNDING) & (values <= most + ROUNDING)):
        raise EstimateError(f"values must be in {least:g} … {most:g}, got {np.min(values):.6g} … {np.max(values):.6g}")
    return np.clip(values, least, most)


def _ends(
    low: np.ndarray, high: np.ndarray, bounds: tuple[float, float], shape: tuple[int, ...]
) -> tuple[Amount, Amount]:
    # Sums of equal numbers differ in their last bits: whoever solves all problems has 1 as the upper end.
    low, high = (np.clip(np.round(end, DIGITS), *bounds).reshape(shape)[()] for end in (low, high))
    return low, high


@dataclasses.dataclass(frozen=True)
class Difference:
    """Two configurations compared on the same problems: the first's accuracy minus the second's.

    `difference` with its interval `low` … `high`. `noninferior`: whether the first is shown to be
    worse by less than `margin` (`low` above -margin); None without a margin.
    """

    difference: float
    low: float
    high: float
    margin: float | None = None

    @property
    def noninferior(self) -> bool | None:
        return None if self.margin is None else bool(self.low > -self.margin)


def paired_difference(
    first: Float[npt.ArrayLike, " problems"],
    second: Float[npt.ArrayLike, " problems"],
    *,
    margin: float | None = None,
    clusters: npt.ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 4000,
    seed: int = 0,
) -> Difference:
    """The mean difference of two configurations over problems, which both have in the same order.

    Values are accuracies of a problem, in 0 … 1 (its pass@k, say); the interval is `difference_interval`'s. `margin` is
    the loss that would not matter, positive, in units of the values; an interval of 95 % tests non-inferiority at
    2.5 %, one-sided. Raises EstimateError for other shapes, a margin that is not positive, and as
    `difference_interval` does.
    """
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if first.ndim != 1 or first.shape != second.shape:
        raise EstimateError(
            f"a paired difference needs a value of each problem from both, got shapes {first.shape} and {second.shape}"
        )
    if margin is not None and not margin > 0:
        raise EstimateError(f"the margin of non-inferiority must be positive, got {margin}")
    low, high = difference_interval(
        first, second, clusters=clusters, confidence=confidence, resamples=resamples, seed=seed
    )
    return Difference(float(np.mean(first - second)), float(low), float(high), margin)
