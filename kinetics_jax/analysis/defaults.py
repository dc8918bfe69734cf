"""What tables hold by default: numbers of samples N and caps on tokens; and which accuracies count as equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from kinetics_jax.analysis.samples import Pool, SamplesError
from kinetics_jax.stats.estimators import Amount, EstimateError

CAP_STEPS = 16  # caps of a default grid where no cut texts were graded
DIGITS = 12  # decimals of an accuracy


def powers_of_two(limit: int) -> list[int]:
    """1, 2, 4 … up to `limit`; empty below 1."""
    return [2**i for i in range(max(int(limit), 0).bit_length())]


def fewest_graded(pool: Pool) -> int:
    """Graded samples of the problem of a pool that has the fewest."""
    return min(problem.graded for problem in pool.problems.values())


def check_trials(pool: Pool, trials: npt.ArrayLike) -> None:
    """Raises EstimateError for an N above the graded samples of the problem of a pool that has the fewest."""
    most, asked = fewest_graded(pool), int(np.max(trials, initial=0))
    if asked > most:
        raise EstimateError(
            f"--trials {asked}: {pool} has {most} graded sample{'s' * (most > 1)} of a problem, so N is at "
            f"most {most}; give smaller --trials, or draw more samples"
        )


def default_trials(pool: Pool) -> list[int]:
    """Powers of two up to the fewest graded samples of a problem."""
    return powers_of_two(fewest_graded(pool))


def trials_of_halves(pools: Sequence[Pool]) -> Callable[[Pool], list[int]]:
    """Of every pool, powers of two up to half of its fewest graded samples, for both of its halves alike."""
    counts = {(pool.model, str(pool.attention)): powers_of_two(fewest_graded(pool) // 2) for pool in pools}
    return lambda half: counts[half.model, str(half.attention)]


def max_sample_tokens(pool: Pool) -> int:
    """Most tokens that a sample of a pool could have: its `max_tokens`, else its largest graded cap or longest sample.

    Where token counts are missing, the longest sample does not count.
    """
    limit = pool.settings.get("max_tokens") or max(pool.caps, default=1)
    return int(limit if np.isnan(pool.longest) else max(limit, pool.longest))


def default_caps(pools: Sequence[Pool]) -> list[int]:
    """Caps on the tokens of a sample: those at which the texts of all pools were cut and graded, and no cap at all.

    Without such caps, sixteenths of the longest sample. Raises SamplesError if those need a missing token count.
    """
    if common := set.intersection(*(set(pool.caps) for pool in pools)):
        return sorted({*common, max(map(max_sample_tokens, pools))})
    if unknown := [pool for pool in pools if np.isnan(pool.longest)]:
        raise SamplesError(f"{unknown[0]}: token counts are missing, so its longest sample is not known; give caps")
    longest = int(max(pool.longest for pool in pools))
    return sorted({-(-longest * step // CAP_STEPS) for step in range(1, CAP_STEPS + 1)})


def rounded_accuracy(accuracy: npt.ArrayLike) -> Amount:
    """Accuracies rounded so that equal ones tie: sums of equal numbers in another order differ in their last bits."""
    return np.round(np.asarray(accuracy, np.float64), DIGITS)
