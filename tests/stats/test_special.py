"""Special functions against Python's own and against tables."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.stats.special import log_gamma, stirling_remainder, student_t_quantile


@given(st.floats(1e-6, 1e9))
def test_log_gamma_is_the_one_of_math(x):
    np.testing.assert_allclose(log_gamma(x), math.lgamma(x), rtol=2e-14, atol=2e-14)


def test_stirlings_remainder_is_what_the_formula_leaves():
    for x in (10, 16, 100):
        formula = (x + 0.5) * math.log(x) - x + 0.5 * math.log(2 * math.pi)
        np.testing.assert_allclose(stirling_remainder(x), math.lgamma(x + 1) - formula, atol=2e-13)


@pytest.mark.parametrize(
    ("probability", "freedom", "quantile"),
    [  # published tables, three decimals
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 9, 2.262),
        (0.975, 29, 2.045),
        (0.975, 44, 2.015),
        (0.995, 10, 3.169),
        (0.9, 120, 1.289),
        (0.975, 10**6, 1.960),
    ],
)
def test_quantiles_of_student(probability, freedom, quantile):
    assert student_t_quantile(probability, freedom) == pytest.approx(quantile, abs=5e-4)
    assert student_t_quantile(1 - probability, freedom) == pytest.approx(-quantile, abs=5e-4)


def test_quantiles_of_student_meet_where_the_way_changes():
    for probability in (0.9, 0.975, 0.999):
        before, below, above = (student_t_quantile(probability, freedom) for freedom in (999, 1000, 1001))
        assert below - above == pytest.approx(before - below, rel=5e-3)  # nothing jumps: of 2e-6, to 1e-8
    assert abs(student_t_quantile(0.5, 7)) < 1e-12
    with pytest.raises(ValueError, match="0 < p < 1"):
        student_t_quantile(1.0, 3)
