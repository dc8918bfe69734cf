"""Estimators against exact combinatorics."""

from fractions import Fraction
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.economics.estimators import EstimateError, cluster_bootstrap, expected_max, pass_at_k


def test_coverage_of_five_right_in_thirty_two():
    golden = [0.15625, 0.29233872, 0.51195773, 0.78893215, 0.97830923, 1.0]
    np.testing.assert_allclose(pass_at_k(32, 5, [1, 2, 4, 8, 16, 32]), golden, rtol=1e-7)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_coverage_is_exact(data):
    n = data.draw(st.integers(1, 300))
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - Fraction(comb(n - c, k), comb(n, k))
    np.testing.assert_allclose(pass_at_k(n, c, k), float(exact), rtol=1e-12)


def test_coverage_of_a_hundred_thousand_samples():
    n, k = 100_000, 50_000
    exact = float(1 - Fraction(comb(n - 3, k), comb(n, k)))
    np.testing.assert_allclose(pass_at_k(n, 3, k), exact, rtol=1e-12)
    np.testing.assert_allclose(pass_at_k(n, 1, 1), 1e-5, rtol=1e-12)  # no digits lost to 1 - (1 - tiny)
    assert pass_at_k(n, 0, n) == 0
    assert pass_at_k(n, 1, n) == 1


def test_coverage_broadcasts():
    table = pass_at_k(np.array([[4], [8]]), np.array([[1], [2]]), [1, 2, 4])
    assert table.shape == (2, 3)
    assert table[1, 2] == pass_at_k(8, 2, 4)
    assert np.all(np.diff(table) > 0)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 5), (4, 1, 0), (4, 5, 1), (4, -1, 1), ([4, 2], 1, 3)])
def test_coverage_refuses_what_samples_cannot_tell(n, c, k):
    with pytest.raises(EstimateError, match="pass@k needs"):
        pass_at_k(n, c, k)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.data())
def test_expected_max_is_the_mean_over_all_draws(values, data):
    k = data.draw(st.integers(1, len(values)))
    exact = np.mean([max(draw) for draw in combinations(values, k)])
    np.testing.assert_allclose(expected_max(values, k), exact, rtol=1e-12)


def test_expected_max_of_more_draws_than_values_is_refused():
    with pytest.raises(EstimateError, match="3 draws"):
        expected_max([1, 2], 3)


def test_bootstrap_is_reproducible_and_covers_the_mean():
    values = np.random.default_rng(1).random((40, 2))
    low, high = cluster_bootstrap(values)
    np.testing.assert_array_equal([low, high], cluster_bootstrap(values))
    assert low.shape == (2,)
    assert np.all((low < values.mean(axis=0)) & (values.mean(axis=0) < high))
    assert np.all(np.array(cluster_bootstrap(values, seed=1)) != [low, high])
    # The normal approximation, and a narrower interval for less confidence
    np.testing.assert_allclose((high - low) / 2, 1.96 * values.std(axis=0) / np.sqrt(40), rtol=0.06)
    inner_low, inner_high = cluster_bootstrap(values, confidence=0.5)
    assert np.all((inner_low > low) & (inner_high < high))


def test_bootstrap_draws_problems_together():
    values = np.random.default_rng(2).random(20)
    low, high = cluster_bootstrap(np.stack([values, 2 * values], axis=1))
    np.testing.assert_allclose((2 * low[0], 2 * high[0]), (low[1], high[1]))
    assert np.ndim(cluster_bootstrap(values)[0]) == 0


def test_bootstrap_of_one_problem_says_nothing():
    assert all(np.isnan(bound) for bound in cluster_bootstrap([0.5]))
    with pytest.raises(EstimateError, match="at least one problem"):
        cluster_bootstrap([])
    with pytest.raises(EstimateError, match="confidence"):
        cluster_bootstrap([0.5, 1], confidence=95)
