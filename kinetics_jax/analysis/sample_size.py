"""How many problems, and samples of each, an accuracy needs to be known to ± x.

An attempt is N samples of a problem, right if one of them is. The mean over P problems of m attempts each varies by
(between + within / m) / P: `between` is the variance of the problems' rates, `within` the mean variance of an attempt
at a problem's own rate. Further samples of a problem lower the second part alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from kinetics_jax.analysis.defaults import fewest_graded, powers_of_two
from kinetics_jax.analysis.samples import Pool
from kinetics_jax.errors import UserError
from kinetics_jax.stats.estimators import pass_at_k
from kinetics_jax.stats.intervals import accuracy_interval

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
MOST_ATTEMPTS = 64  # of a problem, in a table
WORTHWHILE = 0.95  # twice the samples of a problem are worth a row where they make fewer problems do by this factor


@dataclasses.dataclass(frozen=True)
class Spread:
    """`between` problems and `within` them, variances of one attempt; `within` is None where the samples cannot tell
    the two apart, and `between` then holds both.
    """

    between: float
    within: float | None


WORST = Spread(0.25, None)  # half of the problems always solved, the others never


def check_half_width(half_width: float) -> None:
    """Raises UserError unless 0 < x < 0.5: no accuracy is known worse than to ± 0.5."""
    if not 0 < half_width < 0.5:
        raise UserError(f"--half-width must be above 0 and below 0.5, a part of 1, got {half_width}")


def spread(pool: Pool, trials: int) -> Spread:
    """The variances of attempts of `trials` samples, from a pool's graded samples.

    Unbiased but for what is added so that a few problems that went alike do not promise that all will: four
    problems, two solved and two not (Agresti and Coull, American Statistician 52, 1998), and to `within` one solved
    half of the time.
    Two attempts of which no sample is shared tell the parts apart: that takes 2 N samples of every problem. Raises
    EstimateError for more trials than graded samples.
    """
    graded = np.array([problem.graded for problem in pool.problems.values()])
    right = np.array([problem.right for problem in pool.problems.values()])
    once = pass_at_k(graded, right, trials)
    told_apart = 2 * trials <= fewest_graded(pool)
    twice = 2 * once - pass_at_k(graded, right, 2 * trials) if told_apart else once  # both of two attempts are right
    rates, both = np.array([*once, 1, 1, 0, 0]), np.array([*twice, 1, 1, 0, 0])
    count = len(rates)
    of_two_problems = (rates.sum() ** 2 - np.sum(rates**2)) / (count * (count - 1))
    between = float(np.clip(both.mean() - of_two_problems, 0, 0.25))
    if not told_apart:
        return Spread(between, None)
    return Spread(between, float((np.sum(once - twice) + 0.25) / (len(once) + 1)))


def problems_needed(parts: Spread, half_width: float, attempts: int = 1) -> int:
    """Problems, of the kind, that make a 95 % interval of ± `half_width`, with so many attempts at each."""
    variance = parts.between + (parts.within or 0.0) / attempts
    return max(1, math.ceil(variance * (_normal() / half_width) ** 2 - 1e-9))


def attempts_needed(parts: Spread, half_width: float, problems: int) -> int | None:
    """Attempts at each of `problems` problems that make a 95 % interval of ± `half_width` for those problems alone;
    None where the samples do not tell.
    """
    if parts.within is None:
        return None
    return max(1, math.ceil(parts.within / problems * (_normal() / half_width) ** 2 - 1e-9))


def half_width_table(pools: Sequence[Pool], half_width: float, trials: Sequence[int] = (1,)) -> pd.DataFrame:
    """A row for every pool, N and number of samples of a problem (N, 2 N, 4 N …): `problems` that it takes for an
    interval of ± `half_width` over all problems of the kind, and `samples_in_all`. `half_width_now` is what the pool's
    own samples give; `these_problems` is how many samples of each of its own problems it takes for an interval over
    these alone, NaN where 2 N samples were not drawn. Raises UserError as `check_half_width` does.
    """
    import pandas as pd

    check_half_width(half_width)
    rows = []
    for pool in pools:
        for n in trials:
            parts = spread(pool, n)
            solved = pass_at_k(
                [problem.graded for problem in pool.problems.values()],
                [problem.right for problem in pool.problems.values()],
                n,
            )
            low, high = accuracy_interval(solved)
            alone = attempts_needed(parts, half_width, len(pool.problems))
            for attempts in powers_of_two(MOST_ATTEMPTS if parts.within is not None else 1):
                problems = problems_needed(parts, half_width, attempts)
                rows.append(
                    {
                        "model": pool.model,
                        "attention": str(pool.attention),
                        "N": n,
                        "accuracy": float(np.mean(solved)),
                        "half_width_now": float(high - low) / 2,
                        "samples": attempts * n,
                        "problems": problems,
                        "samples_in_all": attempts * n * problems,
                        "these_problems": math.nan if alone is None else alone * n,
                    }
                )
                if attempts > 1 and problems > WORTHWHILE * rows[-2]["problems"]:
                    rows.pop()
                    break
    return pd.DataFrame(rows)


def _normal() -> float:
    return NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
