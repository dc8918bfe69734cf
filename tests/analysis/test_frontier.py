"""The frontier table against counts done by hand, and the Pareto rule against its definition."""

import dataclasses
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.analysis.frontier import cost_frontier, pareto
from kinetics_jax.analysis.samples import RunData, SamplesError, pooled, run_data
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.runs.folder import Run
from kinetics_jax.stats.estimators import EstimateError, pass_at_k
from kinetics_jax.stats.intervals import accuracy_interval

COLUMNS = [
    "model",
    "parameters",
    "attention",
    "N",
    "problems",
    "samples",
    "undecided",
    "rule",
    "accuracy",
    "low",
    "high",
    "mean_output_tokens",
    "compute",
    "memory",
    "cost",
    "batch_rule",
    "batch",
    "batch_full",
    "cost_without_weights",
    "cost_full",
    "on_frontier",
]
SMALL = ModelConfig.named("0.6B")


def make_run(grades, *, model="small", attention=Dense(), config=SMALL, first=0, lengths=None):
    """`grades [problems][samples]`; lengths are 100, 200, … unless given in the same shape."""
    problem = [f"p{i}" for i, row in enumerate(grades) for _ in row]
    count = len(problem)
    return RunData(
        model=model,
        attention=attention,
        config=config,
        problem=problem,
        sample=[first + j for row in grades for j, _ in enumerate(row)],
        prompt_tokens=[50 + int(name[1:]) for name in problem],
        output_tokens=[n for row in lengths for n in row] if lengths else [100 * (i + 1) for i in range(count)],
        correct=[grade for row in grades for grade in row],
    )


def test_a_table_by_hand():
    grades = [[True, False, False, False], [True, True, False, True], [False, False, False, False]]
    table = cost_frontier([make_run(grades)], convention="paper", intensity=300.0)
    assert list(table.columns) == COLUMNS
    assert list(table["N"]) == [1, 2, 4]
    assert set(table["problems"]) == {3}
    assert set(table["samples"]) == {12}
    assert set(table["undecided"]) == {0}
    assert set(table["model"]) == {"small"}
    assert set(table["parameters"]) == {SMALL.active_parameters}
    assert set(table["attention"]) == {"dense"}
    np.testing.assert_allclose(table["accuracy"], [(1 / 4 + 3 / 4) / 3, (1 / 2 + 1) / 3, 2 / 3])
    np.testing.assert_allclose(table["mean_output_tokens"], 650)
    for i, n in enumerate((1, 2, 4)):
        solved = pass_at_k(4, [1, 3, 0], n)
        np.testing.assert_allclose((table["low"][i], table["high"][i]), accuracy_interval(solved))
        cost = generation_cost(
            SMALL,
            prompt_tokens=np.repeat([50, 51, 52], 4),
            output_tokens=np.arange(100, 1300, 100),
            trials=n,
            convention="paper",
            intensity=300.0,
        )
        np.testing.assert_allclose(table["compute"][i], np.mean(cost.compute))
        np.testing.assert_allclose(table["memory"][i], np.mean(cost.memory))
        np.testing.assert_allclose(table["cost"][i], np.mean(cost.total))
    assert table["on_frontier"].all()
    assert len(table.attrs.pop("picks")) == 2
    assert table.attrs == {
        "convention": "paper", "hardware": None, "intensity": 300.0, "chips": 1, "batch_rule": "none",
        "rule": "pass",
    }  # fmt: skip
    assert table["batch"].isna().all()
    assert table["cost"].equals(table["cost_without_weights"])
    counted = cost_frontier([make_run(grades)])
    assert counted.attrs.pop("picks")
    assert counted.attrs == {
        "convention": "traffic", "hardware": "h100", "intensity": None, "chips": 1, "batch_rule": "fit",
        "rule": "pass",
    }  # fmt: skip
    assert (counted["cost"] > counted["cost_without_weights"]).all()
    assert (counted["cost_full"] >= counted["cost"]).all()
    assert table.equals(cost_frontier([make_run(grades)], convention="paper", intensity=300.0))


