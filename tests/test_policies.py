"""Spellings of policies, and what is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.policies import BlockTopK, Dense, PolicyError, Sampling, parse_policy, slug

block_topk = st.builds(
    lambda sink, recent, more, size, layers: BlockTopK(
        pages=sink + recent + more, page_size=size, sink_pages=sink, recent_pages=recent, dense_layers=tuple(layers)
    ),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(1, 100),
    st.integers(1, 128),
    st.lists(st.integers(0, 40), max_size=3),
)


@given(policy=block_topk | st.just(Dense()))
def test_every_policy_survives_printing_and_parsing(policy):
    assert parse_policy(str(policy)) == policy
    assert not set(slug(policy)) & set(":,=+/ ")


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
        ("block_topk:pages=8,summary=median", "known: mean"),
        ("block_topk:pages=8,window=3", "not an option"),
    ],
)
def test_impossible_policies_say_why(text, says):
    with pytest.raises(PolicyError, match=says):
        parse_policy(text)


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1},
        {"temperature": 1e-38},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 1},
        {"max_tokens": 0},
        {"seed": -1},
    ],
)
def test_impossible_sampling_is_refused(setting):
    with pytest.raises(PolicyError, match=next(iter(setting))):
        Sampling(**setting)
