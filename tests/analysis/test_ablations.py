"""The ablations against counts done by hand and against the frontier, which asks the same of the uncapped samples."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.analysis.ablations import AblationError, attention_budget, budget_ablation, length_ablation
from kinetics_jax.analysis.frontier import cost_frontier
from kinetics_jax.analysis.samples import RunData, SamplesError
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.config import ModelConfig
from kinetics_jax.stats.intervals import accuracy_interval, difference_interval

SMALL = ModelConfig.named("0.6B")
HALF = BlockTopK(budget=64)
NAMES = ["model", "parameters", "attention"]
COUNTS = ["problems", "samples", "undecided"]


def make_run(grades, lengths, *, model="small", attention=Dense(), first=0, max_tokens=100, size=SMALL):
    """`grades`, `lengths [problems][samples]`."""
    return RunData(
        model=model,
        attention=attention,
        config=size,
        problem=[f"p{i}" for i, row in enumerate(grades) for _ in row],
        sample=[first + j for row in grades for j, _ in enumerate(row)],
        prompt_tokens=[10 for row in grades for _ in row],
        output_tokens=[n for row in lengths for n in row],
        correct=[grade for row in grades for grade in row],
        settings={"max_tokens": max_tokens},
    )


def test_caps_by_hand():
    """A right answer counts from its own length on; a wrong one never, nor an undecided one."""
    grades = [[True, True, False], [None, True, False]]
    lengths = [[10, 50, 20], [90, 100, 100]]
    table = length_ablation([make_run(grades, lengths)], caps=[9, 10, 50, 99, 100])
    assert list(table.columns) == [*NAMES, "cap", *COUNTS, "accuracy", "low", "high", "mean_tokens"]
    assert list(table["cap"]) == [9, 10, 50, 99, 100]
    np.testing.assert_allclose(table["accuracy"], [0, 1 / 6, 1 / 3, 1 / 3, 1 / 3 + 1 / 6])
    charged = [9, (10 + 10 + 10 + 30) / 6, (10 + 50 + 20 + 150) / 6, (80 + 90 + 99 + 99) / 6, (80 + 290) / 6]
    np.testing.assert_allclose(table["mean_tokens"], charged)
    assert set(table["undecided"]) == {1}
    assert set(table["samples"]) == {6}
    for cap, low, high in table[["cap", "low", "high"]].itertuples(index=False):
        right = [
            sum(g is True and n <= cap for g, n in zip(*row, strict=True)) for row in zip(grades, lengths, strict=True)
        ]
        np.testing.assert_allclose((low, high), accuracy_interval([right[0] / 3, right[1] / 3]))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_without_a_cap_it_is_the_frontier(data):
    shape = data.draw(st.tuples(st.integers(2, 5), st.integers(1, 4)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    grades, lengths = (rng.random(shape) < 0.5).tolist(), rng.integers(1, 101, shape).tolist()
    run = make_run(grades, lengths)
    table = length_ablation([run])
    whole = cost_frontier([run], trials=[1]).iloc[0]
    longest = max(map(max, lengths))
    assert len(table) == min(16, longest)
    assert np.all(np.diff(table["cap"]) > 0)
    assert np.all(np.diff(table["accuracy"]) >= 0)
    last = table.iloc[-1]
    assert last["cap"] == longest
    np.testing.assert_allclose(last[["accuracy", "low", "high"]].tolist(), whole[["accuracy", "low", "high"]].tolist())
    np.testing.assert_allclose(last["mean_tokens"], whole["mean_output_tokens"])


def test_caps_end_where_a_run_was_cut_off():
    """A run of at most 40 tokens says nothing of longer answers, whatever the others' caps."""
    long, short = make_run([[True]], [[70]]), make_run([[True]], [[40]], model="other", max_tokens=40)
    table = length_ablation([long, short], caps=[20, 60, 100])
    assert list(table.loc[table["model"] == "small", "cap"]) == [20, 60, 100]
    assert list(table.loc[table["model"] == "other", "cap"]) == [20, 40]
    unknown = dataclasses.replace(long, settings={})
    assert length_ablation([unknown])["cap"].max() == 70
    assert list(length_ablation([make_run([[True]], [[2]], max_tokens=300)])["cap"]) == [1, 2]
    for caps in ([], [0, 4], [1.5]):
        with pytest.raises(AblationError, match="at least 1"):
            length_ablation([long], caps=caps)


