"""Masked decoding against float64, and the rules behind the masks against loops written straight from them."""

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinetics_kernels.reference import litesys_mask

from . import oracle
from .programs import over_programs
from .test_reference import SHAPES, assert_close, drawn_state, run

TIMES = [1, 5, 24, 40]


def mask_of(rule, logits, lengths, **options) -> np.ndarray:
    """A rule under jit, on logits that are NaN from each length on."""
    rows = np.arange(logits.shape[2]) < np.asarray(lengths)[:, None, None]
    poisoned = np.where(rows, logits, np.nan).astype(np.float32)
    return np.asarray(run(rule, poisoned, np.asarray(lengths, np.int32), **options))


def litesys_row(logits: np.ndarray, kv_heads: int, length: int, kind, pages, page_size, tokens, local, sink):
    """The published rule for one sequence: `logits [q_heads, time]` float64 → attended positions of each KV head."""
    group = len(logits) // kv_heads
    everything = set(range(length))
    if kind == "block_topk":
        threshold = sink + local + pages * page_size
        while threshold % page_size:
            threshold += 1
    elif kind == "token_topk":
        threshold = sink + tokens + local
    else:
        threshold = sink + local
    if length <= threshold:
        return [everything] * kv_heads
    if kind == "sliding_window":
        return [{p for p in everything if p < sink or p >= length - local}] * kv_heads
    chosen = []
    for head in range(kv_heads):
        score = [sum(logits[head * group + member, p] for member in range(group)) / group for p in range(length)]
        if kind == "token_topk":
            optional = range(sink, length - local)
            best = sorted(optional, key=lambda p: (-score[p], p))[:tokens]
            kept = set(best)
        else:
            starts = [s for s in range(sink, length, page_size) if s + page_size <= length - local]
            block = {s: range(s, s + page_size) for s in starts}
            optional = [p for s in starts for p in block[s]]
            best = sorted(starts, key=lambda s: (-sum(score[p] for p in block[s]) / page_size, s))[:pages]
            kept = {p for s in best for p in block[s]}
        chosen.append((everything - set(optional)) | kept)
    return chosen


def as_mask(rows, q_heads: int, time: int) -> np.ndarray:
    """Sets of positions, `[batch][kv_heads]`, as a mask `[batch, q_heads, time]`."""
    mask = np.zeros((len(rows), q_heads, time), bool)
    for row, heads in enumerate(rows):
        for head in range(q_heads):
            mask[row, head, sorted(heads[head * len(heads) // q_heads])] = True
    return mask


@pytest.mark.slow
@over_programs(
    {
        "kind": ["block_topk", "token_topk", "sliding_window"],
        "time": TIMES,
        "kv_heads": [1, 2],
        "group": [1, 2, 3],
        "pages": range(1, 5),
        "page_size": range(1, 7),
        "tokens": range(1, 13),
        "local": range(10),
        "sink": [0, 1, 4],
    },
    24,
)
@settings(max_examples=120, deadline=None)
@given(
    data=st.data(),
    fractions=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    spread=st.sampled_from([0, 1, 1000]),
    seed=st.integers(0, 2**16),
)
def test_litesys_rules_match_loops(programs, data, fractions, spread, seed):
    """Whole logits that divide by group and page size: means are exact, so a small spread makes exact ties."""
    sizes = dict(data.draw(programs))
    kind, time, kv_heads, group = (sizes.pop(name) for name in ("kind", "time", "kv_heads", "group"))
    lengths = [round(fraction * time) for fraction in fractions]
    shape = (3, kv_heads * group, time)
    logits = np.random.default_rng(seed).integers(-spread, spread + 1, shape) * group * sizes["page_size"]
    mask = mask_of(litesys_mask, logits, lengths, num_kv_heads=kv_heads, kind=kind, **sizes)
    rows = [
        litesys_row(row.astype(np.float64), kv_heads, n, kind, **sizes) for row, n in zip(logits, lengths, strict=True)
    ]
    np.testing.assert_array_equal(mask, as_mask(rows, shape[1], time))


def test_litesys_block_topk_by_hand():
    """Two blocks of 4 out of five, after four sinks, with two tokens behind the last whole block."""
    logits = np.zeros((1, 2, 26))
    logits[0, :, 8:12], logits[0, :, 20:24], logits[0, 0, 4:8] = 2, 1, 1.5  # the last is 0.75 over the group
    kept = [*range(4), *range(8, 12), *range(20, 24), 24, 25]
    mask = mask_of(litesys_mask, logits, [26], num_kv_heads=1, pages=2, page_size=4)
    assert np.flatnonzero(mask[0, 1]).tolist() == np.flatnonzero(mask[0, 0]).tolist() == kept
    exactly = mask_of(litesys_mask, logits, [24], num_kv_heads=1, pages=1, page_size=4)
    assert np.flatnonzero(exactly[0, 0]).tolist() == [*range(4), *range(8, 12)]  # the current token is dropped
    short = mask_of(litesys_mask, logits, [12], num_kv_heads=1, pages=2, page_size=4)
    assert np.flatnonzero(short[0, 0]).tolist() == list(range(12))  # 4 + 2 * 4 is the threshold


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "strided", "pages": 2, "page_size": 4},
        {"kind": "block_topk", "pages": 2},
        {"kind": "block_topk", "page_size": 4},
        {"kind": "token_topk"},
        {"kind": "sliding_window", "local": -1},
    ],
)
def test_impossible_litesys_rules_are_refused(options):
    with pytest.raises(ValueError, match="litesys_mask"):
        litesys_mask(jnp.zeros((1, 2, 8)), jnp.array([8]), num_kv_heads=1, **options)