def test_rows_are_marked_across_models_and_policies():
    good = [[True, True], [True, True]]
    bad = [[False, False], [True, False]]
    sparse = BlockTopK(budget=48)
    lengths = [[900, 900], [900, 900]]
    table = cost_frontier(
        [
            make_run(good, model="large", config=ModelConfig.named("8B"), lengths=lengths),
            make_run(good, lengths=lengths),
            make_run(bad, attention=sparse, lengths=lengths),
        ],
        hardware="h200",
    )
    keys = [tuple(key) for key in table[["model", "attention", "N"]].itertuples(index=False)]
    assert keys == [
        (m, str(a), n) for m, a in (("large", Dense()), ("small", Dense()), ("small", sparse)) for n in (1, 2)
    ]
    on = {key for key, mark in zip(keys, table["on_frontier"], strict=True) if mark}
    assert ("small", "dense", 1) in on  # as accurate as anything, and cheaper than what is
    assert ("small", str(sparse), 1) in on  # the cheapest
    assert not {("large", "dense", 1), ("small", "dense", 2)} & on


def test_runs_of_one_model_and_attention_are_pooled():
    first, second = [[True, False]], [[False, False]]
    pooled = cost_frontier([make_run(first), make_run(second, first=2, lengths=[[300, 400]])])
    assert pooled.equals(cost_frontier([make_run([[True, False, False, False]])]))
    with pytest.raises(SamplesError, match="'p0' sample 0 occurs twice"):
        cost_frontier([make_run(first), make_run(second)])
    other = dataclasses.replace(make_run(second, first=2), prompt_tokens=[9, 9])
    with pytest.raises(SamplesError, match="50 and 9 tokens"):
        cost_frontier([make_run(first), other])


def test_the_order_of_samples_does_not_matter():
    rng = np.random.default_rng(3)
    run = make_run((rng.random((7, 5)) < 0.5).tolist(), lengths=rng.integers(1, 9999, (7, 5)).tolist())
    order = rng.permutation(35)
    fields = ("problem", "sample", "prompt_tokens", "output_tokens", "correct")
    shuffled = {field: [list(getattr(run, field))[i] for i in order] for field in fields}
    assert cost_frontier([run]).equals(cost_frontier([dataclasses.replace(run, **shuffled)]))


def test_undecided_samples_count_as_unsolved():
    run, failed = (
        make_run([[True, None, False], [False, True, True]]),
        make_run([[True] + [False] * 2, [False, True, True]]),
    )
    with pytest.warns(UserWarning, match="small dense: 1 of 6 samples are undecided .* count as unsolved"):
        table = cost_frontier([run])
    assert set(table["undecided"]) == {1}
    assert "dropped" not in table
    np.testing.assert_allclose(table["accuracy"], [(1 / 3 + 2 / 3) / 2, (2 / 3 + 1) / 2])
    assert table.drop(columns="undecided").equals(cost_frontier([failed]).drop(columns="undecided"))
    with pytest.warns(UserWarning, match="undecided"):  # also where nothing of a problem is decided
        assert list(cost_frontier([make_run([[True, True], [None, None]])])["accuracy"]) == [0.5, 0.5]


def test_undecided_samples_are_dropped_only_when_asked():
    run = make_run([[True, None, False], [False, True, True]])
    with pytest.warns(UserWarning, match="1 of 6 samples are undecided .* left out .* as asked"):
        pools = pooled([run], undecided="drop")
    table = cost_frontier(pools)
    assert list(table["N"]) == [1, 2]
    assert table[["samples", "undecided", "dropped"]].drop_duplicates().to_numpy().tolist() == [[6, 1, 1]]
    np.testing.assert_allclose(table["accuracy"], [(1 / 2 + 2 / 3) / 2, 1])
    whole = cost_frontier([make_run([[True, True, False], [False, True, True]])])
    np.testing.assert_allclose(table["cost"], whole["cost"][:2])  # dropped ones were paid for
    with pytest.raises(SamplesError, match=r"all samples of problem 'p1' are undecided .*; leave out --undecided drop"):
        pooled([make_run([[True, None], [None, None]])], undecided="drop")
    with pytest.raises(SamplesError, match="can be unsolved or drop, not 'half'"):
        pooled([run], undecided="half")  # pyright: ignore[reportArgumentType]


