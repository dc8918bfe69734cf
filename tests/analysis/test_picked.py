"""What a majority and a verifier pick of N answers, beside pass@N."""

import dataclasses
import warnings
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.analysis.frontier import cost_frontier
from kinetics_jax.analysis.picked import COLUMNS, contradictions
from kinetics_jax.analysis.planner import PlanError, list_options
from kinetics_jax.analysis.readers import read_all
from kinetics_jax.analysis.rule_names import rule_line
from kinetics_jax.analysis.rules import lacks, lacks_words, rule_accuracy
from kinetics_jax.analysis.samples import RunData, SamplesError, pooled
from kinetics_jax.analysis.token_frontier import token_frontier
from kinetics_jax.analysis.votes import best_by_score
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.hardware import HARDWARE
from kinetics_jax.stats.estimators import EstimateError

ANSWERS = ["4", "4", "7", None, "5", "5", "5", "4"]
SCORES = [0.9, 0.2, 0.5, 0.1, 0.9, 0.3, 0.2, 0.8]


def run(texts=(ANSWERS, ANSWERS[::-1]), rated=(SCORES, SCORES[::-1]), **changes) -> RunData:
    said = [answer for problem in texts for answer in problem]
    return dataclasses.replace(
        RunData(
            model="Qwen/Qwen3-0.6B",
            attention=Dense(),
            config=ModelConfig.named("0.6B"),
            problem=[f"p{i}" for i, problem in enumerate(texts) for _ in problem],
            sample=[j for problem in texts for j in range(len(problem))],
            prompt_tokens=[20] * len(said),
            output_tokens=[100 + 10 * i for i in range(len(said))],
            correct=[answer == "4" for answer in said],
            answers=said,
            scores=[score for problem in rated for score in problem],
        ),
        **changes,
    )


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from([-1.5, 0.0, 2.0]), st.booleans()), min_size=1, max_size=8), st.data())
def test_the_best_by_score_is_the_mean_over_all_draws_and_ties(samples, data):
    k = data.draw(st.integers(1, len(samples)))
    scores, right = zip(*samples, strict=True)
    each = []
    for drawn in combinations(range(len(samples)), k):
        most = max(scores[i] for i in drawn)
        each.append(np.mean([right[i] for i in drawn if scores[i] == most]))
    np.testing.assert_allclose(best_by_score(scores, right, k), np.mean(each), atol=1e-12)
    np.testing.assert_allclose(best_by_score(scores, right, [k, 1]), [np.mean(each), np.mean(right)], atol=1e-12)


def test_a_frontier_has_columns_for_every_rule_that_can_pick():
    table = cost_frontier([run()], trials=[1, 2, 8])
    (pool,) = pooled([run()])
    for rule, by in COLUMNS.items():
        expected = rule_accuracy(pool, by, [1, 2, 8]).mean(axis=0)
        np.testing.assert_allclose(table[rule], expected, atol=1e-12)
        assert (table[f"{rule}_low"] <= table[rule]).all()
        assert (table[f"{rule}_high"] >= table[rule]).all()
        np.testing.assert_allclose(table[rule][0], 3 / 8)  # one answer, whichever is picked
        assert (table[rule] <= table["accuracy"] + 1e-12).all()
    assert table["majority"][2] == pytest.approx(0.5)  # three "4" and three "5" of eight tie
    assert table["best_score"][2] == pytest.approx(0.5)  # of two samples at 0.9 one is right
    assert table.attrs["picks"] == [rule_line("pass")]
    against_tokens = token_frontier([run()], trials=[1, 2, 8])
    np.testing.assert_allclose(against_tokens["majority"], table["majority"])


def test_what_cannot_pick_is_said_in_a_line():
    bare = cost_frontier([run(scores=())])
    assert "best_score" not in bare
    assert "majority" in bare
    silent = cost_frontier([run(answers=(), scores=())])
    assert "majority" not in silent
    assert silent.attrs["picks"][1:] == ["No majority beside it: what the samples answered is not known."]
    negative = cost_frontier([run(rated=([-1.0] * 8, SCORES))])
    assert "best_score" in negative
    assert negative.attrs["picks"][1:] == ["No weighted vote beside it: a vote cannot be weighed by scores below 0."]
    (pool,) = pooled([run(rated=([None, *SCORES[1:]], SCORES))])
    assert lacks_words(pool, "best-of-verifier") == "1 of 16 samples have no score"
    with pytest.raises(SamplesError, match=r"Qwen3-0\.6B dense: no best score, since 1 of 16 .*; fill those in"):
        rule_accuracy(pool, "best-of-verifier", [2])
    single = cost_frontier([run()], trials=[1])
    assert "majority" not in single
    assert "picks" not in single.attrs


