"""Every mixer's decode amounts against a loop over the steps, and prefill and caches against a loop over the tokens."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.costs.architectures.mixers import (
    FullAttention,
    IndexedAttention,
    LatentAttention,
    LinearAttention,
    WindowAttention,
)

FULL = FullAttention(heads=6, kv_heads=2, key_dim=5, value_dim=3)
LATENT = LatentAttention(heads=6, kv_heads=1, key_dim=9, value_dim=7, prompt_dims=(5, 3))
WINDOW = WindowAttention(heads=6, kv_heads=2, key_dim=5, value_dim=3, window=7)
LINEAR = LinearAttention(value_heads=4, key_dim=5, value_dim=3, conv_elements=11)
BY_TOKEN = IndexedAttention(LATENT, budget=6, block=1, index_heads=3, index_dim=4)
BY_BLOCK = IndexedAttention(FULL, budget=8, block=4, index_heads=3, index_dim=4)
ALL = [FULL, LATENT, WINDOW, LINEAR, BY_TOKEN, BY_BLOCK]
KV = 2
lengths = st.integers(0, 40)


def amounts(mixer, prompt, steps, policy=None):
    given_policy = Dense() if policy is None else policy
    found = mixer.decode(given_policy, policy is None, np.float64(prompt), np.float64(steps), KV)
    return {name: float(share.total) for name, share in found.items() if float(share.total)}


def by_steps(mixer, prompt, steps):
    """What the steps at lengths prompt + 1 … prompt + steps attend to, search, and read, one by one."""
    attended = searched = states = 0
    name = "dense"
    for n in range(prompt + 1, prompt + steps + 1):
        if isinstance(mixer, WindowAttention):
            name, attended = "window", attended + min(n, mixer.window)
        elif isinstance(mixer, LinearAttention):
            states += 1
        elif isinstance(mixer, IndexedAttention):
            blocks = n // mixer.block
            kept = min(blocks * mixer.block, mixer.budget)
            attended += kept + n % mixer.block
            searched += blocks if kept < blocks * mixer.block else 0
        else:
            attended += n
    return name, attended, searched, states


@pytest.mark.parametrize("mixer", ALL, ids=lambda mixer: f"{type(mixer).__name__}-{getattr(mixer, 'block', '')}")
@given(prompt=lengths, steps=lengths)
def test_decode_against_a_loop_over_the_steps(mixer, prompt, steps):
    name, attended, searched, states = by_steps(mixer, prompt, steps)
    found = amounts(mixer, prompt, steps)
    inner = getattr(mixer, "inner", mixer)
    expected = {}
    if states:
        state = 4 * 5 * 3
        expected = {"state": states * 7 * state, "state_reads": states * 2 * (4 * state + KV * 11)}
    elif isinstance(mixer, IndexedAttention):
        attention = found.pop("forced_attention", 0) + found.pop("chosen_attention", 0)
        reads = found.pop("forced_kv_reads", 0) + found.pop("chosen_kv_reads", 0)
        assert (attention, reads) == (attended * inner.token_flops, attended * KV * inner.elements)
        expected = {"search": searched * 2 * 3 * 4, "top_k": searched, "search_reads": searched * KV * 4}
    elif attended:
        expected = {
            f"{name}_attention": attended * mixer.token_flops,
            f"{name}_kv_reads": attended * KV * mixer.elements,
        }
    assert found == {name: amount for name, amount in expected.items() if amount}


def test_what_a_token_takes():
    assert FULL.token_flops == 2 * 6 * (5 + 3)
    assert FULL.elements == 2 * (5 + 3)
    assert LATENT.token_flops == 2 * 6 * (9 + 7)  # keys of 9 elements, of which 7 are the value
    assert LATENT.elements == 9


@pytest.mark.parametrize("mixer", ALL, ids=lambda mixer: f"{type(mixer).__name__}-{getattr(mixer, 'block', '')}")
@given(prompt=lengths)
def test_prefill_against_a_loop_over_the_tokens(mixer, prompt):
    flops = 0.0
    for n in range(1, prompt + 1):
        if isinstance(mixer, LinearAttention):
            flops += 7 * 4 * 5 * 3
        elif isinstance(mixer, IndexedAttention):
            each = 2 * 6 * 8  # of both: the latent's heads multiply 5 + 3 elements in prefill
            flops += min(n, mixer.budget) * each + 2 * 3 * 4 * n / mixer.block
        else:
            flops += 2 * 6 * 8 * (min(n, 7) if isinstance(mixer, WindowAttention) else n)
    assert float(mixer.prefill_flops(np.float64(prompt))) == pytest.approx(flops, rel=1e-12)


@given(tokens=st.integers(1, 60), page_size=st.integers(1, 9))
def test_caches_of_whole_pages(tokens, page_size):
    pages = math.ceil(tokens / page_size)
    assert FULL.cache_bytes(tokens, KV, page_size) == KV * 16 * page_size * pages
    # The last 7 tokens lie in this many pages at most, whatever the position.
    touched = max(len({i // page_size for i in range(max(0, end - 7), end)}) for end in range(1, tokens + 1))
    assert WINDOW.cache_bytes(tokens, KV, page_size) == KV * 16 * page_size * touched
    assert BY_BLOCK.cache_bytes(tokens, KV, page_size) == FULL.cache_bytes(tokens, KV, page_size) + KV * 4 * math.ceil(
        tokens / 4
    )
    assert LINEAR.cache_bytes(tokens, KV, page_size) == 4 * 60 + KV * 11


def test_shares_of_the_fullest_chip():
    assert [FULL.largest_share(chips) for chips in (1, 2, 3, 8)] == [1, 0.5, 0.5, 0.5]
    assert LATENT.largest_share(8) == 1  # one latent for all heads: every chip keeps it
    assert LINEAR.largest_share(8) == 0.25
    assert BY_TOKEN.largest_share(4) == 1


@pytest.mark.parametrize("text", ["block_topk:budget=8,page_size=4,sink_pages=0", "token_topk:budget=8"])
def test_a_policy_changes_full_and_latent_attention_alone(text):
    policy = parse_policy(text)
    assert [mixer.follows(policy) for mixer in ALL] == [True, True, False, False, False, False]
    for mixer in (FULL, LATENT):
        sparse = amounts(mixer, 20, 10, policy)
        counts = policy.sparse_counts(np.float64(20), np.float64(10))
        tokens = float(counts.forced.total + counts.chosen.total)
        reads = sparse.get("forced_kv_reads", 0) + sparse.get("chosen_kv_reads", 0)
        assert reads == KV * mixer.elements * tokens
        assert sparse.get("search_reads", 0) == KV * mixer.kv_heads * mixer.key_dim * float(counts.vectors.total)
