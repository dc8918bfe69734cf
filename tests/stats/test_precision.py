"""Expected half widths against the widths of intervals, and the fewest problems and samples by hand."""

import numpy as np
import pytest

from kinetics_jax.stats.estimators import EstimateError
from kinetics_jax.stats.intervals import accuracy_interval
from kinetics_jax.stats.precision import Spread, half_width, problems_for, samples_for


def test_a_spread_is_unbiased():
    rng = np.random.default_rng(0)
    n = rng.integers(2, 9, (4000, 12))
    spreads = [Spread.of(counts, rng.binomial(counts, rng.beta(1, 1, 12))) for counts in n]
    np.testing.assert_allclose(np.mean([spread.within for spread in spreads]), 1 / 6, rtol=0.02)
    np.testing.assert_allclose(np.mean([spread.between for spread in spreads]), 1 / 12, rtol=0.05)
    assert Spread.of([4, 4], [2, 2]) == Spread(0.0, 1 / 3)


@pytest.mark.parametrize(("problems", "samples"), [(20, 4), (60, 1), (200, 8)])
def test_the_half_width_is_that_of_intervals(problems, samples):
    rng = np.random.default_rng(problems)
    right = rng.binomial(samples, rng.beta(2, 2, (problems, 200)))
    low, high = accuracy_interval(right / samples, resamples=1000)
    spread = Spread(between=1 / 20, within=0.2)  # of Beta(2, 2)
    np.testing.assert_allclose(half_width(spread, problems, samples), np.mean(high - low) / 2, rtol=0.12)


def test_the_fewest_that_are_enough():
    spread = Spread(between=0.05, within=0.15)
    for half in (0.02, 0.1, 0.3):
        problems = problems_for(half, spread, 4)
        assert half_width(spread, problems, 4) <= half
        assert problems == 2 or half_width(spread, problems - 1, 4) > half
    assert problems_for(0.01, Spread(0.0, 0.25), 1) == 9607  # 1.96² / 4 / 0.01² = 9604, and Student's few more
    samples = samples_for(0.1, spread, 30)
    assert half_width(spread, 30, samples) <= 0.1 < half_width(spread, 30, samples - 1)
    alike = half_width(Spread(0.0, 0.0), 10, 100)
    assert alike == (1 - 0.025 ** (1 / 10)) / 2  # ten of ten: 0.69 … 1
    with pytest.raises(EstimateError, match=r"30 problems gives a half width of 0\.05: it takes 80 problems"):
        samples_for(0.05, spread, 30)
    for bad, message in (
        (lambda: problems_for(0.7, spread, 4), "at most 0.5, got 0.7"),
        (lambda: problems_for(1e-6, spread, 4), "more than 10000000 problems"),
        (lambda: half_width(spread, 1, 4), "two problems"),
        (lambda: half_width(spread, 4, 4, confidence=95), "between 0 and 1"),
        (lambda: Spread.of([1, 4], [1, 2]), "two samples of each"),
    ):
        with pytest.raises(EstimateError, match=message):
            bad()
