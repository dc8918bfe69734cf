"""Power laws recovered from points made with them, the published ones among them; contours against their costs."""

import numpy as np
import pandas as pd
import pytest

from kinetics_jax.analysis.allocation import Allocation, best_per_problem
from kinetics_jax.analysis.grid import Grid
from kinetics_jax.analysis.power_laws import FitError, PowerLaw, iso_cost, law_along, power_law, with_intervals
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import generation_cost

PUBLISHED = [(91.68, 0.80, 0), (213.58, 0.74, 0), (22.08, 0.92, 0)]
PUBLISHED_BUDGETS = [(81.77, 0.25, -212), (140.92, 0.17, -212), (161.83, 0.19, -212)]
COSTS = np.geomspace(60, 20_000, 24)


@pytest.mark.parametrize(("scale", "exponent", "offset"), PUBLISHED + PUBLISHED_BUDGETS)
def test_published_laws_are_found_again(scale, exponent, offset):
    law = PowerLaw(scale, exponent, offset)
    fitted = power_law(COSTS, law(COSTS), offset=bool(offset), resamples=50)
    np.testing.assert_allclose([fitted.scale, fitted.exponent], [scale, exponent], rtol=1e-5)
    np.testing.assert_allclose(fitted.offset, offset, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(fitted.exponent_interval, exponent, rtol=1e-4)


def test_intervals_of_a_line_are_the_textbooks():
    """Five points by hand: x - 3 and y sum up to the slope 9.4 / 10; t of three degrees is 3.182."""
    x, y = np.array([1.0, 2, 3, 4, 5]), np.array([2.1, 2.9, 3.8, 4.9, 5.8])
    law = power_law(np.exp(x), np.exp(y))
    slope, level = 0.94, 1.08
    residual = np.sum((y - level - slope * x) ** 2)
    error = 3.182446305 * np.sqrt(residual / 3 / 10)
    np.testing.assert_allclose([law.exponent, np.log(law.scale)], [slope, level])
    np.testing.assert_allclose(law.exponent_interval, (slope - error, slope + error))
    far = 3.182446305 * np.sqrt(residual / 3 * (1 / 5 + 9 / 10))
    np.testing.assert_allclose(np.log(law.scale_interval), (level - far, level + far))
    narrow = power_law(np.exp(x), np.exp(y), confidence=0.5).exponent_interval
    assert law.exponent_interval[0] < narrow[0] < slope < narrow[1] < law.exponent_interval[1]
    with pytest.raises(FitError, match="between 0 and 1, got 95"):
        power_law(np.exp(x), np.exp(y), confidence=95)


@pytest.mark.parametrize("points", [4, 8, 24])
def test_intervals_hold_the_truth_as_often_as_they_say(points):
    rng = np.random.default_rng(points)
    costs = np.geomspace(60, 20_000, points)
    laws = [power_law(costs, 3 * costs**0.7 * np.exp(0.2 * rng.standard_normal(points))) for _ in range(1000)]
    for name, truth in (("scale", 3.0), ("exponent", 0.7)):
        low, high = np.transpose([getattr(law, f"{name}_interval") for law in laws])
        assert 0.93 <= np.mean((low <= truth) & (truth <= high)) <= 0.97


@pytest.mark.parametrize("points", [4, 5, 7])
def test_few_points_leave_room_for_an_offset(points):
    """Redrawn, four points hold the truth in seven of ten cases; least squares' own intervals hold what they say."""
    rng = np.random.default_rng(points)
    costs = np.geomspace(60, 20_000, points)
    held = []
    for _ in range(200):
        y = 3 * costs**0.7 + 100 + 50 * rng.standard_normal(points)
        law = power_law(costs, y, offset=True, resamples=2)
        ends = (law.scale_interval, 3), (law.exponent_interval, 0.7), (law.offset_interval, 100)
        held.append([low <= truth <= high for (low, high), truth in ends])
    assert np.all(np.mean(held, axis=0) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 200))  # three standard errors
    assert law.exponent_interval[0] <= law.exponent <= law.exponent_interval[1]


def test_a_law_with_an_offset_is_the_least_squares_one():
    rng = np.random.default_rng(1)
    y = 80 * COSTS**0.25 - 212 + 4 * rng.standard_normal(len(COSTS))
    law = power_law(COSTS, y, offset=True, resamples=20)
    best = np.sum((y - law(COSTS)) ** 2)
    for change in (0.99, 1.01):
        for other in (
            PowerLaw(law.scale * change, law.exponent, law.offset),
            PowerLaw(law.scale, law.exponent * change, law.offset),
            PowerLaw(law.scale, law.exponent, law.offset * change),
        ):
            assert np.sum((y - other(COSTS)) ** 2) > best
    falling = power_law(COSTS, 5 * COSTS**-0.5 + 2, offset=True, resamples=5)
    np.testing.assert_allclose([falling.scale, falling.exponent, falling.offset], [5, -0.5, 2], rtol=1e-4)


