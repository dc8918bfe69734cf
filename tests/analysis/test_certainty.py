"""What the data cannot tell apart: sets that hold the best, orders that are sure, and draws of what may be so."""

import numpy as np
import pytest

from kinetics_jax.analysis.certainty import accuracy_draws, compare, may_be_quickest


def binary(rng, rates, problems, samples=1):
    return np.stack([rng.binomial(samples, rate, problems) / samples for rate in rates])


def test_few_problems_rule_nothing_out():
    one = compare(np.array([[1.0], [0.0]]))
    assert one.may_be_best.all()
    assert not one.surely_less(1, 0)
    alike = compare(np.ones((4, 10)))
    assert alike.may_be_best.all()
    # the same small difference on each of three problems has no spread, and is no proof
    assert compare(np.array([[0.5] * 3, [0.625] * 3])).may_be_best.all()


def test_many_problems_drop_what_is_clearly_worse():
    rng = np.random.default_rng(0)
    solved = binary(rng, (0.9, 0.88, 0.4), 200)
    compared = compare(solved)
    assert list(compared.may_be_best) == [True, True, False]
    assert compared.surely_less(2, 0)
    assert not compared.surely_less(0, 2)
    assert not compared.surely_less(1, 0)


def test_what_no_problem_shows_is_not_ruled_out():
    """One row loses a problem in ten outright and is a little better elsewhere: ten problems often do not show it."""
    dropped = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        steady = rng.binomial(64, 0.85, 10) / 64
        brittle = rng.binomial(64, 0.9 * (rng.random(10) > 0.1)) / 64
        dropped += not compare(np.stack([steady, brittle]), seed=seed).may_be_best[0]  # 0.85 against 0.81
    assert dropped <= 4


@pytest.mark.slow
@pytest.mark.parametrize("problems", [5, 10, 30])
def test_the_best_is_kept_and_no_order_is_made_up(problems: int):
    """Nine rows alike: whichever counts as the best is kept, and the first two are not set apart, 95 times in 100."""
    repetitions, dropped, made_up = 120, 0, 0
    for seed in range(repetitions):
        rng = np.random.default_rng([problems, seed])
        hardness = rng.random(problems)
        solved = np.stack([rng.binomial(4, hardness) / 4 for _ in range(9)])
        compared = compare(solved, seed=seed)
        best = int(np.argmax(solved.mean(axis=1)))
        dropped += not compared.may_be_best[0]
        runner_up = int(np.argsort(-solved.mean(axis=1), kind="stable")[1])
        made_up += compared.surely_less(runner_up, best)
    allowed = 0.05 * repetitions + 3 * np.sqrt(0.05 * 0.95 * repetitions)
    assert dropped <= allowed
    assert made_up <= allowed


def test_the_quickest_that_may_reach_a_target():
    rng = np.random.default_rng(1)
    solved = binary(rng, (0.3, 0.69, 0.9, 0.95), 300)
    seconds = np.array([1.0, 2.0, 3.0, 4.0])
    assert list(may_be_quickest(solved, seconds, 0.7)) == [False, True, True, False]
    assert may_be_quickest(solved[:, :1], seconds, 0.7).all()
    # ten problems all solved do not prove 0.95
    assert may_be_quickest(np.ones((2, 10)), seconds[:2], 0.95).all()


def test_draws_vary_as_the_mean_does_and_break_ties_that_no_problem_breaks():
    rng = np.random.default_rng(2)
    solved = binary(rng, (0.6,), 100)
    draws = accuracy_draws(solved, np.array([0]), np.array([1]))
    assert draws.mean() == pytest.approx(solved.mean(), abs=0.01)
    assert draws.std() == pytest.approx(solved.std(ddof=1) / 10, rel=0.1)
    alike = accuracy_draws(np.ones((4, 10)), np.arange(4), np.ones(4, int))
    shares = np.bincount(np.argmax(alike, axis=1), minlength=4) / len(alike)
    np.testing.assert_allclose(shares, 0.25, atol=0.04)
    # of one model and attention, more samples are never worse
    more = accuracy_draws(np.ones((2, 10)), np.zeros(2, int), np.array([1, 4]))
    assert (more[:, 1] >= more[:, 0]).all()