def test_other_settings_are_compared_with_a_word():
    def run(**settings):
        return dataclasses.replace(
            make_run([[True]], model=settings.pop("model", "small")), settings={"dtype": "float32", **settings}
        )

    one = run(temperature=0.6, max_tokens=4096, weights="a")
    with pytest.warns(
        UserWarning, match=r"differ in temperature \(0.6 for small dense, 2.0 for other dense\); max_tokens"
    ):
        pooled([one, run(model="other", temperature=2.0, max_tokens=900, weights="b")])
    with pytest.warns(
        UserWarning, match=r"differ in dtype \(float32 for small dense, bfloat16 for other dense\): what"
    ):
        pooled([one, run(model="other", temperature=0.6, max_tokens=4096, dtype="bfloat16")])
    sparse = dataclasses.replace(run(temperature=0.6, max_tokens=4096, weights="b"), attention=BlockTopK(budget=64))
    with pytest.warns(UserWarning, match="differ in the weights of small: what"):
        pooled([one, sparse])
    asked = dataclasses.replace(one, prompts={"p0": "1 + 1?"})
    with pytest.warns(UserWarning, match="'p0' was put to small and other in different words"):
        pooled([asked, dataclasses.replace(asked, model="other", prompts={"p0": "user: 1 + 1?"})])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pooled([one, run(model="other", temperature=0.6)])  # what is not said is not told apart


def test_an_interval_has_a_width_whatever_the_outcome():
    """Of one problem, and where all are solved or failed: Clopper and Pearson's, for N = 1 and N = 2."""
    table = cost_frontier([make_run([[True, False]])])
    np.testing.assert_allclose(table[["low", "high"]], [[0.0125, 0.9875], [0.025, 1]])
    solved = cost_frontier([make_run([[True]] * 10)])
    np.testing.assert_allclose(solved[["low", "high"]], [[0.025 ** (1 / 10), 1]])  # 0.6915, as in tables
    failed = cost_frontier([make_run([[False]] * 30)])
    np.testing.assert_allclose(failed[["low", "high"]], [[0, 1 - 0.025 ** (1 / 30)]])
    assert solved["high"].item() == 1


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=9))
@settings(max_examples=40, deadline=None)
def test_an_interval_holds_its_accuracy_within_0_and_1(grades):
    table = cost_frontier([make_run(grades)], trials=[1, 2, 3])
    low, accuracy, high = (table[name].to_numpy() for name in ("low", "accuracy", "high"))
    assert np.all((low >= 0) & (low <= accuracy) & (accuracy <= high) & (high <= 1) & (low < high))


def test_trials_can_be_chosen():
    run = make_run([[True, False, False], [True, True, False]])
    assert list(cost_frontier([run], trials=[3, 1])["N"]) == [3, 1]
    with pytest.raises(
        EstimateError, match="--trials 4: small dense has 3 graded samples of a problem, so N is at most 3"
    ):
        cost_frontier([run], trials=[1, 4])


def test_what_does_not_compare_is_refused():
    with pytest.raises(SamplesError, match="no runs"):
        cost_frontier([])
    with pytest.raises(SamplesError, match="no samples yet"):
        cost_frontier([make_run([])])
    with pytest.raises(SamplesError, match="dense has 2 problems, other dense has 1"):
        cost_frontier([make_run([[True], [True]]), make_run([[True]], model="other")])
    with pytest.raises(SamplesError, match="different lengths"):
        dataclasses.replace(make_run([[True]]), correct=[])


def test_runs_of_several_tasks_are_kept_apart():
    small = dataclasses.replace(make_run([[True]]), task="aime24")
    other = dataclasses.replace(make_run([[True], [False]], model="other"), task="gsm8k")
    with pytest.raises(SamplesError, match=r"several tasks \(aime24, gsm8k\): .*; give the runs of one task at a time"):
        cost_frontier([small, other])
    again = dataclasses.replace(make_run([[True], [False]], first=1), task="gsm8k")
    with pytest.raises(SamplesError, match="several tasks"):  # never pooled into one
        cost_frontier([small, again])
    # one set of problems by two names, say relative and absolute paths
    assert len(cost_frontier([small, dataclasses.replace(make_run([[True]], model="other"), task="./aime24")])) == 2


