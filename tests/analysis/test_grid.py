"""The grid against sums over single samples: costs of best_of_n_cost, accuracies of pass_at_k, cell by cell."""

import dataclasses
import itertools
import warnings

import numpy as np
import pytest

from kinetics_jax.analysis.defaults import default_caps, default_trials, max_sample_tokens
from kinetics_jax.analysis.frontier import cost_frontier
from kinetics_jax.analysis.grid import grid, split_in_halves
from kinetics_jax.analysis.samples import RunData, SamplesError, pooled
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.litesys_block_topk import LiteSysBlockTopK
from kinetics_jax.attention.policies.token_topk import TokenTopK
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import best_of_n_cost
from kinetics_jax.stats.estimators import EstimateError, pass_at_k


def random_run(
    seed, *, model="Qwen/Qwen3-0.6B", attention=Dense(), counts=(6, 6, 9), caps=(), config=None, ungraded=0.1
):
    """Runs over problems p0, p1, …, with so many samples each; most samples are graded."""
    rng = np.random.default_rng(seed)
    problem = [f"p{i}" for i, count in enumerate(counts) for _ in range(count)]
    lengths = rng.integers(1, 3000, len(problem))
    correct = [None if rng.random() < ungraded else bool(rng.random() < 0.5) for _ in problem]
    within = [
        [bool(c) and (n <= cap or rng.random() < 0.5) for cap in caps] for n, c in zip(lengths, correct, strict=True)
    ]
    return RunData(
        model=model,
        attention=attention,
        config=ModelConfig.named(model),
        problem=problem,
        sample=[j for count in counts for j in range(count)],
        prompt_tokens=[100 + 70 * int(name[1:]) for name in problem],
        output_tokens=lengths,
        correct=correct,
        caps=caps,
        correct_within=[[None if c is None else w for w in row] for row, c in zip(within, correct, strict=True)]
        if caps
        else (),
        settings={"max_tokens": 4096},
    )


@pytest.mark.parametrize(
    ("convention", "shared"), [("traffic", False), ("traffic", True), ("paper", False), ("upstream", False)]
)
@pytest.mark.parametrize(
    "attention", [Dense(), BlockTopK(budget=256), LiteSysBlockTopK(pages=8), TokenTopK(budget=300)]
)
def test_costs_are_those_of_best_of_n(convention, shared, attention):
    pools = pooled(
        [
            random_run(0, counts=(7, 7, 9), attention=attention),
            random_run(1, counts=(7, 7, 9), model="Qwen/Qwen3-8B", attention=attention),
        ]
    )
    caps, trials = [500, 1777, 9999], [1, 3, 4]
    costs = {"convention": convention, "hardware": "h200", "shared_prompt": shared}
    cells = grid(pools, trials=trials, caps=caps, **costs)
    assert cells.problems == ("p0", "p1", "p2")
    assert cells.accuracy.shape == cells.compute.shape == cells.tokens.shape == (18, 3)
    keys = list(itertools.product([pool.model for pool in pools], [500, 1777, 4096], trials))
    assert [tuple(key) for key in cells.configurations[["model", "cap", "N"]].itertuples(index=False)] == keys
    for row, (model, cap, n) in enumerate(keys):
        pool = next(pool for pool in pools if pool.model == model)
        for column, problem in enumerate(pool.problems.values()):
            lengths = np.minimum(problem.lengths, cap)
            cost = best_of_n_cost(
                pool.config, prompt_tokens=problem.prompt_tokens, output_lengths=lengths, trials=n, attention=attention,
                batch=int(cells.configurations["batch"][row]) if convention == "traffic" else None, **costs,
            )  # fmt: skip
            np.testing.assert_allclose(cells.compute[row, column], cost.compute, rtol=1e-12)
            np.testing.assert_allclose(cells.memory[row, column], cost.memory, rtol=1e-12)
            np.testing.assert_allclose(cells.weights[row, column], cost.weight_reads, rtol=1e-12)
            np.testing.assert_allclose(cells.tokens[row, column], lengths.mean(), rtol=1e-12)
            graded = [(g, n) for g, n in zip(problem.grades, problem.lengths, strict=True) if g is not None]
            right = sum(g and length <= cap for g, length in graded)
            np.testing.assert_allclose(cells.accuracy[row, column], pass_at_k(len(graded), right, n))
    np.testing.assert_array_equal(cells.cost, cells.compute + cells.memory)


def test_grades_of_cut_texts_are_used_at_their_caps():
    run = random_run(3, counts=(20, 20), caps=(800, 1600))
    pool = pooled([run])[0]
    cells = grid([pool], trials=[1], caps=[800, 1000, 1600])
    for row, cap in enumerate((800, 1000, 1600)):
        for column, problem in enumerate(pool.problems.values()):
            grades = problem.grades_under(cap)[:, 0]
            np.testing.assert_allclose(cells.accuracy[row, column], np.nanmean(grades))
    finished = grid(pooled([dataclasses.replace(run, caps=(), correct_within=())]), trials=[1], caps=[800])
    assert np.all(cells.accuracy[0] >= finished.accuracy[0])
    assert np.any(cells.accuracy[0] > finished.accuracy[0])


def test_defaults():
    pool = pooled([random_run(0, ungraded=0)])[0]
    assert default_trials(pool) == [1, 2, 4]
    assert max_sample_tokens(pool) == 4096
    cells = grid([pool])
    assert list(cells.configurations["N"]) == [1, 2, 4]
    assert set(cells.configurations["cap"]) == {4096}
    some = cells.rows(cells.configurations["N"].to_numpy() > 1)
    assert len(some) == 2
    np.testing.assert_array_equal(some.cost, cells.cost[1:])
    np.testing.assert_array_equal(cells.rows([2, 0]).accuracy, cells.accuracy[[2, 0]])


