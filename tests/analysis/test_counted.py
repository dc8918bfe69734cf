"""Costs from what samples counted, held to the formulas of every registered policy."""

import dataclasses
import re

import numpy as np
import pytest
from command_line import kinetics
from spellings import every_policy

import kinetics_jax as kj
from kinetics_jax.analysis.adaptive import replay_table
from kinetics_jax.analysis.counted import costs_lines, mark_costs, typical_policy, with_costs_from
from kinetics_jax.analysis.energy import frontier_joules
from kinetics_jax.analysis.frontier import cost_frontier
from kinetics_jax.analysis.planner import list_options
from kinetics_jax.analysis.pricing import Pricing
from kinetics_jax.analysis.samples import RunData, SamplesError, pooled
from kinetics_jax.attention.policies.base import PolicyError
from kinetics_jax.attention.policies.counted import attended, reach_of
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.conventions import CostError
from kinetics_jax.costs.hardware import HARDWARE, hardware

CONFIG = ModelConfig.named("Qwen/Qwen3-0.6B")
PROMPTS, LENGTHS = [7, 30], [[1, 9, 20, 80], [3, 5, 45, 60]]  # of two problems
POLICIES = [policy for policy in every_policy() if policy.price == "formula"]


def pool(policy, *, counts=True, factor=1):
    """Samples that counted what the policy's formula says, times a factor."""
    prompt, length = np.repeat(PROMPTS, 4), np.concatenate(LENGTHS)
    read = policy.counts(prompt.astype(float), np.maximum(length - 1, 0).astype(float), CONFIG.num_layers)
    tokens = np.broadcast_to(read.dense.total + read.forced.total + read.chosen.total, 8) * CONFIG.num_kv_heads
    vectors = np.broadcast_to(read.vectors.total, 8) * CONFIG.num_kv_heads
    run = RunData(
        model=CONFIG.name,
        attention=policy,
        config=CONFIG,
        problem=np.repeat(["a", "b"], 4).tolist(),
        sample=list(range(4)) * 2,
        prompt_tokens=prompt,
        output_tokens=length,
        correct=[True, False, True, False] * 2,
        own={"attended_tokens": (tokens * factor).tolist(), "summary_vectors": vectors.tolist()} if counts else {},
    )
    return pooled([run])


def both(pools):
    return with_costs_from(pools, "formula"), with_costs_from(pools, "counts")


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_counted_costs_are_those_of_the_formula(policy):
    """Exact for whole samples, each by itself; close where a cap cuts them, since only totals are counted: closer for
    budgets that do not grow, as a reach does not.
    """
    formula, counts = both(pool(policy))
    whole = [cost_frontier(pools, batch="fit") for pools in (formula, counts)]
    for column in ("compute", "memory", "cost"):
        np.testing.assert_allclose(whole[1][column], whole[0][column], rtol=1e-9)
    cut = [cost_frontier(pools, caps=[10, 33], batch=None)["cost"].to_numpy() for pools in (formula, counts)]
    np.testing.assert_allclose(cut[1], cut[0], rtol=0.1 if "growing" in policy.kind else 0.02)
    saved = [replay_table(pools)["cost"].to_numpy() for pools in (formula, counts)]
    np.testing.assert_allclose(saved[1], saved[0], rtol=1e-9)
    plans = [
        list_options(pools, HARDWARE["h100"], caps=[80]).table["seconds"].to_numpy() for pools in (formula, counts)
    ]
    np.testing.assert_allclose(plans[1], plans[0], rtol=0.02)


def test_joules_are_of_what_was_counted():
    formula, counts = both(pool(kj.TokenTopK(16)))
    chip = hardware("h100-vllm")
    drawn = [
        frontier_joules(pools, cost_frontier(pools, hardware=chip), Pricing(hardware=chip))
        for pools in (formula, counts)
    ]
    np.testing.assert_allclose(drawn[1], drawn[0], rtol=1e-9)
    (more,) = with_costs_from(pool(kj.TokenTopK(16), factor=2), "counts")
    twice = frontier_joules([more], cost_frontier([more], hardware=chip), Pricing(hardware=chip))
    assert (twice > drawn[1]).all()


