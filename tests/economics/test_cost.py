"""Costs against published numbers, against a sum over every token, and against what must hold of any cost."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.config import ModelConfig
from kinetics_jax.economics.conventions import UPSTREAM_PARAMETERS, CostError
from kinetics_jax.economics.cost import best_of_n_cost, generation_cost, phi
from kinetics_jax.economics.estimators import EstimateError
from kinetics_jax.economics.hardware import HARDWARE
from kinetics_jax.policies import (
    SUMMARY_VECTORS,
    BlockPolicy,
    BlockTopK,
    Dense,
    LiteSysBlockTopK,
    RandomBlocks,
    SlidingWindow,
    TokenTopK,
)

B200_FP8 = 562.5
TINY = ModelConfig(
    vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=4, name="t"
)
EXPERTS = dataclasses.replace(TINY, num_experts=8, experts_per_token=2, moe_intermediate_size=6)

dense_layers = st.lists(st.integers(0, 4), max_size=3).map(tuple)
blocks = {"pages": st.integers(3, 8), "page_size": st.integers(1, 7), "dense_layers": dense_layers}
policies = st.one_of(
    st.builds(BlockTopK, **blocks, summary=st.sampled_from(sorted(SUMMARY_VECTORS))),
    st.builds(RandomBlocks, **blocks),
    st.builds(TokenTopK, budget=st.integers(1, 50), dense_layers=dense_layers),
    st.builds(SlidingWindow, budget=st.integers(5, 50), dense_layers=dense_layers),
    st.builds(
        LiteSysBlockTopK,
        pages=st.integers(1, 8),
        page_size=st.integers(1, 7),
        local=st.integers(0, 20),
        dense_layers=dense_layers,
    ),
)


def test_the_published_code_is_reproduced():
    cases = [
        ("0.6B", 8192, 1, Dense(), (20.498386, 2299.955, 2320.4534)),
        ("8B", 16384, 1, Dense(), (350.00866, 11480.448, 11830.456)),
        ("14B", 16384, 8, Dense(), (4778.964, 99342.594, 104121.56)),
        ("32B", 32768, 4, Dense(), (13161.806, 317896.3, 331058.11)),
        ("8B", 16384, 32, BlockTopK(pages=64, page_size=16), (8980.5692, 54890.89, 63871.459)),
        ("14B", 8192, 8, BlockTopK(pages=16, page_size=32), (1966.8572, 3457.7842, 5424.6414)),
        ("14B", 8192, 8, LiteSysBlockTopK(pages=16, page_size=32), (1966.8572, 3457.7842, 5424.6414)),
        ("8B", 16384, 1, TokenTopK(1024), (278.43947, 1416.0306, 1694.4701)),
        ("8B", 16384, 1, SlidingWindow(1028), (278.43947, 1416.0306, 1694.4701)),  # 1024 beside the sinks
    ]
    for name, length, trials, attention, golden in cases:
        cost = generation_cost(
            ModelConfig.named(f"Qwen/Qwen3-{name}"),
            prompt_tokens=256,
            output_tokens=length,
            trials=trials,
            attention=attention,
            convention="upstream",
            intensity=B200_FP8,
        )
        np.testing.assert_allclose((cost.compute, cost.memory, cost.total), golden, rtol=1e-7)
        assert cost.seconds is None


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


def sparse_step(attention, prompt, length):
    """One step of a sparse layer: tokens attended, whether to all, vectors scored, those of them of the prompt."""
    if isinstance(attention, BlockPolicy):
        held = [min(attention.page_size, length - p) for p in range(0, length, attention.page_size)]
        if len(held) <= attention.pages:
            return length, True, 0, 0
        attended = sum(held[-1:] + held[: attention.pages - 1])
        if isinstance(attention, RandomBlocks):
            return attended, False, 0, 0
        vectors = 1 if attention.summary == "mean" else 2
        scored = sum(tokens == attention.page_size for tokens in held)
        return attended, False, vectors * scored, vectors * (prompt // attention.page_size)
    if not isinstance(attention, LiteSysBlockTopK):
        return min(length, attention.budget), length <= attention.budget, 0, 0
    threshold = 4 + attention.local + attention.pages * attention.page_size
    while threshold % attention.page_size:
        threshold += 1
    if length <= threshold:
        return length, True, 0, 0
    first = range(4, length - attention.local - attention.page_size + 1, attention.page_size)
    in_blocks = {token for start in first for token in range(start, start + attention.page_size)}
    attended = length - len(in_blocks) + attention.pages * attention.page_size
    return attended, False, len(first), sum(start + attention.page_size <= prompt for start in first)


def token_by_token(config, prompt, output, trials, attention, kv_bytes, weight_bytes, batch, shared):
    """The oracle of `traffic`: every prefill token, every step of every trial and every layer, one after another."""
    flops, kv, summaries, weights = 0.0, 0.0, 0.0, 0.0
    per_head = 2 * config.head_dim  # multiply and add
    layer_parameters = (config.matmul_parameters - config.vocab_size * config.hidden_size) / config.num_layers

    for position in range(prompt):
        for _ in range(config.num_layers):
            flops += 2 * layer_parameters
            flops += config.num_heads * per_head * 2 * (position + 1)  # scores and values
    flops += 2 * config.vocab_size * config.hidden_size if prompt else 0
    weights += weight_bytes * config.matmul_parameters if prompt else 0

    for trial in range(trials):
        length = prompt
        for _ in range(output - 1):
            length += 1
            flops += 2 * config.matmul_parameters
            weights += weight_bytes * config.matmul_parameters / (batch or 1)
            for layer in range(config.num_layers):
                attended, of_prompt, scored, scored_prompt = length, prompt, 0, 0
                if layer not in getattr(attention, "dense_layers", range(99)):
                    attended, whole, scored, scored_prompt = sparse_step(attention, prompt, length)
                    of_prompt = prompt if whole else 0
                if shared and trial > 0:
                    read, read_summaries = attended - of_prompt, scored - scored_prompt
                else:
                    read, read_summaries = attended, scored
                flops += config.num_heads * per_head * 2 * attended + config.num_kv_heads * per_head * scored
                kv += kv_bytes * config.num_kv_heads * 2 * config.head_dim * read
                summaries += kv_bytes * config.num_kv_heads * config.head_dim * read_summaries
    return flops, kv + summaries + (weights if batch else 0)


@settings(max_examples=200, deadline=None)
@given(
    prompt=st.integers(0, 40),
    output=st.integers(0, 60),
    trials=st.integers(1, 3),
    attention=st.one_of(st.just(Dense()), policies),
    kv_bytes=st.sampled_from([1, 2, 4]),
    batch=st.sampled_from([None, 1, 6]),
    shared=st.booleans(),
)
def test_traffic_is_the_sum_over_tokens(prompt, output, trials, attention, kv_bytes, batch, shared):
    cost = generation_cost(
        TINY,
        prompt_tokens=prompt,
        output_tokens=output,
        trials=trials,
        attention=attention,
        intensity=3.0,
        kv_bytes=kv_bytes,
        batch=batch,
        shared_prompt=shared,
    )
    flops, read = token_by_token(TINY, prompt, output, trials, attention, kv_bytes, 2, batch, shared)
    np.testing.assert_allclose((cost.compute, cost.memory), (flops / 1e12, 3.0 * read / 1e12), rtol=1e-12, atol=1e-30)


lengths = st.integers(0, 5000)


@settings(max_examples=60, deadline=None)
@given(
    lengths,
    lengths,
    st.integers(1, 40),
    st.one_of(st.just(Dense()), policies),
    st.sampled_from(["traffic", "paper"]),
    st.booleans(),
)
def test_costs_grow_with_lengths_and_trials_and_are_never_negative(prompt, output, trials, attention, convention, more):
    extra = {"batch": 8, "shared_prompt": True} if more and convention == "traffic" else {}

    def cost(prompt, output, trials):
        return generation_cost(
            EXPERTS,
            prompt_tokens=prompt,
            output_tokens=output,
            trials=trials,
            attention=attention,
            convention=convention,
            **extra,
        )

    base = cost(prompt, output, trials)
    assert all(np.all(part >= 0) for part in base.parts.values())
    np.testing.assert_allclose(sum(base.parts.values()), base.total, rtol=1e-12)
    assert base.seconds <= base.additive_seconds <= 2 * base.seconds
    # By whole pages: one more prompt token can close a page, and a searching step then reads less of its current one.
    page = attention.page_size if isinstance(attention, BlockPolicy | LiteSysBlockTopK) else 1
    for other in (
        cost(prompt + page, output, trials),
        cost(prompt, output + 1, trials),
        cost(prompt, output, trials + 1),
    ):
        assert other.compute >= base.compute * (1 - 1e-12)
        assert other.memory >= base.memory * (1 - 1e-12)


def sized(kind, size: int, pages: int):
    """A policy of some kind with a budget of about `pages` times `size` tokens, at least 3 pages or 5 tokens."""
    if kind in (TokenTopK, SlidingWindow):
        return kind(max(pages * size, 5))
    return kind(pages=pages if kind is LiteSysBlockTopK else max(pages, 3), page_size=size)


kinds = st.sampled_from([BlockTopK, RandomBlocks, TokenTopK, SlidingWindow, LiteSysBlockTopK])


@settings(max_examples=100, deadline=None)
@given(kinds, lengths, lengths, st.integers(1, 90), st.integers(1, 64), st.booleans())
def test_a_larger_budget_reads_more_kv_and_searches_less(kind, prompt, output, pages, size, shared):
    def parts(pages):
        attention = sized(kind, size, pages)
        case = {"prompt_tokens": prompt, "output_tokens": output, "attention": attention, "shared_prompt": shared}
        return generation_cost(TINY, **case).parts

    less, more = parts(pages), parts(pages + 1)
    assert more["kv_reads"] >= less["kv_reads"]
    assert more["attention"] >= less["attention"]
    assert more["search_reads"] <= less["search_reads"]


@settings(max_examples=100, deadline=None)
@given(kinds, lengths, lengths, st.integers(1, 9), st.integers(1, 64), st.sampled_from(["traffic", "paper"]))
def test_a_budget_that_is_never_reached_costs_what_dense_costs(kind, prompt, output, trials, size, convention):
    attention = sized(kind, size, max(3, -(-(prompt + output) // size)))
    case = {"prompt_tokens": prompt, "output_tokens": output, "trials": trials, "convention": convention}
    if convention == "traffic":
        case["shared_prompt"] = size % 2 == 0
    else:
        case["trials"] = 1  # only dense attention shares the prompt there
    sparse, dense = generation_cost(TINY, **case, attention=attention), generation_cost(TINY, **case)
    if convention == "traffic":
        np.testing.assert_allclose((sparse.compute, sparse.memory), (dense.compute, dense.memory), rtol=1e-12)
    for part in ("attention", "kv_reads"):  # equation 9 searches in every step
        np.testing.assert_allclose(sparse.parts[part], dense.parts[part], rtol=1e-12)


@settings(max_examples=40, deadline=None)
@given(lengths, lengths, st.integers(3, 90), st.integers(1, 64))
def test_two_vectors_a_page_double_the_search_and_nothing_else(prompt, output, pages, size):
    def parts(summary):
        policy = BlockTopK(pages=pages, page_size=size, summary=summary)
        return generation_cost(TINY, prompt_tokens=prompt, output_tokens=output, attention=policy).parts

    one = parts("mean")
    for kind in ("min_max", "mean_std"):
        two = parts(kind)
        assert {name: two[name] / (2 if name.startswith("search") else 1) for name in two} == one


def test_what_is_not_searched_costs_no_search():
    case = {"prompt_tokens": 100, "output_tokens": 900}
    for policy in (TokenTopK(64), SlidingWindow(64), RandomBlocks(pages=8, page_size=8)):
        parts = generation_cost(TINY, **case, attention=policy).parts
        assert parts["search"] == parts["search_reads"] == 0
    block = generation_cost(TINY, **case, attention=BlockTopK(pages=8, page_size=8)).parts
    assert parts["kv_reads"] == block["kv_reads"]  # the last of them has the same pages
    assert block["search_reads"] > 0


def test_every_layer_dense_is_dense():
    case, layers = {"prompt_tokens": 300, "output_tokens": 500}, (0, 1, 2, 9)
    for policy in (BlockTopK(pages=3, dense_layers=layers), LiteSysBlockTopK(3, dense_layers=layers)):
        assert generation_cost(TINY, **case, attention=policy).parts == generation_cost(TINY, **case).parts


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
        np.testing.assert_allclose(cost.parts["kv_reads"][i], each.parts["kv_reads"].mean(), rtol=1e-12)
        scalar = best_of_n_cost(config, output_lengths=drawn, trials=trials, **case)
        assert np.ndim(scalar.total) == 0
        assert scalar.total == cost.total[i]


def test_a_shared_prompt_is_read_until_the_longest_trial_ends():
    drawn, prompt, attention = [3, 50, 20, 50, 31], 17, BlockTopK(pages=4, page_size=4)
    case = {"attention": attention, "shared_prompt": True, "intensity": 1.0}
    cost = best_of_n_cost(TINY, prompt_tokens=prompt, output_lengths=drawn, trials=3, **case)

    def reads(output, trials):
        return generation_cost(TINY, prompt_tokens=prompt, output_tokens=output, trials=trials, **case).memory

    def own(output):  # of one more trial that shares everything
        return reads(output, 2) - reads(output, 1)

    groups = [sum(map(own, group)) + reads(max(group), 1) - own(max(group)) for group in combinations(drawn, 3)]
    np.testing.assert_allclose(cost.memory, np.mean(groups), rtol=1e-12)
    with pytest.raises(EstimateError, match="largest of 6 draws"):
        best_of_n_cost(TINY, prompt_tokens=prompt, output_lengths=drawn, trials=6, **case)


def test_experts_are_read_once_for_all_that_use_them():
    def reads(batch):
        case = {"prompt_tokens": 1, "output_tokens": 2, "intensity": 1.0, "batch": batch}
        return generation_cost(EXPERTS, **case).parts["weight_reads"] * 1e12 - 2 * EXPERTS.matmul_parameters

    assert reads(1) == pytest.approx(2 * EXPERTS.matmul_parameters)
    expert = 3 * EXPERTS.hidden_size * EXPERTS.moe_intermediate_size
    everything = EXPERTS.matmul_parameters + EXPERTS.num_layers * 6 * expert
    assert reads(10_000) * 10_000 == pytest.approx(2 * everything)


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
        ({"batch": 0}, "batch must be at least 1"),
        ({"batch": 4, "convention": "paper"}, "no meaning in the paper"),
        ({"shared_prompt": True, "convention": "upstream"}, "no meaning in the upstream"),
        ({"convention": "upstream"}, "no parameter count of 't'"),
        ({"convention": "upstream", "kv_bytes": 1}, "fixes two bytes"),
        ({"attention": "dense"}, "attention dense is not defined"),
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
