"""Allocation against every choice enumerated; chosen on one half, scored on the other; replay against sums."""

import itertools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.analysis.adaptive import StopRule, replay, replay_table
from kinetics_jax.analysis.allocation import (
    allocation_table,
    apply_choice,
    best_for_all,
    best_per_problem,
    cost_limits,
    envelope,
    honest_allocation,
)
from kinetics_jax.analysis.frontier import pareto
from kinetics_jax.analysis.grid import Grid, grid
from kinetics_jax.analysis.samples import RunData, SamplesError, pooled
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.costs.memory import fits
from kinetics_jax.stats.estimators import EstimateError, pass_at_k


def small_grid(accuracy, cost) -> Grid:
    accuracy, cost = np.array(accuracy, float), np.array(cost, float)
    rows = pd.DataFrame(
        [{"model": f"m{i}", "parameters": 1.0, "attention": "dense", "N": i + 1, "cap": 9} for i in range(len(cost))]
    )
    return Grid(rows, tuple(f"p{i}" for i in range(cost.shape[1])), accuracy, cost / 2, cost / 2, cost)


@st.composite
def grids(draw):
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    cells = st.lists(st.integers(0, 5), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1])
    accuracy, cost = (np.array(draw(cells)).reshape(shape) for _ in range(2))
    return small_grid(accuracy / 5, cost + 1)


@settings(deadline=None)
@given(grids(), st.lists(st.integers(0, 8), min_size=1, max_size=4))
def test_the_best_per_problem_is_the_best_of_all(cells, limits):
    chosen = best_per_problem(cells, limits)
    for i, limit in enumerate(limits):
        for p in range(len(cells.problems)):
            options = [
                (-cells.accuracy[c, p], cells.cost[c, p]) for c in range(len(cells)) if cells.cost[c, p] <= limit
            ]
            if not options:
                assert chosen.choice[i, p] == -1
                assert chosen.accuracy[i, p] == chosen.cost[i, p] == 0
            else:
                assert (-chosen.accuracy[i, p], chosen.cost[i, p]) == min(options)
                row = chosen.choice[i, p]
                assert (cells.accuracy[row, p], cells.cost[row, p]) == (chosen.accuracy[i, p], chosen.cost[i, p])
    one = best_for_all(cells, limits)
    for i, limit in enumerate(limits):
        means = zip(-cells.accuracy.mean(axis=1).round(12), cells.cost.mean(axis=1), strict=True)
        options = [pair for pair in means if pair[1] <= limit]
        assert (one.choice[i] == one.choice[i, 0]).all()
        if options:
            np.testing.assert_allclose((-one.accuracy[i].mean(), one.cost[i].mean()), min(options), atol=1e-9)
        else:
            assert (one.choice[i] == -1).all()


@settings(deadline=None)
@given(grids())
def test_more_money_never_solves_less(cells):
    limits = np.arange(0, 9)
    assert (np.diff(best_per_problem(cells, limits).accuracy, axis=0) >= 0).all()
    everything = best_per_problem(cells, [1e9]).accuracy[0]
    np.testing.assert_array_equal(everything, cells.accuracy.max(axis=0))
    assert best_for_all(cells, [1e9]).accuracy.mean() <= everything.mean() + 1e-12


