"""How many problems and samples a half-width takes, against simulated draws and by hand."""

import numpy as np
import pytest

from kinetics_jax.analysis.sample_size import WORST, attempts_for_these, check_half_width, half_width_table, spread
from kinetics_jax.analysis.samples import Pool, ProblemSamples
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.errors import UserError
from kinetics_jax.stats.intervals import accuracy_interval
from kinetics_jax.stats.precision import Spread, problems_for


def pool(rates, samples, seed=0) -> Pool:
    rng = np.random.default_rng(seed)
    problems = {
        f"p{i:04d}": ProblemSamples(10, [5.0] * samples, [bool(x) for x in rng.random(samples) < rate])
        for i, rate in enumerate(rates)
    }
    return Pool("m", Dense(), None, {}, problems)


def test_the_worst_case_and_these_problems_alone():
    assert problems_for(0.02, WORST, 1) == 2404  # (1.96 / 0.02)^2 / 4 = 2401, and Student's few more
    assert attempts_for_these(0.05, Spread(0.05, 0.2), 100) == 4  # 0.2 / 100 (1.96 / 0.05)^2 = 3.07
    assert attempts_for_these(0.05, WORST, 100) == 1


def test_variances_are_those_of_the_population():
    rates = np.random.default_rng(3).beta(2, 2, 4000)  # variance 0.05, mean p (1 - p) 0.2
    one = spread(pool(rates, 4), 1)
    assert one.between == pytest.approx(0.05, abs=0.005)
    assert one.within == pytest.approx(0.2, abs=0.005)
    two = spread(pool(rates, 4), 2)
    solved = 1 - (1 - rates) ** 2
    assert two.between == pytest.approx(np.var(solved), abs=0.01)
    assert two.within == pytest.approx(np.mean(solved * (1 - solved)), abs=0.01)
    alone = spread(pool(rates, 4), 4)  # two attempts of four samples would share some
    solved = 1 - (1 - rates) ** 4
    assert alone.within == 0
    assert alone.between == pytest.approx(np.mean(solved) * (1 - np.mean(solved)), abs=0.01)


def test_a_few_problems_that_went_alike_promise_nothing():
    parts = spread(pool(np.ones(10), 4), 1)
    assert problems_for(0.02, parts, 1) > 500
    assert parts.within > 0


@pytest.mark.parametrize("right", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("problems", [1, 2, 5, 12])
def test_no_more_is_asked_for_than_at_worst(problems, right):
    """Half of the samples of every problem, or of the problems, right: what is added for few must not pass 1 / 4."""
    rng = np.random.default_rng(right)
    grades = [[bool(x) for x in rng.permutation([i < right for i in range(4)])] for _ in range(problems)]
    mixed = [[i % 2 == 0] * 4 for i in range(problems)]
    for rows in (grades, mixed):
        stored = {f"p{i}": ProblemSamples(10, [5.0] * 4, list(row)) for i, row in enumerate(rows)}
        table = half_width_table([Pool("m", Dense(), None, {}, stored)], 0.05, (1, 2, 4))
        assert (table["problems"] <= problems_for(0.05, WORST, 1)).all()


@pytest.mark.slow
def test_what_is_asked_for_gives_the_half_width():
    parts = spread(pool(np.random.default_rng(4).beta(2, 2, 200), 8), 1)
    for attempts in (1, 8):
        problems = problems_for(0.04, parts, attempts)
        widths = []
        for seed in range(20):
            rng = np.random.default_rng(seed)
            low, high = accuracy_interval(rng.binomial(attempts, rng.beta(2, 2, problems)) / attempts, seed=seed)
            widths.append((high - low) / 2)
        assert np.mean(widths) == pytest.approx(0.04, rel=0.12)


def test_the_table_says_what_further_samples_buy():
    table = half_width_table([pool(np.random.default_rng(5).beta(2, 2, 60), 8)], 0.05, (1, 2))
    for _, of_n in table.groupby("N"):
        assert (np.diff(of_n["problems"]) < 0).all()
        assert (np.diff(of_n["samples_in_all"]) > 0).all()
    assert (table["half_width_now"] > 0.05).all()
    for wrong in (0.0, 0.5, -1.0, float("nan")):
        with pytest.raises(UserError, match="half-width"):
            check_half_width(wrong)
