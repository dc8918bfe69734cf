"""How many problems, and samples of each, an accuracy needs to be known to ± x, from a pool's samples.

An attempt is N samples of a problem, right if one of them is; `stats.precision` has what attempts and problems make of
their variances.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from kinetics_jax.analysis.defaults import check_trials, fewest_graded, powers_of_two
from kinetics_jax.analysis.samples import Pool
from kinetics_jax.errors import UserError
from kinetics_jax.stats.estimators import pass_at_k
from kinetics_jax.stats.intervals import accuracy_interval
from kinetics_jax.stats.precision import Spread, problems_for

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
MOST_ATTEMPTS = 64  # of a problem, in a table
WORTHWHILE = 0.95  # twice the samples of a problem are worth a row where they make fewer problems do by this factor
WORST = Spread(0.25, 0.0)  # half of the problems always solved, the others never


def check_half_width(half_width: float) -> None:
    """Raises UserError unless 0.0005 <= x < 0.5: no accuracy is known worse than to ± 0.5, and none so well."""
    if not 0.0005 <= half_width < 0.5:
        raise UserError(f"--half-width must be at least 0.0005 and below 0.5, a part of 1, got {half_width}")


def can_split(pool: Pool, trials: int) -> bool:
    """Whether samples tell what attempts differ by between problems and within them: two attempts share no sample."""
    return 2 * trials <= fewest_graded(pool)


def spread(pool: Pool, trials: int) -> Spread:
    """The variances of attempts of `trials` samples, from a pool's graded samples; all of it `between` problems where
    the two cannot be told apart (`can_split`).

    Unbiased but for what is added so that a few problems that went alike do not promise that all will: four problems,
    two solved and two not (Agresti and Coull, American Statistician 52, 1998), and to `within` one that is solved half
    of the time. Together at most that of `WORST`: what is right or wrong varies no more. Raises EstimateError for more
    trials than graded samples.
    """
    graded = np.array([problem.graded for problem in pool.problems.values()])
    right = np.array([problem.right for problem in pool.problems.values()])
    once = pass_at_k(graded, right, trials)
    split = can_split(pool, trials)
    twice = 2 * once - pass_at_k(graded, right, 2 * trials) if split else once  # both of two attempts are right
    rates, both = np.array([*once, 1, 1, 0, 0]), np.array([*twice, 1, 1, 0, 0])
    count = len(rates)
    of_two_problems = (rates.sum() ** 2 - np.sum(rates**2)) / (count * (count - 1))
    between = float(np.clip(both.mean() - of_two_problems, 0, 0.25))
    within = float((np.sum(once - twice) + 0.25) / (len(once) + 1)) if split else 0.0
    return Spread(between, min(within, 0.25 - between))


def attempts_for_these(half_width: float, parts: Spread, problems: int) -> int:
    """Attempts at each of `problems` problems whose 95 % interval, for those problems alone, is ± `half_width`."""
    normal = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    return max(1, math.ceil(parts.within / problems * (normal / half_width) ** 2 - 1e-9))


def half_width_table(pools: Sequence[Pool], half_width: float, trials: Sequence[int] = (1,)) -> pd.DataFrame:
    """A row for every pool, N and number of samples of a problem (N, 2 N, 4 N …): `problems` that it takes for an
    interval of ± `half_width` over all problems of the kind, and `samples_in_all`. `half_width_now` is what the pool's
    own samples give; `these_problems` is how many samples of each of its own problems it takes for an interval over
    these alone, NaN where 2 N samples were not drawn. Raises UserError as `check_half_width` and
    `check_trials` do.
    """
    import pandas as pd

    check_half_width(half_width)
    rows = []
    for pool in pools:
        check_trials(pool, trials)
        for n in trials:
            parts = spread(pool, n)
            solved = pass_at_k(
                [problem.graded for problem in pool.problems.values()],
                [problem.right for problem in pool.problems.values()],
                n,
            )
            low, high = accuracy_interval(solved)
            split = can_split(pool, n)
            alone = attempts_for_these(half_width, parts, len(pool.problems)) * n if split else math.nan
            for attempts in powers_of_two(MOST_ATTEMPTS if split else 1):
                problems = problems_for(half_width, parts, attempts)
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
                        "these_problems": alone,
                    }
                )
                if attempts > 1 and problems > WORTHWHILE * rows[-2]["problems"]:
                    rows.pop()
                    break
    return pd.DataFrame(rows)
