"""Intervals of accuracies and differences: exact cases, bounds, clusters."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.stats.estimators import EstimateError
from kinetics_jax.stats.intervals import accuracy_interval, difference_interval, paired_difference

RATES = st.integers(0, 4).map(lambda right: right / 4)


@pytest.mark.parametrize(
    ("right", "problems", "low", "high"),
    [(10, 10, 0.6915, 1), (0, 30, 0, 0.1157), (45, 45, 0.9213, 1), (1, 1, 0.025, 1)],
)
def test_all_alike_have_the_interval_of_clopper_and_pearson(right, problems, low, high):
    """As in their tables; the ends are never beyond 0 and 1."""
    ends = accuracy_interval(np.arange(problems) < right)
    np.testing.assert_allclose(ends, (low, high), atol=5e-5)
    assert 0 <= ends[0] < ends[1] <= 1


def test_alike_between_the_bounds():
    np.testing.assert_allclose(accuracy_interval([0.5]), (0.0125, 0.9875))
    share = 1 - 0.05 ** (1 / 4)
    np.testing.assert_allclose(accuracy_interval([0.25] * 4, confidence=0.9), (0.25 * (1 - share), 0.25 + 0.75 * share))
    low, high = accuracy_interval(np.repeat([1.0, 1 - 1e-15, 0.1 * 3 / 0.3], 5))
    assert 0.7 < low < high == 1


@pytest.mark.parametrize(("failed", "problems"), [(1, 30), (2, 30), (4, 20), (12, 45)])
def test_a_few_failures_leave_about_the_exact_interval(failed, problems):
    """Clopper and Pearson's ends: those shares at which so few, or so many, failures have a probability of 2.5 %."""
    from math import comb

    def most(share, least):  # P(failures <= failed), or >= failed
        terms = range(failed, problems + 1) if least else range(failed + 1)
        return sum(comb(problems, f) * share**f * (1 - share) ** (problems - f) for f in terms)

    shares = np.linspace(0, 1, 4001)
    low, high = accuracy_interval(np.arange(problems) >= failed)
    np.testing.assert_allclose(1 - low, shares[most(shares, least=False) >= 0.025].max(), atol=0.035)
    np.testing.assert_allclose(1 - high, shares[most(shares, least=True) <= 0.025].max(), atol=0.035)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(RATES, RATES), min_size=1, max_size=12), st.integers(0, 3))
def test_ends_stay_within_bounds_and_around_the_mean(pairs, seed):
    first, second = np.array(pairs).T
    low, high = accuracy_interval(first, resamples=400, seed=seed)
    assert 0 <= low <= first.mean() + 1e-12
    assert first.mean() - 1e-12 <= high <= 1
    assert low < high
    low, high = difference_interval(first, second, resamples=400, seed=seed)
    assert -1 <= low <= np.mean(first - second) + 1e-12
    assert np.mean(first - second) - 1e-12 <= high <= 1
    assert low < high


def test_an_interval_is_a_function_of_values_and_seed():
    values = np.random.default_rng(4).random((12, 3)).round(1)
    whole = np.array(accuracy_interval(values))
    np.testing.assert_array_equal(whole, accuracy_interval(values[::-1]))
    np.testing.assert_array_equal(whole[:, 1], accuracy_interval(values[:, 1]))
    np.testing.assert_array_equal(whole, np.array(accuracy_interval(values.reshape(12, 3, 1)))[..., 0])
    assert np.all(whole != accuracy_interval(values, seed=1))
    apart = np.array(difference_interval(values, values[:, ::-1]))
    np.testing.assert_array_equal(apart[:, 0], difference_interval(values[:, 0], values[:, 2]))
    np.testing.assert_array_equal(apart, difference_interval(values[::-1], values[::-1, ::-1]))
    np.testing.assert_allclose(apart[0], -np.array(difference_interval(values[:, ::-1], values))[1], atol=0.02)


def test_many_problems_have_the_normal_interval():
    values = np.random.default_rng(1).random(400)
    low, high = accuracy_interval(values)
    np.testing.assert_allclose((high - low) / 2, 1.96 * values.std() / 20, rtol=0.1)
    inner_low, inner_high = accuracy_interval(values, confidence=0.5)
    assert low < inner_low < values.mean() < inner_high < high


