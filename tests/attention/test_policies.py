"""Spellings of policies, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kinetics_kernels.summaries.registry import summary_names

import kinetics_jax
from kinetics_jax.attention.policies.base import PolicyError
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.litesys_block_topk import LiteSysBlockTopK
from kinetics_jax.attention.policies.random_blocks import RandomBlocks
from kinetics_jax.attention.policies.registry import POLICIES, parse_policy, slug
from kinetics_jax.attention.policies.sliding_window import SlidingWindow
from kinetics_jax.attention.policies.token_topk import TokenTopK

small, layers = st.integers(0, 3), st.lists(st.integers(0, 40), max_size=3).map(tuple)
blocks = st.builds(
    lambda sink, recent, more, size, layers: {
        "pages": sink + recent + more,
        "page_size": size,
        "sink_pages": sink,
        "recent_pages": recent,
        "dense_layers": layers,
    },
    small,
    st.integers(1, 3),
    st.integers(1, 100),
    st.integers(1, 128),
    layers,
)
policies = st.one_of(
    st.just(Dense()),
    st.builds(lambda common, summary: BlockTopK(**common, summary=summary), blocks, st.sampled_from(summary_names())),
    st.builds(lambda common: RandomBlocks(**common), blocks),
    st.builds(TokenTopK, budget=st.integers(1, 9999), dense_layers=layers),
    st.builds(
        lambda sink, more, layers: SlidingWindow(budget=sink + more, sink_tokens=sink, dense_layers=layers),
        st.integers(0, 9),
        st.integers(1, 99),
        layers,
    ),
    st.builds(
        LiteSysBlockTopK, pages=st.integers(1, 99), page_size=st.integers(1, 99), local=small, dense_layers=layers
    ),
)


@given(policy=policies)
def test_every_policy_survives_printing_and_parsing(policy):
    assert parse_policy(str(policy)) == policy
    assert not set(slug(policy)) & set(":,=+/ ")


def test_canonical_spellings():
    """Short where everything is at its default; what is spelled is what was meant."""
    for text, policy in {
        "dense": Dense(),
        "block_topk:budget=1024,page_size=16": BlockTopK(budget=1024),
        "block_topk:budget=1024,page_size=16,summary=min_max": BlockTopK(pages=64, summary="min_max"),
        "random_blocks:budget=64,page_size=4,recent_pages=2": RandomBlocks(pages=16, page_size=4, recent_pages=2),
        "token_topk:budget=256": TokenTopK(256),
        "token_topk:budget=256,dense_layers=none": TokenTopK(256, dense_layers=()),
        "sliding_window:budget=256": SlidingWindow(256),
        "sliding_window:budget=256,sink_tokens=0,dense_layers=0+3": SlidingWindow(256, 0, dense_layers=(3, 0)),
        "litesys_block_topk:pages=64,page_size=16": LiteSysBlockTopK(64),
        "litesys_block_topk:pages=1,page_size=128,local=32": LiteSysBlockTopK(1, 128, 32),
    }.items():
        assert str(policy) == text
        assert parse_policy(text) == policy


def test_every_policy_is_public_and_says_its_page_size():
    for policy in POLICIES.values():
        assert getattr(kinetics_jax, policy.__name__) is policy
    assert BlockTopK(pages=4, page_size=2).page_size == RandomBlocks(pages=4, page_size=2).page_size == 2
    assert LiteSysBlockTopK(4, page_size=2).page_size == 2
    assert Dense().page_size == TokenTopK(4).page_size == SlidingWindow(5).page_size == 16


def test_budget_and_pages_are_two_spellings_of_one_thing():
    assert BlockTopK(budget=1024) == BlockTopK(pages=64) == parse_policy("block_topk:pages=64,page_size=16")
    assert str(BlockTopK(budget=1024)) == "block_topk:budget=1024,page_size=16"
    assert parse_policy("block_topk:budget=96,page_size=2,dense_layers=none").dense_layers == ()
    assert parse_policy("block_topk:budget=96,page_size=2,dense_layers=0+2").dense_layers == (0, 2)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sparse", "known: dense, block_topk"),
        ("dense:budget=3", "dense takes no options"),
        ("block_topk", "give budget"),
        ("block_topk:budget=100,page_size=16", "nearest below is 96"),
        ("block_topk:budget=1024,pages=3", "disagree"),
        ("block_topk:pages=2", "the least is pages=3"),
        ("block_topk:pages=8,recent_pages=0", "recent_pages must be at least 1"),
        ("block_topk:pages=8,sink_pages=-1", "sink_pages must not be negative"),
        ("block_topk:pages=8,page_size=0", "page_size must be at least 1"),
        ("block_topk:pages=eight", "not a whole number"),
        ("block_topk:pages=8,pages=9", "given twice"),
        ("block_topk:pages", "needs a value"),
        ("block_topk:pages=8,summary=median", "known: mean, min_max, mean_std"),
        ("random_blocks:pages=8,summary=mean", "not an option"),
        ("random_blocks:pages=2", "random_blocks: 2 pages leave none"),
        ("random_blocks:pages=8,dense_layers=-1", "dense_layers counts from 0"),
        ("token_topk", "give budget="),
        ("token_topk:budget=8,page_size=4", "not an option"),
        ("token_topk:budget=8,dense_layers=-1", "dense_layers counts from 0"),
        ("sliding_window", "give budget="),
        ("sliding_window:budget=4", "the least is budget=5"),
        ("sliding_window:budget=4,sink_tokens=-1", "sink_tokens must not be negative"),
        ("litesys_block_topk:page_size=8", "pages must be at least 1"),
        ("litesys_block_topk:pages=8,page_size=0", "page_size must be at least 1"),
        ("litesys_block_topk:pages=8,local=-1", "local must be at least 0"),
        ("block_topk:pages=8,window=3", "not an option"),
    ],
)
def test_impossible_policies_say_why(text, says):
    with pytest.raises(PolicyError, match=says):
        parse_policy(text)


def test_kinds_keep_their_place():
    """Figures give each kind its dashes by place: a new policy comes last."""
    kinds = ["dense", "block_topk", "token_topk", "sliding_window", "random_blocks", "litesys_block_topk"]
    assert list(POLICIES)[: len(kinds)] == kinds
