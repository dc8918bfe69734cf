"""Costs against published numbers, against the paper's integrals, and what is refused."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.litesys_block_topk import LiteSysBlockTopK
from kinetics_jax.attention.policies.random_blocks import RandomBlocks
from kinetics_jax.attention.policies.sliding_window import SlidingWindow
from kinetics_jax.attention.policies.token_topk import TokenTopK
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.conventions import UPSTREAM_PARAMETERS, CostError
from kinetics_jax.costs.cost import best_of_n_cost, generation_cost, phi
from kinetics_jax.costs.hardware import HARDWARE, Hardware

B200_FP8 = 562.5
TINY = ModelConfig(
    vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=4, name="t"
)


def published(name, prompt, output, trials, attention):
    """Compute and memory of the published code, by its formulas in the plainest arithmetic; I = 562.5."""
    config = ModelConfig.named(name)
    h = config.num_heads * config.head_dim * config.num_layers
    h_kv = config.num_kv_heads * config.head_dim * config.num_layers
    linear = 2 * {"0.6B": 752e6, "8B": 8190e6, "14B": 14770e6, "32B": 32760e6}[name] * output
    if isinstance(attention, Dense):
        compute = (linear + 2 * (2 * prompt + output) * output * h) * trials
        return compute / 1e12, 562.5 * 2 * (2 * prompt + output * trials) * output * h_kv / 1e12
    k, page, local = attention
    budget = k * page + local
    missing = max(0, budget - prompt) ** 2 / 2
    if page == 1:  # of single tokens: no search, and the other sign
        s = budget * output + missing
        return (linear + 4 * s * h) * trials / 1e12, 562.5 * 4 * s * h_kv * trials / 1e12
    s = budget * output - missing
    compute = (linear + 4 * s * h + (2 * prompt + output) // page * output * h) * trials
    memory = 4 * s * h_kv * trials + (2 * prompt + output * trials) // page * output * h_kv
    return compute / 1e12, 562.5 * memory / 1e12


def test_the_published_code_is_reproduced():
    cases = [
        ("0.6B", 8192, 1, Dense(), Dense(), (20.498386, 2299.955, 2320.4534)),
        ("8B", 16384, 1, Dense(), Dense(), (350.00866, 11480.448, 11830.456)),
        ("14B", 16384, 8, Dense(), Dense(), (4778.964, 99342.594, 104121.56)),
        ("32B", 32768, 4, Dense(), Dense(), (13161.806, 317896.3, 331058.11)),
        ("8B", 16384, 32, BlockTopK(pages=64, page_size=16), (64, 16, 0), (8980.5692, 54890.89, 63871.459)),
        ("14B", 8192, 8, BlockTopK(pages=16, page_size=32), (16, 32, 0), (1966.8572, 3457.7842, 5424.6414)),
        ("14B", 8192, 8, LiteSysBlockTopK(pages=16, page_size=32), (16, 32, 0), (1966.8572, 3457.7842, 5424.6414)),
        ("8B", 16384, 1, TokenTopK(1024), (1024, 1, 0), (278.43947, 1416.0306, 1694.4701)),
        ("8B", 16384, 1, SlidingWindow(1028), (1024, 1, 0), (278.43947, 1416.0306, 1694.4701)),  # beside the sinks
    ]
    for name, length, trials, attention, theirs, golden in cases:
        cost = generation_cost(
            ModelConfig.named(f"Qwen/Qwen3-{name}"),
            prompt_tokens=256,
            output_tokens=length,
            trials=trials,
            attention=attention,
            convention="upstream",
            intensity=B200_FP8,
        )
        compute, memory = published(name, 256, length, trials, theirs)
        np.testing.assert_allclose((cost.compute, cost.memory), (compute, memory), rtol=1e-12)
        for ours, digits in zip((cost.compute, cost.memory, cost.total), golden, strict=True):
            assert float(f"{ours:.8g}") == digits  # every digit that was published
        assert cost.seconds is None


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["0.6B", "8B", "14B", "32B"]),
    st.integers(0, 4000),
    st.integers(0, 40000),
    st.integers(1, 64),
    st.integers(3, 99),
    st.sampled_from([2, 16, 100]),
    st.integers(0, 300),
)
def test_upstream_is_the_published_formulas_everywhere(name, prompt, output, trials, k, page, local):
    case = {"prompt_tokens": prompt, "output_tokens": output, "trials": trials, "intensity": B200_FP8}
    for attention, theirs in (
        (Dense(), Dense()),
        (BlockTopK(pages=k, page_size=page), (k, page, 0)),
        (LiteSysBlockTopK(pages=k, page_size=page, local=local), (k, page, local)),
        (TokenTopK(k * page), (k * page, 1, 0)),
    ):
        cost = generation_cost(ModelConfig.named(name), **case, attention=attention, convention="upstream")
        expected = published(name, prompt, output, trials, theirs)
        np.testing.assert_allclose((cost.compute, cost.memory), expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3000), st.integers(1, 5000), st.integers(1, 9), st.integers(5, 80), st.sampled_from([1, 16, 40]))
def test_paper_is_the_integral_over_the_length(prompt, output, trials, pages, size):
    config, ratio = ModelConfig.named("4B"), 300.0
    r, d, p = config.group, config.kv_elements_per_token, config.active_parameters
    budget = pages * size
    kink = np.clip(budget - prompt, 0, output)
    t = np.union1d(np.linspace(0, output, 999), kink)  # piecewise linear: the trapezoid rule is exact between kinks
    attended, held = np.trapezoid(np.minimum(prompt + t, budget), t), np.trapezoid(prompt + t, t)
    case = {"prompt_tokens": prompt, "output_tokens": output, "trials": trials, "intensity": ratio}
    for attention, tokens, search, own_prompt in (
        (Dense(), held, 0.0, False),
        (TokenTopK(budget), attended, 0.0, True),
        (BlockTopK(pages=pages, page_size=size), attended, held / size, True),
    ):
        cost = generation_cost(config, **case, attention=attention, convention="paper")
        flops = trials * (2 * p * output + 2 * r * d * tokens + r * d * search)
        reads = trials * (2 * d * tokens + d * search)  # two bytes; the search reads one vector, half of D
        if not own_prompt:  # dense attention reads the prompt once for all trials
            reads -= (trials - 1) * 2 * d * prompt * output
        np.testing.assert_allclose((cost.compute, cost.memory), (flops / 1e12, ratio * reads / 1e12), rtol=1e-10)


def test_token_topk_with_the_sign_corrected_is_the_papers_form():
    """The published numbers for a budget of 1024, had the code subtracted what the budget holds before it is full."""
    config, case = ModelConfig.named("8B"), {"prompt_tokens": 256, "output_tokens": 16384, "intensity": B200_FP8}
    linear = 2 * UPSTREAM_PARAMETERS["8B"] * 16384 / 1e12
    for policy in (TokenTopK(1024), SlidingWindow(1024), RandomBlocks(budget=1024)):
        cost = generation_cost(config, **case, attention=policy, convention="paper")
        compute = cost.compute - cost.parts["linear"] + linear
        np.testing.assert_allclose((compute, cost.memory), (278.09158, 1367.1082), rtol=1e-7)
    search = generation_cost(config, **case, attention=BlockTopK(budget=1024), convention="paper")
    assert search.parts["search_reads"] > 0
    assert search.parts["kv_reads"] == cost.parts["kv_reads"]


def test_upstream_has_no_formula_for_random_blocks():
    with pytest.raises(CostError, match="no formula for random_blocks"):
        generation_cost(
            ModelConfig.named("8B"),
            prompt_tokens=1,
            output_tokens=9,
            attention=RandomBlocks(pages=4),
            convention="upstream",
        )


def test_a_local_window_adds_to_the_published_budget():
    case = {"prompt_tokens": 256, "output_tokens": 5000, "intensity": B200_FP8, "convention": "upstream"}
    with_window = generation_cost(ModelConfig.named("8B"), **case, attention=LiteSysBlockTopK(pages=60, local=64)).parts
    without = generation_cost(ModelConfig.named("8B"), **case, attention=BlockTopK(pages=64)).parts
    assert with_window == without


def test_the_published_expected_cost_is_reproduced():
    cost = best_of_n_cost(
        ModelConfig.named("14B"),
        prompt_tokens=200,
        output_lengths=[4000, 8000, 16000],
        trials=4,
        convention="upstream",
        intensity=B200_FP8,
    )
    np.testing.assert_allclose((cost.compute, cost.memory, cost.total), (1292.4442, 20815.872, 22108.316), rtol=1e-7)


def test_upstream_goes_negative_where_the_paper_form_equals_dense():
    config, case = ModelConfig.named("8B"), {"prompt_tokens": 100, "output_tokens": 900, "intensity": B200_FP8}
    attention = BlockTopK(budget=2048)
    wrong = generation_cost(config, **case, attention=attention, convention="upstream")
    sparse = generation_cost(config, **case, attention=attention, convention="paper")
    dense = generation_cost(config, **case, convention="paper")
    np.testing.assert_allclose(wrong.parts["kv_reads"], -4.5, atol=0.1)  # a negative amount of memory
    assert sparse.parts["kv_reads"] == dense.parts["kv_reads"]
    assert sparse.parts["attention"] == dense.parts["attention"]
    without_p = dense.total - dense.parts["linear"]
    np.testing.assert_allclose(without_p + 2 * UPSTREAM_PARAMETERS["8B"] * 900 / 1e12, 56.091243, rtol=1e-7)


def test_paper_equations_where_the_prompt_fills_the_budget():
    config, prompt, output, trials, budget, size, ratio = ModelConfig.named("32B"), 4096, 700, 5, 1024, 32, 250.0
    p, r, d = config.active_parameters, config.group, config.kv_elements_per_token
    case = {"prompt_tokens": prompt, "output_tokens": output, "trials": trials, "intensity": ratio}
    dense = generation_cost(config, **case, convention="paper")
    compute = 2 * p * trials * output + 2 * r * trials * prompt * output * d + r * trials * output**2 * d
    memory = 2 * prompt * output * d + trials * output**2 * d
    np.testing.assert_allclose((dense.compute, dense.memory), (compute / 1e12, ratio * memory / 1e12), rtol=1e-12)

    policy = BlockTopK(budget=budget, page_size=size)
    sparse = generation_cost(config, **case, attention=policy, convention="paper")
    attended = trials * d * budget * output
    search = trials * d * (2 * prompt * output + output**2) / (2 * size)
    compute = 2 * trials * p * output + 2 * r * attended + r * search
    memory = 2 * attended + search
    np.testing.assert_allclose((sparse.compute, sparse.memory), (compute / 1e12, ratio * memory / 1e12), rtol=1e-12)


@pytest.mark.parametrize("convention", ["traffic", "paper", "upstream"])
def test_arrays_broadcast(convention):
    config = ModelConfig.named("0.6B")
    prompt, output, trials = np.array([10, 700])[:, None], np.array([1, 30, 4000]), 3
    case = {"attention": BlockTopK(budget=64), "convention": convention, "trials": trials}
    many = generation_cost(config, prompt_tokens=prompt, output_tokens=output, **case)
    assert many.total.shape == (2, 3)
    assert all(part.shape == (2, 3) for part in many.parts.values())
    one = generation_cost(config, prompt_tokens=700, output_tokens=30, **case)
    assert np.ndim(one.total) == 0
    assert many.total[1, 1] == one.total
    assert many.seconds[1, 1] == one.seconds


@pytest.mark.parametrize("convention", ["traffic", "paper", "upstream"])
def test_best_of_n_is_the_mean_over_lengths(convention):
    config, drawn = ModelConfig.named("0.6B"), np.array([5, 900, 77, 900])
    case = {"prompt_tokens": 40, "attention": BlockTopK(budget=64), "convention": convention}
    cost = best_of_n_cost(config, output_lengths=drawn, trials=[1, 3], **case)
    for i, trials in enumerate((1, 3)):
        each = generation_cost(config, output_tokens=drawn, trials=trials, **case)
        np.testing.assert_allclose(cost.total[i], each.total.mean(), rtol=1e-12)
        np.testing.assert_allclose(cost.kv_reads[i], each.kv_reads.mean(), rtol=1e-12)
        np.testing.assert_allclose(cost.total[i], each.mean().total, rtol=1e-12)
        for name, amount in each.mean(axis=0).shared.items():
            np.testing.assert_allclose(cost.shared[name][i], amount, rtol=1e-12)
        scalar = best_of_n_cost(config, output_lengths=drawn, trials=trials, **case)
        assert np.ndim(scalar.total) == 0
        assert scalar.total == cost.total[i]


def test_phi_is_the_ratio_of_the_equations_for_many_trials():
    config, prompt, output = ModelConfig.named("8B"), 256, np.array([1024, 16384])
    case = {"prompt_tokens": prompt, "output_tokens": output, "intensity": B200_FP8, "convention": "paper"}
    cost = generation_cost(config, **case, trials=10**9)
    ratio = (cost.total - cost.parts["linear"]) / cost.parts["linear"]
    np.testing.assert_allclose(phi(config, prompt, output, B200_FP8), ratio, rtol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"convention": "flops"}, "'flops' is not known"),
        ({"output_tokens": -1}, "output_tokens must be whole"),
        ({"output_tokens": 1.5}, "output_tokens must be whole"),
        ({"output_tokens": [1, float("nan")]}, "output_tokens must be whole"),
        ({"trials": 0}, "trials must be whole numbers, at least 1"),
        ({"intensity": 300.0, "hardware": "h100"}, "not both"),
        ({"intensity": 0.0}, "intensity must be positive"),
        ({"kv_bytes": 0}, "must be positive"),
        ({"batch": 0}, "batch must be whole numbers, at least 1"),
        ({"batch": 4, "convention": "paper"}, "no meaning in the paper"),
        ({"shared_prompt": True, "convention": "upstream"}, "no meaning in the upstream"),
        ({"convention": "upstream"}, "no parameter count of 't'"),
        ({"convention": "upstream", "kv_bytes": 1}, "fixes two bytes"),
        ({"attention": "dense"}, "attention must be a policy"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong, message):
    with pytest.raises(CostError, match=message):
        generation_cost(TINY, **{"prompt_tokens": 4, "output_tokens": 4, **wrong})


def test_best_of_n_wants_one_prompt_and_some_lengths():
    for prompt, drawn in ((4, []), (4, 7), ([4, 5], [7])):
        with pytest.raises(CostError, match="a list of output lengths"):
            best_of_n_cost(TINY, prompt_tokens=prompt, output_lengths=drawn, trials=1)


def test_seconds_are_those_of_the_hardware():
    case = {"prompt_tokens": 256, "output_tokens": 8192, "convention": "paper"}
    config = ModelConfig.named("14B")
    cost = generation_cost(config, **case, hardware="b200-fp8")
    np.testing.assert_allclose(cost.additive_seconds, cost.total / 4500)
    np.testing.assert_allclose(cost.seconds, max(cost.compute, cost.memory) / 4500)
    assert generation_cost(config, **case).total == generation_cost(config, **case, hardware=HARDWARE["h100"]).total
    assert cost.roofline == max(cost.compute, cost.memory)
    assert cost.price is None
    assert generation_cost(config, **case, intensity=3.0).price is None


def test_a_calibrated_profile_adds_its_overheads_and_has_its_own_form():
    profile = Hardware("mine", 1e12, 1e10, 1e9, price_per_hour=7.2, step_seconds=3e-3, layer_seconds=1e-4, form="sum")
    case = {"prompt_tokens": 5, "output_tokens": np.array([11, 21]), "trials": 4}
    cost = generation_cost(TINY, **case, hardware=profile, batch=2)
    overhead = np.array([10, 20]) * 4 / 2 * (3e-3 + 3 * 1e-4)
    np.testing.assert_allclose(cost.overhead_seconds, overhead, rtol=1e-12)
    np.testing.assert_allclose(cost.seconds, cost.total + overhead, rtol=1e-12)
    np.testing.assert_allclose(cost.price, cost.seconds * 2e-3, rtol=1e-12)
    overlapped = generation_cost(TINY, **case, hardware=dataclasses.replace(profile, form="max"), batch=2)
    np.testing.assert_allclose(overlapped.seconds, overlapped.roofline + overhead, rtol=1e-12)
    np.testing.assert_allclose(overlapped.additive_seconds, cost.seconds, rtol=1e-12)
    expected = best_of_n_cost(TINY, prompt_tokens=5, output_lengths=[11, 21], trials=4, hardware=profile, batch=2)
    np.testing.assert_allclose(expected.seconds, cost.mean().seconds, rtol=1e-12)
    assert not np.any(generation_cost(TINY, **case, hardware=profile).overhead_seconds)  # a batch would share it


def test_other_architectures_cost_what_their_shapes_say():
    """Llama-3.1-8B and Qwen2.5-7B: parameters and KV bytes as published, and 2P FLOPs a token."""
    shapes = {"hidden_size": 4096, "intermediate_size": 14_336, "num_layers": 32, "num_heads": 32, "num_kv_heads": 8}
    llama = ModelConfig(vocab_size=128_256, **shapes)
    qwen2 = ModelConfig(152_064, 3584, 18_944, 28, 28, 4)
    for config, parameters, kv_bytes in ((llama, 8.03e9, 131_072), (qwen2, 7.62e9, 57_344)):
        assert config.active_parameters == pytest.approx(parameters, rel=1e-3)
        one, two = (generation_cost(config, prompt_tokens=0, output_tokens=n, intensity=1.0) for n in (2, 3))
        assert (two.kv_reads - one.kv_reads) * 1e12 == pytest.approx(2 * kv_bytes)
        without_embedding = parameters - config.vocab_size * config.hidden_size
        assert (two.parts["linear"] - one.parts["linear"]) * 1e12 == pytest.approx(2 * without_embedding, rel=1e-3)


def test_fp8_kv_halves_the_reads_and_leaves_the_arithmetic():
    case = {"prompt_tokens": 300, "output_tokens": 700, "attention": BlockTopK(pages=8), "batch": 4}
    for convention in ("traffic", "paper"):
        extra = case if convention == "traffic" else {**case, "batch": None}
        two, one = (
            generation_cost(TINY, **extra, kv_bytes=kv_bytes, convention=convention, hardware="h100")
            for kv_bytes in (2, 1)
        )
        assert one.compute == two.compute
        assert one.kv_reads == two.kv_reads / 2
        assert one.parts["search_reads"] == two.parts["search_reads"] / 2
        assert one.parts.get("weight_reads") == two.parts.get("weight_reads")