def test_a_sample_that_is_cut_has_no_say():
    (pool,) = pooled([run()])
    cut = cost_frontier([run()], trials=[8], caps=[170, 250])
    assert list(cut["cap"]) == [170, 250]
    # of p0 all end within 170 tokens, of p1 none does; of p1 all end within 250
    np.testing.assert_allclose(cut["majority"], [0.25, 0.5])
    np.testing.assert_allclose(rule_accuracy(pool, "best-of-verifier", [8], 170)[:, 0], [0.5, 0.0])
    graded = run(caps=[170], correct_within=[(answer == "4",) for answer in (*ANSWERS, *ANSWERS[::-1])])
    (pool,) = pooled([graded])
    assert "is not stored" in str(lacks(pool, "majority", 170))
    assert lacks(pool, "majority", 250) is None
    table = cost_frontier([graded], trials=[8], caps=[170, 250])
    assert list(table["majority"].isna()) == [True, False]
    assert "No majority for" in table.attrs["picks"][1]


def test_tables_bring_scores(tmp_path):
    path = tmp_path / "scored.csv"
    rows = [
        f"{problem},{i},120,{int(answer == '4')},Qwen3-0.6B,30,{answer or ''},{score}"
        for problem in ("a", "b")
        for i, (answer, score) in enumerate(zip(ANSWERS, SCORES, strict=True))
    ]
    path.write_text("\n".join(["problem,sample,tokens,correct,model,prompt_tokens,answer,score", *rows]) + "\n")
    (pool,) = pooled(read_all([path]))
    np.testing.assert_allclose(rule_accuracy(pool, "best-of-verifier", [8])[:, 0], 0.5)
    np.testing.assert_allclose(pool.problems["a"].scores, SCORES)


def test_a_plan_counts_what_is_picked():
    pools = pooled([run()])
    table = list_options(pools, HARDWARE["h100"], rule="majority", caps=[250]).table
    assert set(table["N"]) == {1, 2, 4, 8}
    by_n = table.drop_duplicates("N").set_index("N")["accuracy"]
    np.testing.assert_allclose(by_n[8], 0.5)
    np.testing.assert_allclose(by_n[1], 3 / 8)
    with pytest.raises(EstimateError, match=r"--trials 16: .* has 8 graded samples"):
        list_options(pools, HARDWARE["h100"], rule="majority", trials=[16], caps=[250])
    silent = pooled([run(answers=(), scores=())])
    with pytest.raises(
        PlanError, match=r"--rule majority: .* what the samples answered is not known; fill in a column answer"
    ):
        list_options(silent, HARDWARE["h100"], rule="majority")


def test_answers_that_contradict_grades_are_named_once(tmp_path):
    def read(*rows):
        path = tmp_path / "t.csv"
        path.write_text("\n".join(["problem,sample,tokens,prompt_tokens,model,answer,correct", *rows]) + "\n")
        return pooled(read_all([path]))

    model = "9,9,Qwen/Qwen3-0.6B"
    odd = read(f"a,0,{model},7,1", f"a,1,{model},7,0", f"b,0,{model},3,1", f"b,1,{model},4,0")
    for table in (cost_frontier, token_frontier):
        with pytest.warns(UserWarning, match="contradict each other in problem 'a': '7' is right in some") as caught:
            table(odd)
        assert len([each for each in caught if "contradict" in str(each.message)]) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            table(odd, trials=[1])  # nothing is picked
    assert any("contradict" in line for line in list_options(odd, HARDWARE["h100"]).warnings)
    even = read(f"a,0,{model},7,1", f"a,1,{model},7,", f"b,0,{model},3,0", f"b,1,{model},3,0")
    assert contradictions(even) is None  # an undecided sample says nothing, nor do two problems of one answer