def test_budgets_by_hand():
    rng = np.random.default_rng(5)
    lengths = rng.integers(1, 101, (12, 4)).tolist()
    dense, sparse = (rng.random((12, 4)) < p for p in (0.8, 0.5))
    window = parse_policy("block_topk:budget=80,page_size=16,recent_pages=2")
    table = budget_ablation(
        [
            make_run(sparse.tolist(), lengths, attention=HALF),
            make_run(dense.tolist(), lengths),
            make_run(dense.tolist(), lengths, model="other", attention=window, size=ModelConfig.named("8B")),
        ]
    )
    assert list(table.columns) == [
        *NAMES,
        *("kind", "budget", "options"),
        *COUNTS,
        *("accuracy", "low", "high", "difference", "difference_low", "difference_high", "mean_output_tokens"),
    ]
    assert list(table["kind"]) == ["block_topk", "dense", "block_topk"]
    assert list(table["options"]) == ["page_size=16", "", "page_size=16,recent_pages=2"]
    np.testing.assert_array_equal(table["budget"], [64, np.nan, 80])
    assert list(table["parameters"]) == [SMALL.active_parameters] * 2 + [ModelConfig.named("8B").active_parameters]
    np.testing.assert_allclose(table["accuracy"], [sparse.mean(), dense.mean(), dense.mean()])
    np.testing.assert_allclose(table[["low", "high"]].iloc[0], accuracy_interval(sparse.mean(axis=1)))
    row = table[["difference", "difference_low", "difference_high"]]
    apart = difference_interval(sparse.mean(axis=1), dense.mean(axis=1))
    np.testing.assert_allclose(row.iloc[0], [sparse.mean() - dense.mean(), *apart])
    assert row.iloc[1:].isna().all(axis=None)  # dense itself, and a model without a dense run
    np.testing.assert_allclose(table["mean_output_tokens"], np.mean(lengths))


def test_differences_are_paired():
    """Problems of very different hardness, about the same loss on each: the difference is surer than the accuracies."""
    grades = [[j < k for j in range(8)] for k in range(2, 9)]
    fewer = [[j < k - 1 - (k == 8) for j in range(8)] for k in range(2, 9)]
    lengths = [[5] * 8] * 7
    row = budget_ablation([make_run(grades, lengths), make_run(fewer, lengths, attention=HALF)]).iloc[1]
    np.testing.assert_allclose(row["difference"], -1 / 7)
    assert row["difference_low"] < -1 / 7 < row["difference_high"] < 0  # shown to lose
    assert row["high"] - row["low"] > 2 * (row["difference_high"] - row["difference_low"]) > 0.2


def test_the_same_difference_on_every_problem_is_not_certain():
    """Seven problems can miss a share 1 - 0.025^(1/7) of others, of which nothing is known."""
    grades, lengths = [[j < k for j in range(8)] for k in range(2, 9)], [[5] * 8] * 7
    row = budget_ablation([make_run(grades, lengths), make_run(grades, lengths, attention=HALF)]).iloc[1]
    share = 1 - 0.025 ** (1 / 7)
    np.testing.assert_allclose(row[["difference", "difference_low", "difference_high"]].tolist(), [0, -share, share])


@pytest.mark.parametrize(
    ("spelling", "budget"),
    [
        ("block_topk:pages=6,page_size=16", 96),
        ("random_blocks:budget=64,page_size=16", 64),
        ("token_topk:budget=50", 50),
        ("sliding_window:budget=50", 50),
        ("litesys_block_topk:pages=4,page_size=16", 64),
    ],
)
def test_every_sparse_policy_has_a_budget(spelling, budget):
    assert attention_budget(parse_policy(spelling)) == budget


def test_what_has_no_budget_is_refused():
    with pytest.raises(AblationError, match="dense has no budget"):
        attention_budget(Dense())
    for ablation in (length_ablation, budget_ablation):
        with pytest.raises(SamplesError, match="no runs"):
            ablation([])


def test_seeds_are_pooled():
    one, two = make_run([[True]], [[5]]), make_run([[False]], [[7]], first=1)
    both = make_run([[True, False]], [[5, 7]])
    assert budget_ablation([one, two]).equals(budget_ablation([both]))
    assert length_ablation([one, two]).equals(length_ablation([both]))


def test_other_settings_than_dense_are_not_compared():
    dense, sparse = make_run([[True], [False]], [[5], [5]]), make_run([[True]] * 2, [[5], [5]], attention=HALF)
    assert budget_ablation([dense, sparse])["difference"].iloc[1] == 0.5
    with pytest.warns(UserWarning, match="other max_tokens"):
        table = budget_ablation([dense, dataclasses.replace(sparse, settings={"max_tokens": 20})])
    assert np.isnan(table["difference"]).all()


def test_other_words_for_the_same_problem_are_refused():
    dense, sparse = make_run([[True]], [[5]]), make_run([[True]], [[5]], attention=HALF)
    dense, sparse = (dataclasses.replace(run, prompts={"p0": text}) for run, text in ((dense, "a"), (sparse, "b")))
    with pytest.raises(SamplesError, match="different words"):
        cost_frontier([dense, sparse])
    cost_frontier([dense, dataclasses.replace(sparse, model="other")])  # another model has another template