def test_a_reach_gives_its_tokens_back():
    rng = np.random.default_rng(0)
    prompt, steps = rng.integers(0, 50, 400).astype(float), rng.integers(0, 90, 400).astype(float)
    everything = prompt * steps + steps * (steps + 1) / 2
    tokens = np.floor(everything * rng.random(400))
    reach, surplus = reach_of(tokens, prompt, steps)
    np.testing.assert_allclose(attended(reach, prompt, steps)[0], tokens, rtol=1e-12, atol=1e-9)
    assert (surplus == 1).all()
    reach, surplus = reach_of(1.5 * everything, prompt, steps)  # a policy that reads tokens twice
    np.testing.assert_allclose(surplus * attended(reach, prompt, steps)[0], 1.5 * everything, rtol=1e-12)


def test_a_typical_policy_gives_all_samples_their_sum():
    for policy in POLICIES:
        (counted,) = with_costs_from(pool(policy), "counts")
        typical = typical_policy(counted)
        prompt, steps = np.repeat(PROMPTS, 4).astype(float), np.maximum(np.concatenate(LENGTHS) - 1, 0).astype(float)
        for name in ("attended", "vectors"):
            found, expected = (
                sum(np.sum(share.total) for share in (read[:3] if name == "attended" else read[4:]))
                for read in (each.counts(prompt, steps, CONFIG.num_layers) for each in (typical, policy))
            )
            assert found == pytest.approx(expected, rel=1e-9), (policy, name)
        assert (str(typical), typical.page_size) == (str(policy), policy.page_size)


def test_a_policy_without_a_formula_is_priced_by_counts_unless_told():
    @dataclasses.dataclass(frozen=True)
    class Unpriced(kj.SlidingWindow):
        kind, price = "unpriced", "measured"  # and a formula that it inherits, and does not stand for

    window = kj.SlidingWindow(16)
    counted = [dataclasses.replace(each, attention=Unpriced(16)) for each in pool(window)]
    (line,) = costs_lines(counted)
    assert line.startswith("Qwen/Qwen3-0.6B unpriced:budget=16: attention and search cost what the samples counted")
    np.testing.assert_allclose(cost_frontier(counted)["cost"], cost_frontier(pool(window))["cost"], rtol=1e-9)
    assert set(mark_costs(cost_frontier(counted), counted)["costs_from"]) == {"counts"}
    assert "costs_from" not in mark_costs(cost_frontier(pool(window)), pool(window))
    with pytest.raises(CostError, match="unpriced:budget=16 has no formula of its cost"):
        cost_frontier(with_costs_from(counted, "formula"))
    with pytest.raises(CostError, match="unpriced:budget=16 has no formula of its cost"):
        list_options(with_costs_from(counted, "formula"), HARDWARE["h100"])
    for convention in ("paper", "upstream"):
        with pytest.raises(PolicyError, match=f"the traffic convention alone, not in {convention}"):
            cost_frontier(counted, convention=convention)


def test_counts_that_contradict_a_formula_are_told():
    for policy in POLICIES:
        assert costs_lines(pool(policy)) == []
    (line,) = costs_lines(pool(kj.TokenTopK(16), factor=2))
    assert re.search(
        r"token_topk:budget=16: its samples counted (\S+) tokens .*, and its formula says (\S+); costs are", line
    )
    assert costs_lines(pool(kj.TokenTopK(16), counts=False)) == []
    assert len(costs_lines(with_costs_from(pool(kj.TokenTopK(16), factor=2), "counts"))) == 1  # which says so


def test_samples_without_counts_are_refused():
    with pytest.raises(SamplesError, match=r"do not say what they read .*or leave out --costs-from counts"):
        with_costs_from(pool(kj.Dense(), counts=False), "counts")
    (half,) = pool(kj.SlidingWindow(16))
    half.problems["b"].own["attended_tokens"][2] = np.nan
    with pytest.raises(SamplesError, match="attended_tokens, summary_vectors"):
        with_costs_from([half], "counts")
    (few,) = pool(kj.SlidingWindow(16), factor=0)
    with pytest.raises(SamplesError, match="fewer tokens than its dense layers attend to"):
        cost_frontier(with_costs_from([few], "counts"))


def test_the_flag_has_no_meaning_elsewhere(tmp_path):
    for more in (("--against", "tokens"), ("--report", tmp_path / "report.html")):
        said = kinetics("frontier", tmp_path, "--costs-from", "counts", *more, code=2).stderr
        assert "leave out --against and --report" in said
    said = kinetics("plan", tmp_path, "--half-width", "0.1", "--costs-from", "counts", code=2).stderr
    assert "leave out --costs-from" in said