def test_a_table_says_what_most_problems_get():
    cells = small_grid([[0.5, 0.5, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]], [[1, 1, 1], [2, 2, 2], [5, 5, 5]])
    table = allocation_table(cells, best_per_problem(cells, [0.5, 1, 2, 5]))
    assert pd.isna(table["model"][0])
    assert list(table["model"][1:]) == ["m0", "m1", "m1"]
    # what cannot be afforded has no number, not even an interval
    assert table.loc[0, ["accuracy", "low", "high", "cost", "share"]].isna().all()
    assert list(table["afforded"]) == [0, 1, 1, 1]
    np.testing.assert_allclose(table["accuracy"][1:], [1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(table["cost"][1:], [1, 5 / 3, 3])
    np.testing.assert_allclose(table["share"][1:], [1, 2 / 3, 2 / 3])
    assert (table["low"] <= table["accuracy"])[1:].all()
    with pytest.raises(SamplesError, match="cost limits"):
        best_per_problem(cells, [-1])
    limits = cost_limits(cells, 4)
    assert best_per_problem(cells, limits).choice[-1].tolist() == [1, 1, 2]
    assert (best_per_problem(cells, limits).choice[0] >= 0).all()


def coin_run(seed, chance, *, model="Qwen/Qwen3-0.6B", attention=Dense(), problems=20, samples=16):
    """Every sample right with the same chance, whatever the problem: nothing is there to be chosen."""
    rng = np.random.default_rng(seed)
    problem = [f"p{i:02}" for i in range(problems) for _ in range(samples)]
    return RunData(
        model=model,
        attention=attention,
        config=ModelConfig.named(model),
        problem=problem,
        sample=list(range(samples)) * problems,
        prompt_tokens=[100] * len(problem),
        output_tokens=rng.integers(900, 1100, len(problem)),
        correct=(rng.random(len(problem)) < chance).tolist(),
    )


def test_choosing_per_problem_is_optimistic_and_the_other_half_says_so():
    """Four equal configurations: whichever is chosen, a new sample is right half the time."""
    policies = [Dense(), BlockTopK(budget=256), BlockTopK(budget=512), BlockTopK(budget=768)]
    pools = pooled([coin_run(i, 0.5, attention=policy) for i, policy in enumerate(policies)])
    table = honest_allocation(pools, [1e9], trials=[1], splits=10).set_index("choice")
    assert table.loc["per_problem", "seen"] > 0.6
    assert abs(table.loc["per_problem", "accuracy"] - 0.5) < 0.05
    assert table.loc["per_problem", "optimism"] > 0.1
    assert abs(table.loc["for_all", "optimism"]) < table.loc["per_problem", "optimism"] / 2
    low, high = table.loc["per_problem", ["low", "high"]]
    assert low < table.loc["per_problem", "accuracy"] < high
    defaults = honest_allocation(pools, [0.0, 1e9], splits=1)
    assert list(defaults["limit"]) == [0.0, 1e9] * 2
    nothing = defaults[defaults["limit"] == 0]
    assert nothing[["accuracy", "low", "high", "cost", "seen", "optimism"]].isna().all(axis=None)
    assert list(defaults["afforded"]) == [0, 1] * 2


def test_scores_elsewhere_are_those_of_the_same_rows():
    one, two = small_grid([[0.0], [1.0]], [[1], [2]]), small_grid([[0.3], [0.4]], [[3], [4]])
    chosen = best_per_problem(one, [2])
    there = apply_choice(two, chosen.limits, chosen.choice)
    assert there.accuracy.item() == 0.4
    assert there.cost.item() == 4


def test_an_envelope_keeps_what_pays_with_its_labels():
    table = pd.DataFrame(
        {"cost": [3, 1, 2, 2, 4, 1], "accuracy": [0.5, 0.1, 0.4, 0.2, 0.5, 0.1], "model": list("abcdef")}
    )
    kept = envelope(table)
    assert list(kept["model"]) == ["b", "c", "a"]  # the cheapest wins ties, the first of equal rows
    assert pareto(kept["cost"], kept["accuracy"]).all()
    bumpy = pd.DataFrame({"cost": range(5), "accuracy": [0.1, 0.6, 0.61, 0.62, 0.9], "model": list("abcde")})
    smooth = envelope(bumpy, smooth=3)["accuracy"].to_numpy()
    np.testing.assert_allclose(smooth, [0.35, 0.6, 0.61, 0.62, 0.76])
    with pytest.raises(SamplesError, match="odd number"):
        envelope(bumpy, smooth=2)


@pytest.mark.parametrize("shared", [False, True])
def test_replay_of_a_fixed_number_is_the_grid(shared):
    pools = pooled([coin_run(1, 0.3, samples=8)])
    cells = grid(pools, trials=[4], shared_prompt=shared)
    got = replay(pools[0], StopRule(most=4, wave=4, until_solved=False), shared_prompt=shared)
    assert got.samples == 4
    np.testing.assert_allclose(got.accuracy, cells.accuracy.mean(), atol=0.01)
    np.testing.assert_allclose(got.cost, cells.cost.mean(), rtol=2e-3)


@pytest.mark.parametrize("wave", [1, 2, 3, 8])
def test_replay_until_solved_by_its_closed_form(wave):
    """P(a wave begins) is the miss rate of the samples before it; equal lengths make cost a matter of counting."""
    run = coin_run(2, 0.25, samples=8)
    pools = pooled([RunData(**{**vars(run), "output_tokens": [1000] * 160})])
    got = replay(pools[0], StopRule(most=8, wave=wave), shared_prompt=False)
    right = np.array([problem.right for problem in pools[0].problems.values()])
    starts = range(0, 8, wave)
    begins = [np.ones(20) if start == 0 else 1 - pass_at_k(8, right, start) for start in starts]
    expected = sum(chance * min(wave, 8 - start) for chance, start in zip(begins, starts, strict=True))
    np.testing.assert_allclose(got.samples, expected.mean(), rtol=0.02)
    batch = fits(pools[0].config, "h100", tokens=100 + 500).sequences  # 100 + the mean of 1 … 999
    cost = generation_cost(pools[0].config, prompt_tokens=100, output_tokens=1000, trials=[1, 2], batch=batch)
    one, prefill = np.diff(cost.total).item(), (2 * cost.total[0] - cost.total[1]).item()
    np.testing.assert_allclose(got.cost, prefill + one * got.samples, rtol=1e-9)
    np.testing.assert_allclose(got.accuracy, pass_at_k(8, right, 8).mean())  # an allowance of all samples: coverage
    rounding = 1 + 1e-12
    assert got.low / rounding <= got.accuracy <= got.high * rounding
    assert got.cost_low / rounding <= got.cost <= got.cost_high * rounding


def test_a_probe_gives_up_early():
    pools = pooled([coin_run(3, 0.15, samples=16)])
    full = replay(pools[0], StopRule(most=16, wave=2))
    probing = replay(pools[0], StopRule(most=16, wave=2, probe=4))
    right = np.array([problem.right for problem in pools[0].problems.values()])
    np.testing.assert_allclose(probing.accuracy, pass_at_k(16, right, 4).mean(), atol=0.01)
    assert probing.samples < full.samples
    for rule, says in (({"most": 0}, "at least 1"), ({"most": 4, "probe": 5}, r"probe must be in 1 … 4")):
        with pytest.raises(SamplesError, match=says):
            StopRule(**rule)
    with pytest.raises(EstimateError, match="the rule may draw 17; lower most"):
        replay(pools[0], StopRule(most=17))


def test_every_wave_pays_for_its_own_reads_of_the_prompt():
    """Shared in one wave of four, read four times in waves of one."""
    lengths = list(itertools.chain.from_iterable([[200, 400, 600, 800]] * 3))
    run = coin_run(4, 0.0, problems=3, samples=4)
    pool = pooled([RunData(**{**vars(run), "output_tokens": lengths, "prompt_tokens": [5000] * 12})])[0]
    rule = {"most": 4, "until_solved": False}
    together = replay(pool, StopRule(wave=4, **rule))
    apart = replay(pool, StopRule(wave=1, **rule))
    cost = generation_cost(pool.config, prompt_tokens=5000, output_tokens=[200, 400, 600, 800], shared_prompt=True)
    reads = sum(value for name, value in cost.shared.items() if name.endswith("_reads"))
    np.testing.assert_allclose(apart.cost - together.cost, reads.sum() - reads.max(), rtol=1e-9)


@settings(deadline=None)
@given(grids())
def test_an_envelope_is_pareto_and_beats_what_it_leaves_out(cells):
    table = cells.configurations.assign(cost=cells.cost.mean(axis=1), accuracy=cells.accuracy.mean(axis=1).round(12))
    kept = envelope(table)
    assert (np.diff(kept["cost"]) > 0).all()
    assert (np.diff(kept["accuracy"]) > 0).all()
    for row in table.itertuples():
        assert ((kept["cost"] <= row.cost) & (kept["accuracy"] >= row.accuracy)).any()
    for row in kept.itertuples():
        assert ((table["model"] == row.model) & (table["cost"] == row.cost) & (table["accuracy"] == row.accuracy)).any()


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10**6), st.floats(0.05, 0.95))
def test_what_was_promised_is_no_less_than_what_comes(seed, chance):
    """On average over halvings, used both ways, the best on one half cannot be beaten by it on the other."""
    policies = [Dense(), BlockTopK(budget=256), BlockTopK(budget=512)]
    runs = [coin_run(seed + i, chance, attention=policy, problems=12, samples=8) for i, policy in enumerate(policies)]
    table = honest_allocation(pooled(runs), [1e9], trials=[1, 2], splits=3, seed=seed)
    assert (table["optimism"] >= -1e-12).all()