def test_copies_of_a_cluster_are_no_news():
    values = np.random.default_rng(3).random((10, 2))
    copies = np.repeat(np.arange(10), 4)
    for interval in (accuracy_interval, lambda v, **more: difference_interval(v, v[:, ::-1], **more)):
        few, many = np.array(interval(values)), np.array(interval(values[copies], clusters=copies))
        np.testing.assert_allclose(many, few, atol=1e-9)
        blind = np.array(interval(values[copies]))
        assert np.all((blind[0] > few[0]) & (blind[1] < few[1]))  # four times as many problems, so it seems
    np.testing.assert_allclose(accuracy_interval(np.ones(12), clusters=np.arange(12) // 4), (0.025 ** (1 / 3), 1))


def test_large_clusters_weigh_more():
    """The mean is over problems: 8 of 10 clusters are all right, but the two failed ones hold two thirds."""
    labels = np.repeat(np.arange(10), [1] * 8 + [8, 8])
    values = (labels < 8).astype(float)
    low, high = accuracy_interval(values, clusters=labels)
    assert low < values.mean() == 1 / 3 < high
    assert high > 0.9  # neither large cluster need be there
    shuffled = np.random.default_rng(0).permutation(len(values))
    np.testing.assert_allclose(accuracy_interval(values[shuffled], clusters=labels[shuffled]), (low, high))


def test_bad_input_has_one_line():
    for call, message in (
        (lambda: accuracy_interval([]), "at least one problem"),
        (lambda: accuracy_interval([0.5, 1.5]), r"in 0 … 1, got 0.5 … 1.5"),
        (lambda: accuracy_interval([0.5, np.nan]), r"in 0 … 1, got nan"),
        (lambda: accuracy_interval([0.5], confidence=95), "between 0 and 1, got 95"),
        (lambda: accuracy_interval([0.5], clusters=["a", "b"]), r"1 problems, labels \(2,\)"),
        (lambda: difference_interval([0.5], [0.5, 0.1]), r"shapes \(1,\) and \(2,\)"),
        (lambda: difference_interval([0.5], [-0.5]), r"in 0 … 1"),
    ):
        with pytest.raises(EstimateError, match=message):
            call()


def test_a_paired_difference_sees_what_problems_share():
    rng = np.random.default_rng(7)
    hardness = 0.06 + 0.9 * rng.random(200)
    loss = rng.choice([0.01, 0.03], 200)
    worse = paired_difference(hardness - loss, hardness, margin=0.05)
    np.testing.assert_allclose((worse.difference, worse.low, worse.high), -loss.mean(), atol=0.01)
    assert worse.noninferior
    assert not paired_difference(hardness - loss - 0.028, hardness, margin=0.05).noninferior
    other = paired_difference(rng.permutation(hardness), hardness, margin=0.05)  # nothing shared: nothing shown
    np.testing.assert_allclose(other.difference, 0, atol=1e-12)
    assert other.low < -0.05
    assert other.noninferior is False
    same = paired_difference(hardness[:40], hardness[:40], margin=0.05)  # 40 can miss 9 % that are unlike them
    np.testing.assert_allclose((same.difference, same.low, same.high), (0, -0.0881, 0.0881), atol=5e-5)
    assert not same.noninferior
    assert paired_difference(np.ones(30), np.ones(30), margin=0.1).noninferior is False  # 30 of 30 show little
    assert paired_difference(np.ones(30), np.ones(30), margin=0.12).noninferior
    assert paired_difference([1, 0], [0, 0]).noninferior is None
    assert paired_difference([1], [0], margin=0.1).noninferior is False  # one problem shows nothing
    with pytest.raises(EstimateError, match=r"shapes \(2,\) and \(3,\)"):
        paired_difference([1, 0], [0, 0, 0])
    with pytest.raises(EstimateError, match="margin"):
        paired_difference([1, 0], [0, 0], margin=0)


@pytest.mark.parametrize("problems", [13_000, 14_000, 100_000])
def test_very_many_problems_have_an_interval(problems):
    low, high = accuracy_interval(np.repeat([0.0, 1.0], [problems // 4, problems - problems // 4]), resamples=200)
    assert 0.7 < low < 0.75 < high < 0.8
    assert accuracy_interval(np.ones(problems), resamples=200)[1] == 1