def test_spread_takes_percentiles():
    laws = [PowerLaw(scale, 0.5) for scale in range(101)]
    law = with_intervals(PowerLaw(50, 0.5), laws, confidence=0.9)
    np.testing.assert_allclose(law.scale_interval, (5, 95))
    assert law.exponent_interval == (0.5, 0.5)
    assert str(law) == "50 x^0.5"
    assert str(PowerLaw(81.77, 0.25, -212)) == "81.77 x^0.25 -212"
    assert np.isnan(power_law([1, 2], [1, 2]).scale_interval).all()


@pytest.mark.parametrize(
    ("x", "y", "offset", "says"),
    [
        ([1, 2, 3], [1, 2], False, "a y for every x"),
        ([1, 1, 1], [1, 2, 3], False, "as many different x, got 1"),
        ([1, 2], [1, 2], True, "3 parameters"),
        ([0, 2, 3], [1, 2, 3], False, "positive"),
        ([1, 2, 3], [-1, 2, 3], False, "positive"),
    ],
)
def test_what_is_no_power_law_is_refused(x, y, offset, says):
    with pytest.raises(FitError, match=says):
        power_law(x, y, offset=offset)
    with pytest.raises(FitError, match="redrawn"):
        with_intervals(PowerLaw(1, 1), [])


@pytest.mark.parametrize("attention", [Dense(), BlockTopK(budget=1024)], ids=str)
def test_what_a_cost_buys(attention):
    config, trials = ModelConfig.named("8B"), np.array([1, 4, 32])
    totals = np.array([[100.0], [3000.0]])
    costs = {"attention": attention, "hardware": "h100"}
    tokens = iso_cost(config, totals, prompt_tokens=200, trials=trials, **costs)
    assert tokens.shape == (2, 3)

    def total(n):
        return generation_cost(config, prompt_tokens=200, output_tokens=n, trials=trials, **costs).total

    assert (total(tokens) <= totals).all()
    assert (total(tokens + 1) > totals).all()
    assert (np.diff(tokens, axis=1) < 0).all()
    assert iso_cost(config, 0.0, prompt_tokens=200, **costs) == 0
    assert iso_cost(config, 1e30, prompt_tokens=200, **costs) == np.inf


def lengthening_grid(problems=12, seed=0):
    """Accuracy grows with every configuration, each of which costs c and generates 90 c^0.8 tokens, a little off."""
    rng = np.random.default_rng(seed)
    cost = np.repeat(COSTS[:, None], problems, axis=1)
    tokens = 90 * cost**0.8 * np.exp(0.1 * rng.standard_normal(problems))
    rows = pd.DataFrame({"model": "m", "parameters": 1.0, "attention": "dense", "N": np.arange(1, 25), "cap": 9})
    accuracy = np.repeat(np.linspace(0.1, 0.9, len(COSTS))[:, None], problems, axis=1)
    return Grid(rows, tuple(map(str, range(problems))), accuracy, cost / 2, cost / 2, tokens)


def test_intervals_of_few_problems_are_wider():
    laws = [PowerLaw(1.0, exponent) for exponent in np.linspace(0, 1, 1001)]
    law = PowerLaw(1.0, 0.5)
    widths = [np.ptp(with_intervals(law, laws, units=units).exponent_interval) for units in (5, 30, None)]
    assert widths[0] > widths[1] > widths[2] == pytest.approx(0.95)


def test_a_law_along_an_allocation():
    cells = lengthening_grid()
    chosen = best_per_problem(cells, np.append(COSTS, 1.0))  # at 1 nothing is affordable, which does not count
    law = law_along(cells, chosen, "tokens")
    np.testing.assert_allclose(law.exponent, 0.8)
    np.testing.assert_allclose(law.exponent_interval, 0.8)
    assert law.scale_interval[0] < law.scale < law.scale_interval[1]  # problems differ in their scale alone
    np.testing.assert_allclose(law(COSTS), cells.tokens.mean(axis=1))
    some = np.append(COSTS, 1.0) > 500
    budgets = 82 * COSTS**0.25 - 212
    fitted = law_along(cells, chosen, budgets, where=some, offset=True, resamples=3)
    np.testing.assert_allclose([fitted.scale, fitted.exponent, fitted.offset], [82, 0.25, -212], rtol=1e-3)
    by_column = law_along(cells, chosen, "N", where=some)
    assert by_column.exponent == law_along(cells, chosen, np.arange(1.0, 25), where=some).exponent
    alone = Allocation(chosen.limits, chosen.choice[:, :1], chosen.accuracy[:, :1], chosen.cost[:, :1])
    one = Grid(cells.configurations, ("0",), *(a[:, :1] for a in (cells.accuracy, cells.compute, cells.memory)),
               cells.tokens[:, :1])  # fmt: skip
    assert np.isnan(law_along(one, alone, "tokens").exponent_interval).all()
    with pytest.raises(FitError, match="as many different x, got 0"):
        law_along(cells, chosen, np.full(len(COSTS), np.nan))
