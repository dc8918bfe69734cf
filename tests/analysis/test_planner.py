"""The planner against brute force, and what it says when it cannot advise."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.analysis.advice import advise
from kinetics_jax.analysis.first_answer import first_answer_seconds
from kinetics_jax.analysis.planner import Budget, Options, PlanError, batch_sizes, choose, list_options, pass_at_n
from kinetics_jax.analysis.samples import Pool, ProblemSamples
from kinetics_jax.analysis.workload import Workload, busiest_share, workload_seconds
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.stats.estimators import pass_at_k

SMALL = ModelConfig(512, 64, 128, 2, 4, 2, head_dim=16, name="small")
LARGE = ModelConfig(512, 256, 512, 4, 8, 4, head_dim=32, name="large")
CHIP = Hardware("chip", 1e9, 1e8, 1e9, price_per_hour=3.6)
MEASURED = Hardware("measured", 1e9, 1e8, 1e9, step_seconds=1e-3, unit_seconds={"linear": 1e-9}, form="sum")


def pool(
    config: ModelConfig, rate: float, *, seed: int = 0, attention: AttentionPolicy = Dense(), problems: int = 12
) -> Pool:
    rng = np.random.default_rng(seed)
    stored = {}
    for index in range(problems):
        hard = rng.beta(4 * rate, 4 * (1 - rate))
        lengths = rng.integers(10, 60, size=8).astype(float).tolist()
        stored[f"p{index:02d}"] = ProblemSamples(20.0, lengths, [bool(x) for x in rng.random(8) < hard])
    return Pool(config.name, attention, config, {"dtype": "float32", "max_tokens": 64}, stored)


POOLS = [
    pool(SMALL, 0.4, seed=1),
    pool(SMALL, 0.35, seed=2, attention=BlockTopK(budget=32, page_size=8, dense_layers=())),
    pool(LARGE, 0.7, seed=3),
]
FOUND = list_options(POOLS, CHIP)


def test_options_hold_every_configuration_and_its_unbiased_accuracy():
    table = FOUND.table
    assert set(table["N"]) == {1, 2, 4, 8}
    assert set(table["cap"]) == {32, 64}
    assert not table.duplicated(["model", "attention", "N", "cap", "batch"]).any()
    row = table[(table["model"] == "large") & (table["N"] == 4) & (table["cap"] == 64)].index[0]
    expected = [pass_at_k(8, sum(problem.grades), 4) for problem in POOLS[2].problems.values()]
    np.testing.assert_allclose(FOUND.solved[row], expected)
    # cut in half, only what ends within counts
    row = table[(table["model"] == "large") & (table["N"] == 1) & (table["cap"] == 32)].index[0]
    within = [
        np.mean([grade and length <= 32 for grade, length in zip(problem.grades, problem.lengths, strict=True)])
        for problem in POOLS[2].problems.values()
    ]
    np.testing.assert_allclose(FOUND.solved[row], within)
    np.testing.assert_allclose(table["dollars"], table["seconds"] * 1e-3)


@pytest.mark.parametrize("quantile", [0.0, 0.1, 0.4, 0.8, 1.0])
def test_budget_is_spent_as_brute_force_spends_it(quantile: float):
    limit = float(np.quantile(FOUND.table["seconds"], quantile))
    advice = advise(FOUND, Budget(seconds=limit))
    within = [row for _, row in FOUND.table.iterrows() if row["seconds"] <= limit]
    best = max(row["accuracy"] for row in within)
    quickest = min(row["seconds"] for row in within if row["accuracy"] == best)
    chosen = advice.row(advice.chosen)
    assert (chosen["accuracy"], chosen["seconds"]) == (best, quickest)
    by_dollars = advise(FOUND, Budget(dollars=limit * 1e-3 * (1 + 1e-12)))
    assert by_dollars.chosen == advice.chosen


@pytest.mark.parametrize("target", [0.3, 0.6, 0.85])
def test_target_is_reached_by_the_cheapest(target: float):
    advice = advise(FOUND, Budget(target_accuracy=target))
    cheapest = min(row["seconds"] for _, row in FOUND.table.iterrows() if row["accuracy"] >= target)
    assert advice.row(advice.chosen)["seconds"] == cheapest
    assert advice.accuracy >= target


ROWS = st.lists(
    st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.sampled_from([1.0, 2.0, 3.0, math.inf])), min_size=1
)


@settings(deadline=None)
@given(rows=ROWS, limit=st.sampled_from([0.5, 1.0, 2.5, math.inf]), target=st.sampled_from([None, 0.2, 0.6]))
def test_nothing_dominates_what_is_chosen(rows, limit, target):
    accuracy, seconds = (np.array(column) for column in zip(*rows, strict=True))
    chosen = choose(seconds, accuracy, limit, target)
    able = np.isfinite(seconds) & (seconds <= limit) & (accuracy >= (target or 0))
    assert (chosen is None) == (not able.any())
    if chosen is not None:
        assert able[chosen]
        no_worse = (accuracy >= accuracy[chosen]) & (seconds <= seconds[chosen])
        better = (accuracy > accuracy[chosen]) | (seconds < seconds[chosen])
        assert not np.any(no_worse & better)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), quantile=st.floats(0.0, 1.0))
def test_advice_is_on_the_frontier_of_all_options(seed, quantile):
    rng = np.random.default_rng(seed)
    seconds = rng.choice([1.0, 2.0, 4.0, 8.0, math.inf], size=24)
    seconds[0] = 1.0
    solved = rng.integers(0, 5, size=(24, 6)) / 4
    table = FOUND.table.iloc[:24].assign(seconds=seconds, accuracy=solved.mean(axis=1).round(12), fits=1, batch=1)
    table["cap"] = range(24)  # every row is a configuration of its own
    options = Options(table.reset_index(drop=True), solved, CHIP, 1, 6, ())
    limit = float(np.quantile(seconds[np.isfinite(seconds)], quantile))
    advice = advise(options, Budget(seconds=limit))
    chosen = advice.row(advice.chosen)
    others = options.table
    no_worse = (others["accuracy"] >= chosen["accuracy"]) & (others["seconds"] <= chosen["seconds"])
    better = (others["accuracy"] > chosen["accuracy"]) | (others["seconds"] < chosen["seconds"])
    assert not (no_worse & better).any()
    assert advice.run_low <= advice.accuracy
    assert 0 <= advice.optimism <= 1
    if advice.runner_up is not None:
        runner_up = advice.row(advice.runner_up)
        assert runner_up["seconds"] <= limit
        assert runner_up["accuracy"] <= chosen["accuracy"]
        assert advice.why_not[advice.runner_up]
    if advice.beyond is not None:
        beyond = advice.row(advice.beyond)
        assert beyond["accuracy"] > chosen["accuracy"]
        assert beyond["seconds"] > limit


def test_refusals_name_the_least_that_does():
    least = FOUND.table["seconds"].min()
    with pytest.raises(PlanError, match=r"the cheapest, small .* takes"):
        advise(FOUND, Budget(seconds=least / 2))
    best = FOUND.table.loc[FOUND.table["accuracy"].idxmax()]
    assert best["accuracy"] < 1
    with pytest.raises(PlanError, match=rf"nothing reaches an accuracy of 1\.0; the best is {best['model']}"):
        advise(FOUND, Budget(target_accuracy=1.0))
    with pytest.raises(PlanError, match=r"nothing that reaches 0\.8 fits"):
        advise(FOUND, Budget(seconds=least, target_accuracy=0.8))
    cramped = list_options(POOLS, Hardware("cramped", 1e9, 1e8, 1e5))
    with pytest.raises(PlanError, match="nothing fits into the memory of 1 x cramped"):
        advise(cramped, Budget(seconds=1e9))
    small = Hardware("small", 1e9, 1e8, 1.25 * 4 * LARGE.active_parameters)
    room = list_options(POOLS, small).table["fits"].max()
    with pytest.raises(PlanError, match=rf"give smaller --batches \(at most {room}\)$"):
        advise(list_options(POOLS, small, batches=[65536]), Budget(seconds=1e9))
    assert advise(list_options(POOLS, small, batches=[room]), Budget(seconds=1e9)).chosen >= 0
    with pytest.raises(PlanError, match="give a budget"):
        Budget()
    with pytest.raises(PlanError, match="positive"):
        Budget(seconds=-1)
    with pytest.raises(PlanError, match="no price per hour"):
        advise(list_options(POOLS[:1], MEASURED), Budget(dollars=1))


def test_replicas_share_the_problems():
    """Each has the room and the seconds of one alone with its problems; all are paid for."""
    one, four = (list_options(POOLS[:1], CHIP, replicas=n, trials=[2], batches=[8]).table for n in (1, 4))
    alone = list_options(POOLS[:1], CHIP, problems=3, trials=[2], batches=[8]).table
    assert (four["fits"] == one["fits"]).all()
    assert (four["seconds"] < one["seconds"] / 2).all()
    np.testing.assert_allclose(four["seconds"], alone["seconds"], rtol=0.5)  # other three problems
    np.testing.assert_allclose(four["dollars"], 4 * four["seconds"] * 1e-3)
    advice = advise(list_options(POOLS[:1], CHIP, replicas=4, trials=[2], batches=[8]), Budget(dollars=1.0))
    assert advice.options.replicas == 4
    work = Workload(np.arange(5), np.array([[1, 1], [9, 9], [2, 2], [3, 3], [4, 4]]))
    assert busiest_share(work, 1) is work
    busy = busiest_share(work, 2)  # problems 1 and 3, of 24 tokens, against 0, 2 and 4, of 14
    np.testing.assert_array_equal(busy.prompts, [1, 3])
    np.testing.assert_array_equal(busiest_share(work, 9).lengths, [[9, 9]])
    with pytest.raises(PlanError, match="replicas"):
        list_options(POOLS, CHIP, replicas=0)


def test_chips_wait_for_each_other():
    """Two are less than twice as quick as one."""
    linked = dataclasses.replace(CHIP, link_bandwidth=1e8, all_reduce_seconds=1e-5)
    case = {"trials": [8], "batches": [8]}
    one, two = (list_options(POOLS[2:], linked, chips=chips, **case).table["seconds"] for chips in (1, 2))
    assert (two > one / 2).all()
    silent = list_options(POOLS[2:], CHIP, chips=2, **case)
    assert (silent.table["seconds"] < two).all()


def test_batches_are_those_that_can_be_used():
    assert batch_sizes(24, 316) == [1, 2, 4, 6, 8, 12, 16, 24]  # all at once, and in 2 to 4 equal turns
    assert batch_sizes(600, 2000)[-3:] == [300, 512, 600]
    assert batch_sizes(1000, 22) == [1, 2, 4, 8, 16, 22]  # all the room there is
    assert batch_sizes(5, 0) == [1]
    plan = advise(list_options(POOLS[:1], CHIP, problems=3, trials=[8]), Budget(seconds=1e9))
    assert plan.row(plan.chosen)["batch"] == 24


def test_all_samples_are_a_number_of_trials():
    six = pool(SMALL, 0.5)
    for problem in six.problems.values():
        problem.grades[6:], problem.lengths[6:] = [], []
    assert set(list_options([six], CHIP).table["N"]) == {1, 2, 4, 6}


def test_memory_holds_more_on_average_and_charges_the_turns():
    """Between what fits at every length and what fits on average samples are set aside: the steps take longer."""
    tight = Hardware("tight", 1e9, 1e8, 1.25 * 4 * LARGE.active_parameters)
    ample = dataclasses.replace(tight, memory=1e12)
    few, many = (list_options(POOLS[2:], chip, trials=[8], caps=[64]).table for chip in (tight, ample))
    assert (few["fits"] > few["fits_full"]).all()
    assert few["batch"].max() == few["fits"].iloc[0]
    seconds = many.set_index("batch")["seconds"]
    for row in few.to_dict("records"):
        if row["batch"] <= 0.5 * row["fits_full"]:
            assert row["seconds"] == pytest.approx(seconds[row["batch"]])
    most = few.loc[few["batch"].idxmax()]
    again = list_options(POOLS[2:], ample, trials=[8], caps=[64], batches=[int(most["batch"])]).table
    assert most["seconds"] > again["seconds"].iloc[0]


def test_the_first_answer_comes_when_the_first_problem_ends():
    work = Workload(np.array([20.0, 20.0, 20.0]), np.array([[30, 10], [40, 5], [12, 9]]))
    arguments = SMALL, Dense(), CHIP
    alone = workload_seconds(*arguments, Workload(work.prompts[:1], work.lengths[:1]), slots=2, cap=64).total
    assert first_answer_seconds(*arguments, work, slots=2, cap=64) == pytest.approx(alone)  # 30 is the median longest
    one_slot = workload_seconds(*arguments, Workload(work.prompts[:1], work.lengths[:1]), slots=1, cap=64).total
    assert first_answer_seconds(*arguments, work, slots=1, cap=64) == pytest.approx(one_slot)
    together = Workload(work.prompts, np.minimum(work.lengths, 30))  # all prompts first, then 29 steps of the batch
    beside = first_answer_seconds(*arguments, work, slots=6, cap=64)
    assert beside == pytest.approx(workload_seconds(*arguments, together, slots=6, cap=64).total)
    assert beside > alone
    assert (FOUND.table["first_answer"] <= FOUND.table["seconds"] + 1e-12).all()


def test_advice_says_how_sure_it_is():
    limit = float(np.quantile(FOUND.table["seconds"], 0.5))
    advice = advise(FOUND, Budget(seconds=limit))
    assert sum(advice.probabilities.values()) == pytest.approx(1)
    assert advice.alternatives[0] == advice.chosen
    assert set(advice.alternatives) <= set(advice.probabilities)
    names = FOUND.table.iloc[list(advice.probabilities)][["model", "attention", "N", "cap"]]
    assert not names.duplicated().any()  # a batch more is no configuration more
    assert 0 <= advice.regret < 0.3
    assert advice.low <= advice.expected_accuracy <= advice.high
    # of one pool more samples are never worse, whatever the problems
    alone = advise(list_options(POOLS[2:], CHIP, caps=[64]), Budget(seconds=1e9))
    assert alone.probabilities[alone.chosen] == 1
    assert alone.regret == 0
    reached = advise(FOUND, Budget(target_accuracy=0.6))
    assert reached.regret > 0
    assert advise(FOUND, Budget(target_accuracy=0.01)).regret < 1e-3


@pytest.mark.parametrize("grade", [True, False])
def test_configurations_that_no_problem_sets_apart_share_the_probability(grade):
    stored = {f"p{i}": ProblemSamples(20.0, [30.0] * 4, [grade] * 4) for i in range(12)}
    both = [Pool(size.name, Dense(), size, {"dtype": "float32", "max_tokens": 40}, stored) for size in (SMALL, LARGE)]
    advice = advise(list_options(both, CHIP, caps=[40]), Budget(seconds=1e9))
    assert (advice.row(advice.chosen)["model"], advice.row(advice.chosen)["N"]) == ("small", 1)
    assert len(advice.as_accurate) == 5  # N of 1, 2 and 4 of two models
    np.testing.assert_allclose(list(advice.probabilities.values()), 1 / 6)
    apart = advise(list_options(POOLS[2:], CHIP, caps=[64]), Budget(seconds=1e9))
    assert apart.as_accurate == ()


def test_fewer_samples_or_a_lower_cap_of_the_same_are_no_rivals():
    advice = advise(FOUND, Budget(seconds=1e9))
    rows = [advice.row(index) for index in advice.alternatives[1:]]
    within = [advice.row(index) for index in advice.probabilities]
    for row in rows:
        for other in within:
            if (row["model"], row["attention"]) == (other["model"], other["attention"]):
                assert not (row["N"] <= other["N"] and row["cap"] < other["cap"])
                assert not (row["N"] < other["N"] and row["cap"] <= other["cap"])
    alone = advise(list_options(POOLS[2:], CHIP, caps=[64], trials=[4, 8]), Budget(seconds=1e9))
    assert alone.alternatives == (alone.chosen,)
    assert alone.runner_up is not None
    assert "never more" in alone.why_not[alone.runner_up]
    assert "surely" not in alone.why_not[alone.runner_up]
    # what is picked of more samples may be worse
    picked = dataclasses.replace(alone.options, rule="best-of-verifier")
    assert "surely" in advise(picked, Budget(seconds=1e9)).why_not[alone.runner_up]
    # grades of cut texts may be lost again where the text goes on
    solved = alone.options.solved.copy()
    few = (alone.options.table["N"] == 4).to_numpy()
    solved[few, 0], solved[~few, 0] = 1, 0
    table = alone.options.table.assign(accuracy=solved.mean(axis=1))
    lost = advise(dataclasses.replace(alone.options, solved=solved, table=table), Budget(seconds=1e9))
    assert len(lost.alternatives) == 2


def test_memory_bounds_the_batch():
    room = list_options(POOLS[2:], Hardware("small", 1e9, 1e8, 1.25 * 4 * LARGE.active_parameters), problems=12).table
    fits = room["fits"].iloc[0]
    assert 0 < fits < 96
    assert np.isinf(room.loc[room["batch"] > room["fits"], "seconds"]).all()
    assert np.isfinite(room.loc[room["batch"] <= room["fits"], "seconds"]).all()


@pytest.mark.slow
def test_extrapolation_is_warned_of():
    def warned(**asked) -> str:
        return "\n".join(list_options(POOLS, **{"hardware": MEASURED, **asked}).warnings)

    assert warned() == ""
    assert "data sheet" in warned(hardware=CHIP)
    assert "12 were measured" in warned(problems=13)
    assert "N = 16 is more than the 8 samples" in warned(trials=[16])
    assert "nothing is known of a cap of 65" in warned(caps=[64, 65])
    assert "communication between the 2 is not counted" in warned(chips=2)
    linked = dataclasses.replace(MEASURED, link_bandwidth=1e9, all_reduce_seconds=1e-5)
    assert warned(hardware=linked, chips=2) == ""
    with pytest.raises(PlanError, match="no cap of"):
        list_options(POOLS, MEASURED, caps=[65])
    for wrong in ({"problems": 0}, {"trials": [0]}, {"batches": [-1]}, {"chips": 0}):
        with pytest.raises(PlanError):
            list_options(POOLS, MEASURED, **wrong)


def test_pass_at_n_beyond_the_samples_is_the_posterior_expectation():
    solved = pass_at_n(POOLS[0], [8, 9, 50], 64)
    assert np.all(np.diff(solved[:, 1:], axis=1) >= 0)
    right = np.array([sum(problem.grades) for problem in POOLS[0].problems.values()])
    rates = np.random.default_rng(0).beta(right + 0.5, 8.5 - right, size=(200_000, len(right)))
    np.testing.assert_allclose(solved[:, 2], 1 - np.mean((1 - rates) ** 50, axis=0), atol=5e-3)


@pytest.mark.slow
def test_run_interval_holds_what_runs_show():
    """Options chosen on one set of problems; the chosen one's score on fresh ones lies in the interval."""
    inside, trials = 0, 40
    for trial in range(trials):
        rng = np.random.default_rng(trial)
        rates = rng.beta(2, 2, size=(5, 24))  # five configurations alike: choosing among them flatters
        seen = rng.binomial(8, rates) / 8
        table = pd.DataFrame({"accuracy": seen.mean(axis=1).round(12), "seconds": 1.0, "fits": 1, "batch": 1})
        for name in ("model", "attention", "N", "cap"):
            table[name] = range(5)
        advice = advise(Options(table, seen, CHIP, 1, 24, ()), Budget(seconds=2))
        score = rng.binomial(1, rng.beta(2, 2, size=24)).mean()
        inside += advice.run_low <= score <= advice.run_high
    assert inside >= 0.9 * trials