@pytest.mark.slow
@over_programs(
    {"time": TIMES, "kv_heads": [1, 2], "group": [1, 3], "tokens": [1, 2, 3, 4, 6, 8, 12, 15, 20, 24, 25, 30]}, 12
)
@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    fractions=st.lists(st.floats(0, 1), min_size=2, max_size=2),
    spread=st.sampled_from([1, 1000]),
    seed=st.integers(0, 2**16),
)
def test_token_topk_holds_the_current_token_and_the_largest(programs, data, fractions, spread, seed):
    time, kv_heads, group, tokens = data.draw(programs).values()
    lengths = [round(fraction * time) for fraction in fractions]
    logits = np.random.default_rng(seed).integers(-spread, spread + 1, (2, kv_heads * group, time)) * group
    mask = mask_of(kernels.token_topk_mask, logits, lengths, num_kv_heads=kv_heads, tokens=tokens)
    rows = []
    for row, length in zip(logits, lengths, strict=True):
        score = row.reshape(kv_heads, group, time).sum(axis=1)
        best = [sorted(range(length - 1), key=lambda p, s=s: (-s[p], p))[: tokens - 1] for s in score]
        rows.append([{*kept, length - 1} if length else set() for kept in best])
    np.testing.assert_array_equal(mask, as_mask(rows, kv_heads * group, time))
    assert mask.sum(axis=-1).max() <= tokens


def test_sliding_window_holds_the_sinks_and_the_last():
    for tokens, sink, lengths in ((7, 4, [0, 3, 7, 8, 20]), (5, 0, [0, 1, 5, 6, 19])):
        mask = np.asarray(kernels.sliding_window_mask(np.array(lengths), 20, tokens=tokens, sink=sink))
        for row, length in zip(mask, lengths, strict=True):
            kept = {p for p in range(length) if p < sink or p >= length - (tokens - sink)}
            assert set(np.flatnonzero(row).tolist()) == kept
            assert len(kept) == min(length, tokens)


@pytest.mark.slow
@over_programs(SHAPES, 8)
@settings(max_examples=30, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_masked_decode_matches_float64(programs, data, seed):
    """Any mask, one per query head, with NaN in K and V wherever no head of a group attends."""
    shape = data.draw(programs)
    state = drawn_state(data, seed, **shape)
    rng = np.random.default_rng(seed + 1)
    batch, q_heads, head_dim = state.q.shape
    time, size = state.page_table.shape[1] * state.page_size, state.page_size
    mask = rng.random((batch, q_heads, time)) < 0.3
    expected = np.zeros(state.q.shape), np.zeros((batch, q_heads))
    for row, length in enumerate(state.lengths):
        for head in range(q_heads):
            keys, values = oracle.tokens_of(state, row, head // shape["group"])
            kept = mask[row, head, :length]
            expected[0][row, head], expected[1][row, head] = oracle.attend(
                state.q[row, head], keys[kept] if length else keys, values[kept] if length else values, head_dim**-0.5
            )
    for row, length in enumerate(state.lengths):
        used = mask[row, :, :length].reshape(shape["kv_heads"], shape["group"], length).any(axis=1)
        for head, position in zip(*np.nonzero(~used), strict=True):
            where = (head, state.page_table[row, position // size], position % size)
            state.k_pages[where] = state.v_pages[where] = np.nan
    logits = run(kernels.token_logits, state.q, state.k_pages, state.page_table, state.lengths)
    assert logits.shape == mask.shape
    for row, length in enumerate(state.lengths):
        assert np.isneginf(logits[row, :, length:]).all()
    out, lse = run(kernels.masked_decode, logits, mask, state.v_pages, state.page_table, state.lengths)
    assert_close(out, expected[0])
    assert_close(lse, expected[1])


@pytest.mark.slow
@pytest.mark.parametrize("page_size", [1, 16, 64])
def test_a_mask_of_everything_is_dense_attention(page_size):
    """Over several passes, and with everything beyond the lengths NaN."""
    state = oracle.random_state(np.random.default_rng(1), [1300, 512, 77, 1, 0], page_size=page_size)
    rest = (state.page_table, state.lengths)
    logits = run(kernels.token_logits, state.q, state.k_pages, *rest)
    mask = np.ones(logits.shape, bool)
    masked = run(kernels.masked_decode, logits, mask, state.v_pages, *rest)
    dense = run(kernels.paged_decode, state.q, state.k_pages, state.v_pages, *rest)
    assert_close(masked[0], dense[0])
    assert_close(masked[1], dense[1])
    with_scale = run(kernels.token_logits, state.q, state.k_pages, *rest, scale=1.0)
    np.testing.assert_allclose(with_scale[0], logits[0] * 4, rtol=1e-6, atol=1e-6)  # head_dim 16


def test_masked_decode_holds_logits_but_no_keys_or_values():
    """The compiled ops' temporaries are a few arrays of the logits' size, far below K and V."""
    tokens = 16_384
    pages = tokens // 16
    logits = jax.ShapeDtypeStruct((2, 8, tokens), jnp.float32)
    pool = jax.ShapeDtypeStruct((4, 2 * pages, 16, 64), jnp.float32)
    rest = (jax.ShapeDtypeStruct((2, pages), jnp.int32), jax.ShapeDtypeStruct((2,), jnp.int32))
    query = jax.ShapeDtypeStruct((2, 8, 64), jnp.float32)
    mask = jax.ShapeDtypeStruct(logits.shape, bool)
    for lowered in (
        jax.jit(kernels.token_logits).lower(query, pool, *rest),
        jax.jit(kernels.masked_decode).lower(logits, mask, pool, *rest),
    ):
        temporaries = lowered.compile().memory_analysis().temp_size_in_bytes
        assert temporaries < 4 * 4 * 2 * 8 * tokens
        assert temporaries < 0.15 * 2 * 4 * 4 * 2 * tokens * 64