def test_problems_of_one_id_must_be_one():
    mine = dataclasses.replace(make_run([[True]]), task="a", asked={"p0": ("1 + 1?", "2")})
    same = dataclasses.replace(make_run([[True]], model="other"), task="b", asked={"p0": ("1 + 1?", "2")})
    assert len(cost_frontier([mine, same])) == 2
    other = dataclasses.replace(same, asked={"p0": ("1 + 2?", "3")})
    message = r"problem 'p0' is not the same in small dense \(task a\) and other dense \(task b\)"
    with pytest.raises(SamplesError, match=message):
        cost_frontier([mine, other])


points = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=30)


@given(points)
def test_pareto_is_its_definition(points):
    def beaten(mine):
        return any(
            other[1] >= mine[1] and other[0] <= mine[0] and (other[1] > mine[1] or other[0] < mine[0])
            for other in points
        )

    cost, accuracy = [p[0] for p in points], [p[1] for p in points]
    assert list(pareto(cost, accuracy)) == [not beaten(p) for p in points]


def test_pareto_passes_over_what_is_not_a_number():
    assert list(pareto([1, np.nan, 2], [np.nan, 0.9, 0.5])) == [False, False, True]


def test_a_run_folder_becomes_run_data():
    record = {"problem": "a", "seed": 1, "sample": 3, "prompt_tokens": 7, "output_tokens": [5, 6, 7], "correct": None}
    config = {**dataclasses.asdict(SMALL), "eos_token_ids": list(SMALL.eos_token_ids)}
    run = {"model": "m", "policy": "block_topk:budget=64,page_size=16", "config": config}
    problems = {"a": {"id": "a", "question": "?", "answer": "1", "prompt": "?"}}
    data = run_data(Run(Path("run"), {**run, "task": "t"}, problems, [record]))
    assert (data.model, data.attention, data.config) == ("m", BlockTopK(budget=64), SMALL)
    assert (data.problem, data.sample, data.correct) == (["a"], [(1, 3)], [None])
    assert (data.prompt_tokens, data.output_tokens) == ([7], [3])
    assert (data.task, data.asked) == ("t", {"a": ("?", "1")})
    with pytest.raises(SamplesError, match=r"run\.json: missing config"):
        run_data(Run(Path("run"), {**run, "config": None}, {}, []))
    with pytest.raises(SamplesError, match=r"run\.json: config cannot be read .*colour"):
        run_data(Run(Path("run"), {**run, "config": {"colour": 1}}, {}, []))
    with pytest.raises(SamplesError, match="'sparse' is not known"):
        run_data(Run(Path("run"), {**run, "policy": "sparse"}, {}, []))


def test_an_unfinished_run_warns():
    record = {"problem": "a", "seed": 0, "sample": 0, "prompt_tokens": 7, "output_tokens": [5], "correct": True}
    run = {"model": "m", "policy": "dense", "config": dataclasses.asdict(SMALL), "n": 4}
    with pytest.warns(UserWarning, match="unfinished, 1 of 8 samples"):
        run_data(Run(Path("run"), run, {"a": {}, "b": {}}, [record]))


def test_runs_of_two_seeds_pool_and_of_two_temperatures_do_not():
    def part(seed: int, temperature: float):
        record = {"problem": "a", "seed": seed, "sample": 0, "prompt_tokens": 7, "output_tokens": [5], "correct": True}
        sampling = {"temperature": temperature, "seed": seed}
        run = {"model": "m", "policy": "dense", "config": dataclasses.asdict(SMALL), "sampling": sampling}
        return run_data(Run(Path("run"), run, {"a": {}}, [record]))

    assert list(cost_frontier([part(0, 1.0), part(1, 1.0)])["N"]) == [1, 2]
    with pytest.raises(SamplesError, match="differ in temperature cannot be pooled"):
        cost_frontier([part(0, 1.0), part(1, 0.6)])