def test_a_law_decides_what_is_affordable():
    """Arithmetic alone takes the one that reads much; with reads counted it does not fit."""
    rows = pd.DataFrame({"model": ["a", "b"], "parameters": 1.0, "attention": "dense", "N": 1, "cap": 9})
    accuracy, compute, memory = (np.array([[x], [y]], float) for x, y in ((0.4, 0.8), (3, 2), (1, 100)))
    cells = Grid(rows, ("p",), accuracy, compute, memory, compute)
    for law, limit, expected in (("FLOPs", 5, 1), ("eFLOPs", 5, 0), ("max", 99, 0), ("max", 100, 1), ("FLOPs", 1, -1)):
        for rule in (best_per_problem, best_for_all):
            assert rule(cells, [limit], law=law).choice.item() == expected
    assert best_per_problem(cells, [5], law="FLOPs").cost.item() == 102  # paid in eFLOPs
    np.testing.assert_allclose(cost_limits(cells, 2, law="FLOPs"), [2, 3])
    np.testing.assert_allclose(cost_limits(cells, 2), [4, 102])


def test_halvings_are_counted_and_needed():
    pools, seen = pooled([coin_run(0, 0.5, problems=3, samples=4)]), []
    honest_allocation(pools, [1e9], splits=2, on_progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 2), (2, 2)]
    with pytest.raises(SamplesError, match="at least one halving"):
        honest_allocation(pools, [1e9], splits=0)


