"""What is not known of samples stays not known; grades of cut texts go where they belong."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.analysis.ablations import budget_ablation, length_ablation
from kinetics_jax.analysis.frontier import cost_frontier
from kinetics_jax.analysis.samples import ProblemSamples, RunData, SamplesError, pooled
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig

SMALL = ModelConfig.named("0.6B")
RUN = RunData(
    model="small",
    attention=Dense(),
    config=SMALL,
    problem=["a", "a", "b", "b"],
    sample=[0, 1, 0, 1],
    prompt_tokens=[10, 10, 12, 12],
    output_tokens=[30, 50, 20, 90],
    correct=[True, True, False, None],
    settings={"max_tokens": 100},
)
CUT = dataclasses.replace(
    RUN, caps=(10, 40), correct_within=[[False, True], [True, True], [None, False], [False, False]]
)


def test_without_an_architecture_there_are_accuracies_and_no_costs():
    run = dataclasses.replace(RUN, config=None)
    (pool,) = pooled([run])
    assert np.isnan(pool.parameters)
    assert length_ablation([run], caps=[100])["accuracy"].item() == 0.5
    assert budget_ablation([run])["accuracy"].item() == 0.5
    with pytest.raises(SamplesError, match="small dense: the architecture is not known, so there is no cost"):
        cost_frontier([run])


@pytest.mark.parametrize("missing", [None, np.nan])
def test_a_missing_count_is_never_a_number(missing):
    run = dataclasses.replace(RUN, output_tokens=[30, 50, missing, 90])
    (pool,) = pooled([run])
    assert pool.problems["a"].lengths == [30, 50]
    assert np.isnan(pool.problems["b"].lengths[0])
    table = budget_ablation([run])
    assert table["accuracy"].item() == 0.5
    assert np.isnan(table["mean_output_tokens"].item())
    with pytest.raises(SamplesError, match=r"output token counts are missing for 1 of 2 problems \(such as 'b'\)"):
        cost_frontier([run])
    with pytest.raises(SamplesError, match="1 of 2 samples of a problem have no token count"):
        length_ablation([run], caps=[40])
    unprompted = dataclasses.replace(RUN, prompt_tokens=[missing] * 4)
    assert len(pooled([unprompted, dataclasses.replace(unprompted, sample=[2, 3, 2, 3])])) == 1
    with pytest.raises(SamplesError, match="prompt token counts are missing for 2 of 2 problems"):
        cost_frontier([unprompted])


def test_a_sample_within_a_cap_by_hand():
    problem = ProblemSamples(10, [30, 50, 20, np.nan], [True, True, None, None])
    np.testing.assert_array_equal(problem.grades_under([29, 30, 50]), [[0, 1, 1], [0, 0, 1]] + [[np.nan] * 3] * 2)
    np.testing.assert_array_equal(problem.tokens_under([29, 40]), [[29, 30], [29, 40], [20, 20], [np.nan] * 2])
    cut = dataclasses.replace(
        problem, caps=(20, 30), correct_within=[(True, True), (None, True), (False,) * 2, (None,) * 2]
    )
    np.testing.assert_array_equal(cut.grades_under([20, 40])[:3], [[1, 1], [np.nan, 0], [0, np.nan]])
    assert cut.knows(20)
    assert not cut.knows(40)
    assert ProblemSamples(10, [30], [True]).knows(30)


def test_grades_of_cut_texts_are_the_length_ablation():
    with pytest.warns(UserWarning, match="1 of 4 samples are undecided"):
        cost_frontier([CUT])
    table = length_ablation([CUT])
    assert list(table["cap"]) == [10, 40, 100]
    assert table.attrs["rule"] == "cut"
    np.testing.assert_allclose(table["accuracy"], [0.25, 0.5, 0.5])  # undecided under a cap: unsolved there
    np.testing.assert_allclose(table["mean_tokens"], [10, (30 + 40 + 20 + 40) / 4, (30 + 50 + 20 + 90) / 4])
    assert list(length_ablation([CUT], caps=[40])["cap"]) == [40]
    assert length_ablation([RUN]).attrs["rule"] == "finished"


def test_one_rule_for_all_rows_of_a_table():
    other = dataclasses.replace(RUN, model="other")
    with pytest.warns(UserWarning, match="not graded at all of these caps in all runs"):
        table = length_ablation([CUT, other], caps=[10, 40])
    assert table.attrs["rule"] == "finished"
    np.testing.assert_allclose(table["accuracy"], [0, 0.25] * 2)


def test_pools_keep_the_caps_that_all_their_runs_have():
    more = dataclasses.replace(CUT, sample=[2, 3, 2, 3], caps=(40, 60))
    with pytest.warns(UserWarning, match=r"only the common ones are used \(40\)"):
        (pool,) = pooled([CUT, more])
    assert pool.caps == (40,)
    assert pool.problems["a"].correct_within == [(True,), (True,), (False,), (True,)]


def test_what_does_not_fit_is_refused():
    with pytest.raises(SamplesError, match="ascending"):
        dataclasses.replace(CUT, caps=(40, 10))
    with pytest.raises(SamplesError, match="a grade for each of 3 caps"):
        dataclasses.replace(CUT, caps=(10, 40, 50))
    with pytest.raises(SamplesError, match="fields of different lengths"):
        dataclasses.replace(CUT, correct_within=[[True, True]])
    with pytest.raises(SamplesError, match="different architectures"):
        pooled([RUN, dataclasses.replace(RUN, config=None, sample=[2, 3, 2, 3])])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_rule_of_finished_samples_grows_with_the_cap(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 999)))
    lengths = rng.integers(1, 20, 6).tolist()
    problem = ProblemSamples(5, lengths, rng.choice([True, False, None], 6).tolist())
    within = problem.grades_under(np.arange(1, 21))
    assert np.all(np.diff(within, axis=1)[~np.isnan(within[:, 1:])] >= 0)
    np.testing.assert_array_equal(within[:, -1], [np.nan if g is None else g for g in problem.grades])
