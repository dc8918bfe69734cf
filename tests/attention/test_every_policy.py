"""What must hold for every registered policy, by the spellings and the rule in policies/test_<kind>.py."""

import dataclasses

import numpy as np
import pytest
from masked_forward import attended
from spellings import every_policy, spelled

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.registry import POLICIES, parse_policy
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.conventions import CostError
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.costs.memory import kv_bytes_per_token

LONGEST = 60
CONFIG = ModelConfig.named("Qwen/Qwen3-0.6B")


each_policy = pytest.mark.parametrize("policy", every_policy(), ids=str)


@pytest.mark.parametrize("kind", POLICIES)
def test_its_own_test_names_it(kind):
    assert {policy.kind for policy in spelled(kind)} == {kind}


@each_policy
def test_the_spelling_is_read_back(policy: AttentionPolicy):
    assert parse_policy(str(policy)) == policy
    assert hash(policy) == hash(parse_policy(str(policy)))  # settings of a jitted step


@each_policy
def test_counts_are_what_the_rule_attends_to(policy: AttentionPolicy):
    """Position by position: as many tokens as the policy's own rule keeps, never more than the budget.

    A price that is an upper bound is never exceeded, and reached somewhere.
    """
    rng = np.random.default_rng(0)
    query, keys = rng.standard_normal((2, 8)), rng.standard_normal((LONGEST, 8))
    draws = rng.random(LONGEST)
    lengths = np.arange(1.0, LONGEST + 1)
    kept = [len(attended(policy, query, keys[:length], draws.__getitem__)) for length in range(1, LONGEST + 1)]
    counts = policy.step_counts(lengths)
    total = np.add(counts.forced, counts.chosen)
    if policy.price == "upper bound":
        assert np.all(kept <= total)
        assert np.any(kept == total)
    else:
        np.testing.assert_array_equal(total, kept)
    assert not policy.budget or max(kept) <= policy.budget
    if policy.summary_vectors:
        assert np.any(counts.vectors), "a policy that keeps summaries reads them"


@each_policy
def test_sums_are_sums_of_steps(policy: AttentionPolicy):
    """The closed form, where there is one, against step after step; the general one, against both."""
    prompt, steps = np.arange(0.0, 30.0, 7.0)[:, None], np.array([0.0, 1.0, 9.0, 30.0])
    closed, general = (
        sums(prompt, steps) for sums in (policy.sparse_counts, lambda *p: AttentionPolicy.sparse_counts(policy, *p))
    )
    each = policy.step_counts(np.arange(1.0, LONGEST + 1))
    for name in ("forced", "chosen", "scores", "vectors"):
        of_step = np.broadcast_to(getattr(each, name), LONGEST)
        expected = [[of_step[int(p) : int(p + n)].sum() for n in steps] for p in prompt[:, 0]]
        for counts in (closed, general):
            total = np.broadcast_to(getattr(counts, name).total, np.shape(expected))
            np.testing.assert_array_equal(total, expected, err_msg=name)
    whole = [np.broadcast_to(c.forced.prompt + c.chosen.prompt, (5, 4)) for c in (closed, general)]
    if not policy.is_dense(10**6):
        # What trials can share of K and V. LiteSys's leftover can cover a whole sequence that its closed form searches.
        assert np.all(whole[0] <= whole[1])


@each_policy
def test_costs_are_those_counts(policy: AttentionPolicy):
    """`traffic` against a sum over layers and steps of what each reads, in every byte and FLOP of attention."""
    prompt, output = 5, 40
    cost = generation_cost(CONFIG, prompt_tokens=prompt, output_tokens=output, attention=policy, intensity=1.0)
    head, heads, group = CONFIG.head_dim, CONFIG.num_kv_heads, CONFIG.group
    tokens = vectors = 0.0
    for length in range(prompt + 1, prompt + output):
        for layer in range(CONFIG.num_layers):
            if policy.is_dense(layer):
                tokens += length
            else:
                step = policy.step_counts(np.array([float(length)]))
                tokens += float(np.sum(step.forced) + np.sum(step.chosen))
                vectors += float(np.sum(step.vectors)) * policy.searches(layer)
    assert cost.kv_reads == pytest.approx(2 * 2 * heads * head * tokens / 1e12, rel=1e-12)
    assert cost.attention == pytest.approx(2 * 2 * group * heads * head * tokens / 1e12, rel=1e-12)
    assert cost.parts["search_reads"] == pytest.approx(2 * heads * head * vectors / 1e12, rel=1e-12)


@each_policy
def test_every_convention_answers_or_refuses_by_name(policy: AttentionPolicy):
    asked = {"prompt_tokens": 5, "output_tokens": 40, "attention": policy}
    assert generation_cost(CONFIG, convention="paper", **asked).total > 0
    if policy.upstream_counts(np.float64(5), np.float64(40), np.float64(1)) is not None:
        assert np.isfinite(generation_cost(CONFIG, convention="upstream", **asked).total)
    else:
        with pytest.raises(CostError, match=f"no formula for {policy.kind}"):
            generation_cost(CONFIG, convention="upstream", **asked)


@each_policy
def test_summaries_take_memory(policy: AttentionPolicy):
    plain = kv_bytes_per_token(CONFIG)
    sparse = sum(map(policy.searches, range(CONFIG.num_layers))) / CONFIG.num_layers
    extra = sparse * policy.summary_vectors / (2 * policy.page_size)
    assert kv_bytes_per_token(CONFIG, policy) == pytest.approx(plain * (1 + extra))


@each_policy
def test_the_ops_it_names_are_those_it_calls(policy: AttentionPolicy, monkeypatch):
    """What `kinetics doctor` says of a policy, against one traced step."""
    import jax
    import kinetics_kernels as kernels
    import one_step

    called = set()

    def noted(name, op):
        def call(*args, **options):
            called.add(name)
            return op(*args, **options)

        return call

    for name in ("choose_pages", "score_pages", "token_logits", "masked_decode", "merge_partials"):
        monkeypatch.setattr(kernels, name, noted(name, getattr(kernels, name)))
    policy = dataclasses.replace(policy, dense_layers=()) if policy.dense_layers else policy

    def attention():
        step = one_step.step_of(policy, jax.random.split(jax.random.key(0), 1), size=policy.page_size)
        ops = {name: noted(name, getattr(step.ops, name)) for name in ("select_pages", "paged_decode")}
        return policy.attend_and_carry(dataclasses.replace(step, ops=dataclasses.replace(step.ops, **ops)))

    jax.eval_shape(attention)
    assert called == set(policy.ops)


@each_policy
def test_settings_are_frozen(policy: AttentionPolicy):
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.dense_layers = ()