def test_a_pool_of_few_samples_limits_no_other_in_an_honest_choice():
    """A model with 4 samples is halved to N <= 2; another with 16 is chosen up to N = 8, and solves more so."""
    few, many = coin_run(0, 0.0, model="1.7B", samples=4), coin_run(1, 0.3)
    table = honest_allocation(pooled([few, many]), [1e9], splits=2).set_index("choice")
    assert table.loc["for_all", "accuracy"] == pytest.approx(1 - 0.7**8, abs=0.05)


def test_honest_under_caps_of_a_table_without_max_tokens():
    runs = [coin_run(i, 0.5, model=model, problems=6, samples=5) for i, model in enumerate(("0.6B", "1.7B"))]
    runs = [RunData(**{**vars(run), "settings": {}}) for run in runs]
    table = honest_allocation(pooled(runs), [1e9], trials=[1], caps=[950, 1000, 1050, 2000], splits=4)
    assert (table["accuracy"] > 0.2).all()


def test_adaptive_beside_fixed():
    pools = pooled([coin_run(1, 0.4, samples=8), coin_run(2, 0.6, samples=8, attention=BlockTopK(budget=256))])
    table = replay_table(pools, wave=2)
    assert list(table["N"]) == [1, 2, 4, 8] * 2
    cells = grid(pools, shared_prompt=True)
    np.testing.assert_allclose(table["fixed_accuracy"], cells.accuracy.mean(axis=1))
    np.testing.assert_allclose(table["fixed_cost"], cells.cost.mean(axis=1))
    np.testing.assert_allclose(table["accuracy"], table["fixed_accuracy"], atol=0.03)  # a verifier loses nothing
    np.testing.assert_allclose(table["saved"][[0, 4]], 0, atol=0.02)  # one sample is one sample
    assert (table["saved"][table["N"] == 8] > 0.3).all()
    assert (table["samples"] <= table["N"]).all()
    probing = replay_table(pools, trials=[2, 8], wave=2, probe=4)
    assert (probing["samples"][probing["N"] == 8] <= table["samples"][table["N"] == 8].to_numpy()).all()
    with pytest.raises(SamplesError, match="probe must be in"):
        replay_table(pools, trials=[4], probe=0)
