"""Votes against every draw and every tie, one by one."""

import dataclasses
from collections import Counter, defaultdict
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.analysis.rules import rule_accuracy
from kinetics_jax.analysis.samples import RunData, SamplesError, pooled
from kinetics_jax.analysis.votes import majority_vote, weighted_vote
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.stats.estimators import EstimateError, pass_at_k

RIGHT = "42"


def by_hand(answers, weights, k):
    """The share of victories of the right answer over all sets of k samples."""
    shares = []
    for chosen in combinations(range(len(answers)), k):
        score = defaultdict(float)
        for i in chosen:
            if answers[i] is not None:
                score[answers[i]] += weights[i]
        best = max(score.values(), default=None)
        winners = [answer for answer, votes in score.items() if votes == best]
        shares.append(winners.count(RIGHT) / len(winners) if winners else 0)
    return np.mean(shares)


votes = st.lists(st.sampled_from([RIGHT, "1", "2", "3", None]), min_size=1, max_size=9)


@settings(max_examples=150, deadline=None)
@given(votes, st.data())
def test_a_majority_is_the_mean_over_all_draws_and_ties(answers, data):
    k = data.draw(st.integers(1, len(answers)))
    correct = [answer == RIGHT for answer in answers]
    exact = by_hand(answers, np.ones(len(answers)), k)
    np.testing.assert_allclose(majority_vote(answers, correct, k), exact, rtol=1e-12, atol=1e-15)
    weights = data.draw(st.lists(st.sampled_from([0.25, 0.5, 2.0]), min_size=len(answers), max_size=len(answers)))
    np.testing.assert_allclose(
        weighted_vote(answers, correct, weights, k), by_hand(answers, weights, k), rtol=1e-12, atol=1e-15
    )


def test_right_answers_in_several_spellings_are_one():
    answers, correct = ["1/2", "0.5", "2", "2", "3"], [True, True, False, False, False]
    assert majority_vote(answers, correct, 5) == 0.5
    assert majority_vote(answers, [True, True, False, True, False], 5) == 1


def test_what_a_vote_can_do():
    answers, correct = [RIGHT] * 20 + ["1"] * 8 + ["2"] * 4, [True] * 20 + [False] * 12
    accuracy = majority_vote(answers, correct, [1, 2, 4, 8, 16, 32])
    np.testing.assert_allclose(accuracy[:2], 20 / 32)  # of two votes that differ, either wins
    assert np.all(np.diff(accuracy[1:]) > 0)
    assert accuracy[-1] == pytest.approx(1, abs=1e-12)
    assert np.all(accuracy <= pass_at_k(32, 20, [1, 2, 4, 8, 16, 32]) + 1e-12)
    assert majority_vote(answers, [False] * 32, 4) == 0
    assert majority_vote([None] * 3, [False] * 3, 2) == 0
    assert majority_vote([None, RIGHT], [False, True], 1) == 0.5


@pytest.mark.parametrize("seed", [0, 1])
def test_draws_come_close_to_the_expectation_and_are_reproducible(seed):
    rng = np.random.default_rng(seed)
    answers = rng.choice([RIGHT, "1", "2"], 256, p=[0.4, 0.35, 0.25]).tolist()
    correct = [answer == RIGHT for answer in answers]
    exact = majority_vote(answers, correct, 16)
    drawn = weighted_vote(answers, correct, np.ones(256), 16, seed=seed)
    assert abs(drawn - exact) < 4 * 0.5 / np.sqrt(4000)
    assert drawn == weighted_vote(answers, correct, np.ones(256), 16, seed=seed)
    longer = answers + [RIGHT] * 9  # more samples than the exact way takes
    assert majority_vote(longer, correct + [True] * 9, 16) > exact - 0.03
    assert Counter(answers)[RIGHT] < 128


def test_weights_decide():
    answers, correct = [RIGHT, "1", "1"], [True, False, False]
    assert weighted_vote(answers, correct, [3, 1, 1], 3) == 1
    assert weighted_vote(answers, correct, [2, 1, 1], 3) == 0.5
    assert weighted_vote(answers, correct, [0, 0, 0], 3) == 0.5
    assert weighted_vote(answers, correct, [0.3, 0.1, 0.2], 3) == 0.5  # 0.1 + 0.2 is 0.30000000000000004


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: majority_vote(["1"], [True], 2), "whole 1 <= k <= 1"),
        (lambda: majority_vote([], [], 1), "needs samples"),
        (lambda: majority_vote([None], [True], 1), "right and has no answer"),
        (lambda: weighted_vote(["1"], [True], [-1.0], 1), "finite weight"),
        (lambda: weighted_vote(["1"], [True], [1, 2], 1), "finite weight"),
    ],
)
def test_what_is_no_vote_is_refused(call, message):
    with pytest.raises(EstimateError, match=message):
        call()


def test_wrong_answers_are_one_however_they_are_spelled():
    answers = ["1/2", "0.5", "2", "2.0", r"$2.00$"]
    correct = [True, True, False, False, False]
    assert majority_vote(answers, correct, 5) == 0
    assert majority_vote(answers, correct, 2) == pytest.approx(1 / 10 + 6 / 10 / 2)  # both right, or one each
    assert majority_vote(["x", "1/3", "0.3333333", r"\frac{1}{3}"], [True, False, False, False], 4) == 0
    assert majority_vote(["x", "(1,2)", "(2,1)"], [True, False, False], 3) == pytest.approx(1 / 3)


def test_the_undecided_vote_and_are_not_right():
    run = RunData(
        model="m",
        attention=Dense(),
        config=None,
        problem=["a"] * 4 + ["b"] * 2,
        sample=[0, 1, 2, 3, 0, 1],
        prompt_tokens=[None] * 6,
        output_tokens=[None] * 6,
        correct=[True, False, False, None, True, False],
        answers=[RIGHT, "1", "1", RIGHT, RIGHT, None],
    )
    (pool,) = pooled([run], undecided="drop")
    np.testing.assert_allclose(rule_accuracy(pool, "majority", [1, 2]), [[1 / 3, 1 / 3], [1 / 2, 1]])
    (pool,) = pooled([run])  # the right one loses to a pair of "1", and ties with each of the others
    np.testing.assert_allclose(rule_accuracy(pool, "majority", [1, 2]), [[1 / 4, 1 / 4], [1 / 2, 1]])
    (silent,) = pooled([dataclasses.replace(run, answers=())])
    with pytest.raises(
        SamplesError, match="m dense: no majority, since what the samples answered is not known; fill in"
    ):
        rule_accuracy(silent, "majority", [1])