def test_impossible_grids_are_refused():
    pools = pooled([random_run(0)])
    with pytest.raises(SamplesError, match="no runs"):
        grid([])
    with pytest.raises(SamplesError, match=r"caps must be whole numbers of tokens, at least 1, got \[0\]"):
        grid(pools, caps=[0])
    with pytest.raises(EstimateError, match=r"--trials 20: .* has 6 graded samples"):
        grid(pools, trials=[20])
    with pytest.raises(SamplesError, match="architecture is not known"):
        grid(pooled([dataclasses.replace(random_run(0), config=None)]))
    with pytest.raises(SamplesError, match="hold different problems"):
        grid([pools[0], pooled([random_run(0, counts=(5, 5))])[0]])


def test_halves_share_no_sample():
    pools = pooled([random_run(5, caps=(700,)), random_run(6, attention=BlockTopK(budget=256), caps=(700,))])
    one, two = split_in_halves(pools, seed=1)
    for pool, first, second in zip(pools, one, two, strict=True):
        for name, problem in pool.problems.items():
            a, b = first.problems[name], second.problems[name]
            whole = sorted(
                (n, g, w)
                for n, g, w in zip(problem.lengths, problem.grades, problem.correct_within, strict=True)
                if g is not None
            )
            parts = [
                (n, g, w)
                for half in (a, b)
                for n, g, w in zip(half.lengths, half.grades, half.correct_within, strict=True)
            ]
            assert sorted(parts) == whole
            assert len(a.lengths) - len(b.lengths) in (0, 1)
    again = split_in_halves(pools, seed=1)[0][0].problems["p0"]
    assert again.lengths == one[0].problems["p0"].lengths
    assert split_in_halves(pools, seed=2)[0][0].problems["p0"].lengths != again.lengths
    with pytest.raises(EstimateError, match="two halves need two"):
        split_in_halves(pooled([random_run(0, counts=(1, 4), ungraded=0)]), seed=0)


def test_a_frontier_under_caps():
    run = random_run(0, ungraded=0)
    table = cost_frontier([run], caps=[500, 5000], trials=[1, 2])
    assert [tuple(key) for key in table[["cap", "N"]].itertuples(index=False)] == [
        (500, 1),
        (500, 2),
        (4096, 1),
        (4096, 2),
    ]
    whole = cost_frontier([run], trials=[1, 2])
    assert "cap" not in whole
    np.testing.assert_allclose(table["cost"][2:], whole["cost"])
    np.testing.assert_allclose(table["low"][2:], whole["low"])
    assert (table["cost"][:2].to_numpy() < whole["cost"].to_numpy()).all()


def test_halves_have_the_same_rows_though_one_lacks_the_longest_sample():
    """A plain table says no max_tokens: caps must not end at each half's own longest sample."""
    pools = pooled([dataclasses.replace(random_run(8, ungraded=0), settings={})])
    most = max_sample_tokens(pools[0])
    for seed in range(5):
        one, two = (grid(half, trials=[1, 3], caps=[700, most, 2 * most]) for half in split_in_halves(pools, seed))
        keys = ["model", "attention", "N", "cap", "batch_full"]  # the batch is of each half's lengths
        assert one.configurations[keys].equals(two.configurations[keys])
        assert list(one.configurations["cap"]) == [700, 700, most, most]


def test_halves_of_samples_without_counts_or_architecture():
    run = dataclasses.replace(random_run(8, ungraded=0), config=None, output_tokens=[None] * 21, settings={})
    one, two = split_in_halves(pooled([run]), 0)
    assert [problem.graded for problem in one[0].problems.values()] == [3, 3, 5]
    assert [problem.graded for problem in two[0].problems.values()] == [3, 3, 4]


def test_what_the_laws_count():
    cells = grid(pooled([random_run(0), random_run(1, attention=BlockTopK(budget=256))]))
    np.testing.assert_array_equal(cells.spent("eFLOPs"), cells.compute + cells.memory)
    np.testing.assert_array_equal(cells.spent("FLOPs"), cells.compute)
    assert (cells.spent("max") >= np.maximum(cells.compute, cells.memory)).all()
    assert (cells.spent("max") < cells.cost).all()
    with pytest.raises(SamplesError, match="law 'seconds' is not known"):
        cells.spent("seconds")


def test_default_caps():
    graded, more = random_run(5, caps=(600, 900)), random_run(6, model="Qwen/Qwen3-8B", caps=(600,))
    assert default_caps(pooled([graded, more])) == [600, 4096]
    plain = pooled([graded, random_run(6, model="Qwen/Qwen3-8B")])
    caps = default_caps(plain)
    assert len(caps) == 16
    assert caps[-1] == max(problem.longest for pool in plain for problem in pool.problems.values())


def test_two_rules_of_grading_are_warned_of():
    runs = [random_run(5, caps=(600,)), random_run(6, model="Qwen/Qwen3-8B")]
    with pytest.warns(UserWarning, match="8B dense: cut texts were not graded at 600 tokens, as those of others"):
        grid(pooled(runs), trials=[1], caps=[600])
    pools = pooled(runs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grid(pools, trials=[1])
        grid(pools, trials=[1], caps=[700])
        grid(pools, trials=[1], caps=[5000])  # nothing is cut
