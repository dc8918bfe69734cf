"""The `traffic` convention against a sum over every token, and what must hold of each of its components."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kinetics_kernels.summaries.registry import summary_names

from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.blocks import BlockPolicy
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.litesys_block_topk import LiteSysBlockTopK
from kinetics_jax.attention.policies.random_blocks import RandomBlocks
from kinetics_jax.attention.policies.sliding_window import SlidingWindow
from kinetics_jax.attention.policies.token_topk import TokenTopK
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.conventions import CostError
from kinetics_jax.costs.cost import best_of_n_cost, generation_cost
from kinetics_jax.stats.estimators import EstimateError

TINY = ModelConfig(
    vocab_size=11, hidden_size=8, intermediate_size=12, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=4, name="t"
)
EXPERTS = dataclasses.replace(TINY, num_experts=8, experts_per_token=2, moe_intermediate_size=6)
GROWING = [f"{kind}_{what}" for kind in ("dense", "forced", "chosen") for what in ("attention", "kv_reads")]
SEARCH = ["search", "top_k", "search_reads"]

dense_layers = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@st.composite
def block_policies(draw):
    sinks, recent = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    blocks = {
        "sink_pages": sinks,
        "recent_pages": recent,
        "pages": draw(st.integers(sinks + recent + 1, 8)),
        "page_size": draw(st.integers(1, 7)),
        "dense_layers": draw(dense_layers),
    }
    if draw(st.booleans()):
        return RandomBlocks(**blocks)
    return BlockTopK(**blocks, summary=draw(st.sampled_from(sorted(summary_names()))))


policies = st.one_of(
    block_policies(),
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


@dataclasses.dataclass
class Step:
    """What one step of one layer attends to and scores."""

    dense: int = 0
    forced: int = 0
    chosen: int = 0
    scored: int = 0  # pages


def whole(length, forced):
    """A step of a sparse layer that attends to everything; `forced`: positions that it would attend to in any case."""
    return Step(forced=len(forced), chosen=length - len(forced))


def sparse_step(attention, length):
    if isinstance(attention, BlockPolicy):
        size = attention.page_size
        pages = [range(start, min(start + size, length)) for start in range(0, length, size)]
        kept = {*range(min(attention.sink_pages, len(pages))), *range(len(pages))[-attention.recent_pages :]}
        forced = [position for page in kept for position in pages[page]]
        if len(pages) <= attention.pages:
            return whole(length, forced)
        step = Step(forced=len(forced), chosen=(attention.pages - len(kept)) * size)
        if isinstance(attention, BlockTopK):
            step.scored = sum(len(page) == size for page in pages)
        return step
    if isinstance(attention, LiteSysBlockTopK):
        threshold = 4 + attention.local + attention.pages * attention.page_size
        while threshold % attention.page_size:
            threshold += 1
        first = range(4, length - attention.local - attention.page_size + 1, attention.page_size)
        blocks = [range(start, start + attention.page_size) for start in first]
        forced = set(range(length)) - {position for block in blocks for position in block}
        if length <= threshold:
            return whole(length, forced)
        return Step(
            forced=len(forced),
            chosen=attention.pages * attention.page_size,
            scored=len(blocks),
        )
    forced = range(length) if isinstance(attention, SlidingWindow) else range(length - 1, length)
    if length <= attention.budget:
        return whole(length, forced)
    forced = min(len(forced), attention.budget)
    return Step(forced=forced, chosen=attention.budget - forced)


def token_by_token(config, prompt, output, trials, attention, kv_bytes, weight_bytes, batch, shared):
    """The oracle: every prefill token, every step of every trial and every layer, one after another."""
    parts = dict.fromkeys(["prefill_linear", "prefill_attention", "linear", *GROWING, *SEARCH], 0.0)
    per_head = 2 * config.head_dim  # multiply and add
    layer_parameters = (config.matmul_parameters - config.vocab_size * config.hidden_size) / config.num_layers
    if batch:
        parts["prefill_weight_reads"] = weight_bytes * config.matmul_parameters if prompt else 0
        parts["weight_reads"] = 0.0

    for position in range(prompt):
        for _ in range(config.num_layers):
            parts["prefill_linear"] += 2 * layer_parameters
            parts["prefill_attention"] += config.num_heads * per_head * 2 * (position + 1)  # scores and values
    parts["prefill_linear"] += 2 * config.vocab_size * config.hidden_size if prompt else 0

    summary = getattr(attention, "summary", "mean")
    vectors = 1 if summary == "mean" else 2
    for trial in range(trials):
        for length in range(prompt + 1, prompt + output):
            parts["linear"] += 2 * config.matmul_parameters
            if batch:
                parts["weight_reads"] += weight_bytes * config.matmul_parameters / batch
            for layer in range(config.num_layers):
                if isinstance(attention, Dense) or layer in attention.dense_layers:
                    step = Step(dense=length)
                else:
                    step = sparse_step(attention, length)
                common = int(shared and trial > 0)  # read for the first trial already
                whole_pages = prompt - prompt % attention.page_size
                for kind in ("dense", "forced", "chosen"):
                    attended = getattr(step, kind)
                    parts[f"{kind}_attention"] += config.num_heads * per_head * 2 * attended
                    read = attended - common * (whole_pages if kind == "dense" and attended else 0)
                    parts[f"{kind}_kv_reads"] += kv_bytes * config.num_kv_heads * 2 * config.head_dim * read
                parts["search"] += config.num_kv_heads * per_head * vectors * step.scored
                parts["top_k"] += config.num_kv_heads * step.scored
                read = vectors * step.scored
                parts["search_reads"] += kv_bytes * config.num_kv_heads * config.head_dim * read
    return parts


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(
    prompt=st.integers(0, 40),
    output=st.integers(0, 60),
    trials=st.integers(1, 3),
    attention=st.one_of(st.just(Dense()), policies),
    kv_bytes=st.sampled_from([1, 2, 4]),
    batch=st.sampled_from([None, 1, 6]),
    shared=st.booleans(),
)
def test_every_part_is_the_sum_over_tokens(prompt, output, trials, attention, kv_bytes, batch, shared):
    case = {"prompt_tokens": prompt, "output_tokens": output, "attention": attention, "intensity": 3.0}
    extra = {"kv_bytes": kv_bytes, "batch": batch, "shared_prompt": shared}
    cost = generation_cost(TINY, **case, **extra, trials=trials)
    expected = token_by_token(TINY, prompt, output, trials, attention, kv_bytes, 2, batch, shared)
    assert set(cost.parts) == set(expected)
    for name, amount in expected.items():
        price = 3.0 if name.endswith("_reads") else 1.0
        np.testing.assert_allclose(cost.parts[name], price * amount / 1e12, rtol=1e-12, atol=1e-30, err_msg=name)
    memory = sum(3.0 * amount for name, amount in expected.items() if name.endswith("_reads"))
    flops = sum(amount for name, amount in expected.items() if not name.endswith("_reads"))
    np.testing.assert_allclose((cost.compute, cost.memory), (flops / 1e12, memory / 1e12), rtol=1e-12, atol=1e-30)
    # What trials share is what one more of them does not add.
    one, two = (generation_cost(TINY, **case, **extra, trials=n).parts for n in (1, 2))
    for name, part in one.items():
        np.testing.assert_allclose(cost.shared.get(name, 0.0), 2 * part - two[name], rtol=1e-9, atol=1e-18)


lengths = st.integers(0, 5000)


@settings(max_examples=100, deadline=None)
@given(
    lengths,
    lengths,
    st.integers(1, 40),
    st.one_of(st.just(Dense()), policies),
    st.sampled_from(["traffic", "paper"]),
    st.booleans(),
)
@example(0, 3, 3, RandomBlocks(pages=3, page_size=1, dense_layers=()), "traffic", True)
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
    assert all(np.all(part >= 0) for part in (*base.parts.values(), *base.shared.values()))
    np.testing.assert_allclose(sum(base.parts.values()), base.total, rtol=1e-12)
    assert base.seconds <= base.additive_seconds <= 2 * base.seconds
    # By whole pages: one more prompt token can close a page, and a searching step then reads less of its current one,
    # or all trials read the page once.
    page = attention.page_size if extra or isinstance(attention, BlockPolicy | LiteSysBlockTopK) else 1
    for other in (
        cost(prompt + page, output, trials),
        cost(prompt, output + 1, trials),
        cost(prompt, output, trials + 1),
    ):
        assert other.compute >= base.compute * (1 - 1e-12)
        assert other.memory >= base.memory * (1 - 1e-12)
        moves = isinstance(attention, LiteSysBlockTopK)
        for name, part in grown_parts(base, moves).items():
            assert grown_parts(other, moves)[name] >= part * (1 - 1e-12), name


def grown_parts(cost, moves: bool):
    """The parts that grow with every length; where tokens can move between forced and chosen (`moves`), their sum does.

    By LiteSys's rule a step that attends to everything chooses nothing: the step that begins to choose has fewer forced
    tokens than the one before.
    """
    if not moves:
        return cost.parts
    found = {}
    for name, part in cost.parts.items():
        name = name.removeprefix("forced_").removeprefix("chosen_")
        found[name] = found.get(name, 0) + part
    return found


def sized(kind, size: int, pages: int):
    """A policy of some kind with a budget of about `pages` times `size` tokens, at least 3 pages or 5 tokens."""
    if kind in (TokenTopK, SlidingWindow):
        return kind(max(pages * size, 5))
    return kind(pages=pages if kind is LiteSysBlockTopK else max(pages, 3), page_size=size)


kinds = st.sampled_from([BlockTopK, RandomBlocks, TokenTopK, SlidingWindow, LiteSysBlockTopK])


@settings(max_examples=100, deadline=None)
@given(
    kinds,
    lengths,
    lengths,
    st.integers(1, 9),
    st.integers(1, 90),
    st.integers(1, 64),
    st.booleans(),
    st.sampled_from(["traffic", "paper"]),
)
def test_a_larger_budget_attends_to_more_and_searches_less(
    kind, prompt, output, trials, pages, size, shared, convention
):
    extra = {"shared_prompt": shared and convention == "traffic", "trials": trials}
    case = {"prompt_tokens": prompt, "output_tokens": output, "convention": convention, **extra}
    less, more = (generation_cost(TINY, **case, attention=sized(kind, size, count)) for count in (pages, pages + 1))
    assert more.kv_reads >= less.kv_reads
    assert more.attention >= less.attention
    for name in less.parts:
        if name in SEARCH:
            assert more.parts[name] <= less.parts[name], name
        else:
            assert more.parts[name] >= less.parts[name] * (1 - 1e-12), name


def test_only_dense_layers_and_whole_pages_share_a_prompt():
    """As the engine: 21 of 23 prompt tokens stand in whole pages of 7, and one of two layers attends to everything."""
    case = {"prompt_tokens": 23, "output_tokens": 5, "trials": 3, "intensity": 1.0}
    policy = BlockTopK(pages=4, page_size=7, dense_layers=(0,))
    config = dataclasses.replace(TINY, num_layers=2)
    apart, together = (generation_cost(config, **case, attention=policy, shared_prompt=on) for on in (False, True))
    saved = {name: apart.parts[name] - together.parts[name] for name in apart.parts}
    token = 2 * config.num_kv_heads * config.head_dim * 2
    assert saved.pop("dense_kv_reads") * 1e12 == pytest.approx((3 - 1) * 4 * 21 * token)
    assert not any(saved.values())
    short = {**case, "prompt_tokens": 6, "attention": policy}
    alone = generation_cost(config, **short)
    assert generation_cost(config, **short, shared_prompt=True).total == alone.total  # no page is full
    with pytest.raises(CostError, match="shared_prompt is for one chip"):
        generation_cost(config, **short, shared_prompt=True, chips=2)


@settings(max_examples=100, deadline=None)
@given(kinds, lengths, lengths, st.integers(1, 9), st.integers(1, 64), st.sampled_from(["traffic", "paper"]))
def test_a_budget_that_is_never_reached_costs_what_dense_costs(kind, prompt, output, trials, size, convention):
    attention = sized(kind, size, max(3, -(-(prompt + output) // size)))
    case = {"prompt_tokens": prompt, "output_tokens": output, "trials": trials, "convention": convention}
    if convention == "paper":
        case["trials"] = 1  # only dense attention shares the prompt there
    sparse, dense = generation_cost(TINY, **case, attention=attention), generation_cost(TINY, **case)
    if convention == "traffic":
        np.testing.assert_allclose((sparse.compute, sparse.memory), (dense.compute, dense.memory), rtol=1e-12)
    for part in ("attention", "kv_reads"):  # equation 9 searches in every step
        np.testing.assert_allclose(getattr(sparse, part), getattr(dense, part), rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(lengths, lengths, st.integers(3, 90), st.integers(1, 64), st.sampled_from([BlockTopK, LiteSysBlockTopK]))
def test_search_is_charged_from_the_first_step_longer_than_the_budget(prompt, output, pages, size, kind):
    attention = sized(kind, size, pages)
    budget = pages * size
    if kind is LiteSysBlockTopK:
        budget = -(-(budget + 4) // size) * size
    cost = generation_cost(TINY, prompt_tokens=prompt, output_tokens=output, attention=attention)
    longest = prompt + output - 1 if output > 1 else 0
    for name in SEARCH:
        assert (cost.parts[name] > 0) == (longest > budget), name


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
        cost = generation_cost(TINY, **case, attention=policy)
        assert not any(cost.parts[name] for name in SEARCH)
    block = generation_cost(TINY, **case, attention=BlockTopK(pages=8, page_size=8))
    assert cost.kv_reads == block.kv_reads  # the last of them has the same pages
    assert block.parts["search_reads"] > 0


def test_what_is_forced_and_what_is_chosen():
    """100 tokens, 20 decode steps, budget 64 throughout: per step and sparse layer, in tokens."""
    case = {"prompt_tokens": 80, "output_tokens": 21, "intensity": 1.0}
    token = 2 * TINY.num_kv_heads * TINY.head_dim * 2 * 2 * 20 / 1e12  # two of three layers are sparse
    for policy, forced, chosen in (
        (TokenTopK(64), 1, 63),
        (SlidingWindow(64), 64, 0),
        (BlockTopK(budget=64, page_size=1), 2, 62),
        (BlockTopK(budget=64, page_size=1, sink_pages=0, recent_pages=9), 9, 55),
        (LiteSysBlockTopK(pages=60, page_size=1), 4, 60),
    ):
        parts = generation_cost(TINY, **case, attention=policy).parts
        np.testing.assert_allclose(parts["forced_kv_reads"], forced * token, rtol=1e-12)
        np.testing.assert_allclose(parts["chosen_kv_reads"], chosen * token, rtol=1e-12)


def test_every_layer_dense_is_dense():
    case, layers = {"prompt_tokens": 300, "output_tokens": 500}, (0, 1, 2, 9)
    for policy in (BlockTopK(pages=3, dense_layers=layers), LiteSysBlockTopK(3, dense_layers=layers)):
        assert generation_cost(TINY, **case, attention=policy).parts == generation_cost(TINY, **case).parts


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
    shared = [reads(max(group), 1) - own(max(group)) for group in combinations(drawn, 3)]
    once = sum(amount for name, amount in cost.shared.items() if name.endswith("_reads"))
    np.testing.assert_allclose(once, np.mean(shared), rtol=1e-12)
    with pytest.raises(EstimateError, match="largest of 6 draws"):
        best_of_n_cost(TINY, prompt_tokens=prompt, output_lengths=drawn, trials=6, **case)


def test_experts_are_read_once_for_all_that_use_them():
    def reads(batch):
        case = {"prompt_tokens": 1, "output_tokens": 2, "intensity": 1.0, "batch": batch}
        parts = generation_cost(EXPERTS, **case).parts
        assert parts["prefill_weight_reads"] * 1e12 == pytest.approx(2 * EXPERTS.matmul_parameters)
        return parts["weight_reads"] * 1e12

    assert reads(1) == pytest.approx(2 * EXPERTS.matmul_parameters)
    expert = 3 * EXPERTS.hidden_size * EXPERTS.moe_intermediate_size
    everything = EXPERTS.matmul_parameters + EXPERTS.num_layers * 6 * expert
    assert reads(10_000) * 10_000 == pytest.approx(2 * everything)
