"""How wide an interval of a mean accuracy will be, and how many problems or samples make it narrow enough."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from jaxtyping import Num

from kinetics_jax.stats.estimators import EstimateError
from kinetics_jax.stats.special import student_t_quantile

MOST = 10**7  # problems or samples, beyond what anybody will run


@dataclasses.dataclass(frozen=True)
class Spread:
    """Variance of a single sample's outcome: `between` problems, of their solve rates, and `within` a problem, of its
    samples. The mean over P problems of n samples each has the variance (between + within / n) / P.
    """

    between: float
    within: float

    @classmethod
    def of(cls, n: Num[npt.ArrayLike, " problems"], c: Num[npt.ArrayLike, " problems"]) -> Spread:
        """As measured, c right of n graded samples of each problem. Unbiased, but for negative estimates, which are 0.

        Raises EstimateError unless there are two problems with two samples each, at least, and 0 <= c <= n.
        """
        n, c = np.atleast_1d(n).astype(np.float64), np.atleast_1d(c).astype(np.float64)
        if n.shape != c.shape or n.ndim != 1 or len(n) < 2 or np.any(n < 2) or np.any(c < 0) or np.any(c > n):
            raise EstimateError("a spread needs at least two problems, two samples of each, and 0 <= c <= n")
        rates = c / n
        variances = n / (n - 1) * rates * (1 - rates)
        return cls(max(float(np.var(rates, ddof=1) - np.mean(variances / n)), 0.0), float(np.mean(variances)))


def half_width(spread: Spread, problems: int, samples: int, *, confidence: float = 0.95) -> float:
    """Expected half width of the interval of a mean accuracy, over `problems` with so many `samples` of each.

    Student's, and not below what so many problems can show when all come out alike (half of Clopper and Pearson's
    interval). Raises EstimateError for less than two problems or one sample, or a confidence outside (0, 1).
    """
    if problems < 2 or samples < 1:
        raise EstimateError(f"a half width needs two problems and one sample, got {problems} and {samples}")
    if not 0 < confidence < 1:
        raise EstimateError(f"confidence must be between 0 and 1, got {confidence}")
    tail = (1 - confidence) / 2
    error = math.sqrt((spread.between + spread.within / samples) / problems)
    return min(max(-student_t_quantile(tail, problems - 1) * error, (1 - tail ** (1 / problems)) / 2), 0.5)


def problems_for(half: float, spread: Spread, samples: int, *, confidence: float = 0.95) -> int:
    """The fewest problems, with so many samples of each, whose expected half width is at most `half`.

    Raises EstimateError for a half width that is not in 0 … 0.5, or that ten million problems do not reach.
    """
    _check(half)
    if half_width(spread, MOST, samples, confidence=confidence) > half:
        raise EstimateError(f"a half width of {half:g} needs more than {MOST} problems")
    return _fewest(lambda problems: half_width(spread, problems, samples, confidence=confidence) <= half, 2)


def samples_for(half: float, spread: Spread, problems: int, *, confidence: float = 0.95) -> int:
    """The fewest samples of each of so many problems whose expected half width is at most `half`.

    Raises EstimateError for a half width that is not in 0 … 0.5, and, naming how many problems it takes, where no
    number of samples is enough: what problems differ by does not shrink.
    """
    _check(half)
    if half_width(spread, problems, MOST, confidence=confidence) > half:
        least = problems_for(half, dataclasses.replace(spread, within=0.0), 1, confidence=confidence)
        raise EstimateError(
            f"no number of samples of {problems} problems gives a half width of {half:g}: it takes {least} problems"
        )
    return _fewest(lambda samples: half_width(spread, problems, samples, confidence=confidence) <= half, 1)


def _check(half: float) -> None:
    if not 0 < half <= 0.5:
        raise EstimateError(f"a half width of an accuracy is above 0 and at most 0.5, got {half:g}")


def _fewest(enough: Callable[[int], bool], least: int) -> int:
    high = least
    while high < MOST and not enough(high):
        high *= 2
    low = max(least, high // 2)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low
