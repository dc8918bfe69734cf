"""Adaptive sampling against every order of the samples: what it solves, draws and costs, exactly."""

import dataclasses
from itertools import permutations

import numpy as np
import pytest

from kinetics_jax.analysis.adaptive import ProblemCosts, StopRule, _expected, replay, replay_table
from kinetics_jax.analysis.samples import RunData, SamplesError, pooled
from kinetics_jax.analysis.vote_stopping import decide, lead_probability
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig

RIGHT = np.array([True, False, False, True, False])
OWN = np.array([5.0, 1.0, 2.0, 4.0, 8.0])
SHARED = np.array([0.5, 0.1, 0.2, 0.4, 0.8])
COSTS = ProblemCosts(OWN, SHARED, 10.0, list(range(5)))
RULES = [
    StopRule(most=5),
    StopRule(most=4, wave=2),
    StopRule(most=5, wave=2, probe=2),
    StopRule(most=5, wave=2, probe=3, until_solved=False),
    StopRule(most=4, wave=3, until_solved=False),
    StopRule(most=5, wave=1, probe=1),
]


def by_hand(order, rule):
    """Cost and number of the samples of one order."""
    spent, drawn = 10.0, 0
    while drawn < rule.most:
        seen = RIGHT[list(order[:drawn])]
        if rule.until_solved and seen.any():
            break
        if rule.probe is not None and drawn >= rule.probe and not seen[: rule.reach].any():
            break
        wave = list(order[drawn : min(drawn + rule.wave, rule.most)])
        spent += OWN[wave].sum() + SHARED[wave].max()
        drawn += len(wave)
    return spent, drawn


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_expectations_are_those_of_all_orders(rule):
    each = [by_hand(order, rule) for order in permutations(range(5))]
    np.testing.assert_allclose(_expected(RIGHT, COSTS, rule), np.mean(each, axis=0), rtol=1e-12)


def test_orders_of_problems_that_are_all_right_or_all_wrong():
    for right, drawn in ((np.ones(5, bool), 1), (np.zeros(5, bool), 5)):
        spent, count = _expected(right, COSTS, StopRule(most=5))
        assert count == pytest.approx(drawn)
        assert spent == pytest.approx(10 + drawn * (OWN + SHARED).mean())


def voted(order, labels, stop, most, wave):
    """Whether 0 wins, cost and number of one order, by the rule's words."""
    for drawn in range(1, most + 1):
        if drawn % wave and drawn < most:
            continue
        counts = sorted(np.bincount([x for x in labels[list(order[:drawn])] if x >= 0], minlength=2), reverse=True)
        first, second = counts[:2]
        if drawn == most or first - second > most - drawn or (
            stop == "likely" and lead_probability(int(first), int(second)) >= 0.95
        ):  # fmt: skip
            break
    votes = np.bincount([x for x in labels[list(order[:drawn])] if x >= 0], minlength=2)
    leaders = np.flatnonzero(votes == votes.max()) if votes.max() else []
    waves = [list(order[i : min(i + wave, drawn)]) for i in range(0, drawn, wave)]
    cost = sum(OWN6[each].sum() + SHARED6[each].max() for each in waves)
    return (0 in leaders) / max(len(leaders), 1), cost, drawn


OWN6, SHARED6 = np.append(OWN, 3.0), np.append(SHARED, 0.3)


@pytest.mark.parametrize(("stop", "wave"), [("certain", 1), ("certain", 2), ("likely", 1)])
def test_stopping_by_votes_is_within_its_noise_of_all_orders(stop, wave):
    labels = np.array([0, 0, 0, 0, 1, -1])
    every = np.array([voted(order, labels, stop, 6, wave) for order in permutations(range(6))])
    in_full = voted(range(6), labels, "certain", 6, 6)[0]
    got = decide(labels, 0, OWN6, SHARED6, stop=stop, most=6, wave=wave, orders=4000)
    right, cost, drawn = every.mean(axis=0)
    assert abs(got.gain + in_full - right) <= 4 * got.gain_noise + 1e-9
    assert abs(got.spent - cost) <= 4 * got.spent_noise + 1e-9
    assert 0 < got.spent_noise < 0.2
    assert abs(got.drawn - drawn) < 0.1
    if stop == "certain":
        assert got.gain == got.gain_noise == 0  # the answer of all six, at less


def test_the_lead_is_that_of_a_uniform_prior():
    assert lead_probability(0, 0) == 0.5
    assert lead_probability(4, 0) == pytest.approx(1 - 1 / 32)  # Adaptive-Consistency stops after four of one answer
    assert lead_probability(3, 0) == pytest.approx(1 - 1 / 16)  # and not after three
    assert lead_probability(5, 2) == pytest.approx(1 - lead_probability(2, 5))


def run(**changes):
    rng = np.random.default_rng(0)
    said = rng.choice(["4", "4", "7", "5"], 60)
    return dataclasses.replace(
        RunData(
            model="Qwen/Qwen3-0.6B",
            attention=Dense(),
            config=ModelConfig.named("0.6B"),
            problem=[f"p{i}" for i in range(6) for _ in range(10)],
            sample=list(range(10)) * 6,
            prompt_tokens=[100] * 60,
            output_tokens=rng.integers(100, 900, 60).tolist(),
            correct=[answer == "4" for answer in said],
            answers=said.tolist(),
        ),
        **changes,
    )


def test_votes_stand_beside_the_oracle():
    pools = pooled([run()])
    table = replay_table(pools, trials=[8])
    assert table["stop"].tolist() == ["solved", "certain", "likely"]
    assert table["rule"].tolist() == ["pass", "majority", "majority"]
    solved, certain, likely = table.to_dict("records")
    assert solved["accuracy_noise"] == solved["cost_noise"] == certain["accuracy_noise"] == 0
    assert certain["accuracy"] == pytest.approx(certain["fixed_accuracy"])
    assert likely["samples"] <= certain["samples"] < 8
    assert 0 < likely["cost_noise"] < 0.02 * likely["cost"]
    assert abs(likely["accuracy"] - likely["fixed_accuracy"]) < 0.1
    assert "arXiv 2305.11860" in table.attrs["picks"][0]
    again = replay_table(pools, trials=[8])
    assert table.equals(again)
    mute = pooled([run(answers=())])
    beside = replay_table(mute, trials=[8])
    assert beside["stop"].tolist() == ["solved"]
    assert "No stopping by votes for Qwen/Qwen3-0.6B dense: what the samples answered is not known." in beside.attrs[
        "picks"
    ]  # fmt: skip
    for rule, says in (("majority", "no majority, since"), ("weighted", "by what is right .pass. or by votes")):
        with pytest.raises(SamplesError, match=says):
            replay_table(mute, rule=rule)


def test_methods_with_costs_of_their_own_are_sampled_adaptively():
    pools = pooled([run(config=None, own={"cost": [2.0] * 60})])
    got = replay(pools[0], StopRule(most=8))
    assert got.cost == pytest.approx(2 * got.samples)
    (row,) = replay_table(pools, trials=[8], rule="pass").to_dict("records")
    assert row["fixed_cost"] == pytest.approx(16)
    assert row["batch_rule"] == "own"
