"""append_kv's TPU kernel in the interpreter, with its race detector, against the reference."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from kinetics_kernels import reference
from kinetics_kernels.ops.append_kv import mosaic_tpu as append

from . import oracle
from .interpreted import interpreted, tpu_races_found


def program(summary="mean", dma="on_wait"):
    # The clock's size is how many copies can be told apart: by default all are one, and never race each other.
    params = pltpu.InterpretParams(detect_races=True, dma_execution_mode=dma, vector_clock_size=64)
    return interpreted(append.append_kv, summary=summary, interpret=params)


programs = functools.cache(program)


def arguments(rng, lengths, dtype="float32", new_dtype=None, summary="mean", pages=32, max_pages=4, **shape):
    """A state and its new tokens. Free pages, and slots beyond the new token's, are NaN; so is that token's own."""
    shape = {"page_size": 8, "head_dim": 128, "max_pages": max_pages, **shape}
    size = shape["page_size"]
    spare = pages - sum(-(-length // size) for length in lengths)
    state = oracle.random_state(rng, lengths, spare_pages=spare, summary=summary, **shape)
    for row, length in enumerate(lengths):
        if length:
            page, slot = state.page_table[row, (length - 1) // size], (length - 1) % size
            state.k_pages[:, page, slot] = state.v_pages[:, page, slot] = np.nan
            if slot == size - 1:
                state.summaries[:, page] = np.nan
    heads = state.k_pages.shape[0]
    new = [jnp.asarray(rng.standard_normal((len(lengths), heads, 128)), new_dtype or dtype) for _ in range(2)]
    pools = [jnp.asarray(a, dtype) for a in (state.k_pages, state.v_pages, state.summaries)]
    return [*pools, *new, jnp.asarray(state.page_table), jnp.asarray(state.lengths)]


def assert_as_reference(args, summary="mean", program=None) -> list[np.ndarray]:
    """K and V to the bit, NaN in its place; summaries up to the order of a float32 sum, rounded once."""
    written = (program or programs(summary))(*args)
    assert not tpu_races_found()
    expected = reference.append_kv(*args, summary=summary)
    for pool, wanted in zip(written[:2], expected[:2], strict=True):
        np.testing.assert_array_equal(np.asarray(pool, np.float32), np.asarray(wanted, np.float32))
    if args[2] is None:
        assert written[2] is None
    else:
        rounding = {"rtol": 2**-8, "atol": 0} if args[2].dtype == jnp.bfloat16 else {"rtol": 1e-6, "atol": 1e-6}
        np.testing.assert_allclose(*(np.asarray(pools[2], np.float32) for pools in (written, expected)), **rounding)
    return written


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(lengths=st.lists(st.sampled_from([0, 1, 7, 8, 9, 16, 24, 32]), min_size=5, max_size=5), seed=st.integers(0, 99))
def test_any_slots_match_the_reference(lengths, seed):
    """First, last and middle slots of a page, idle rows; pages closed at once lie in one tile of summaries or not."""
    assert_as_reference(arguments(np.random.default_rng(seed), lengths))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("summary", "dtype", "new_dtype", "page_size"),
    [
        ("mean", "bfloat16", "float32", 16),
        ("min_max", "bfloat16", "bfloat16", 8),
        ("mean_std", "float32", "bfloat16", 16),
        ("mean_std", "bfloat16", "bfloat16", 64),
    ],
)
def test_summaries_and_dtypes(summary, dtype, new_dtype, page_size):
    lengths = [page_size, 3, 0, 2 * page_size, 2 * page_size - 1]
    shape = {"page_size": page_size, "summary": summary, "pages": 16}
    args = arguments(np.random.default_rng(1), lengths, dtype, new_dtype, **shape)
    written = assert_as_reference(args, summary)
    for row in (0, 3):  # the summary is of the keys as they are stored
        page = args[5][row, lengths[row] // page_size - 1]
        exact = oracle.summary_of(np.asarray(written[0][:, page], np.float64), summary)
        np.testing.assert_allclose(np.asarray(written[2][:, page], np.float64), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, 2])
def test_steps_follow_each_other(rows, monkeypatch):
    """Five sequences, one or two at a time: pages that close in different steps share a tile of summaries."""
    row_bytes = 2 * 128 * 4 * (4 * 8)
    monkeypatch.setattr(append, "BUFFER_BYTES", rows * row_bytes)
    args = arguments(np.random.default_rng(2), [8, 16, 24, 8, 8], pages=16)
    closed = [int(args[5][row, length // 8 - 1]) // append.TILE for row, length in enumerate([8, 16, 24, 8, 8])]
    assert len(set(closed)) == 2
    assert_as_reference(args, program=program())


@pytest.mark.slow
def test_what_names_no_page_writes_nothing():
    """Idle rows, missing pages, ids past the pool and lengths past the table; without summaries, too."""
    args = arguments(np.random.default_rng(3), [16, 16, 16, 8, 8])
    table, lengths = np.array(args[5]), np.array(args[6])
    table[0, 1], table[1, 1], table[2, 1], lengths[3] = -1, 32, 2**30, 48
    args[5], args[6] = jnp.asarray(table), jnp.asarray(lengths)
    written = assert_as_reference(args)
    for pool, before in zip(written, args[:3], strict=True):
        kept = np.array(before[:, table[:3]])
        np.testing.assert_array_equal(np.asarray(pool[:, table[:3]]), kept)
    args[2] = None
    assert_as_reference(args)


@pytest.mark.slow
def test_a_page_is_written_token_by_token():
    """A page filled by sixteen steps holds their keys, and the summary of them, beside its neighbours' NaN."""
    args = arguments(np.random.default_rng(4), [0, 0], dtype="bfloat16", pages=8, page_size=16)
    args[5] = jnp.asarray([[3, -1, -1, -1], [2, -1, -1, -1]])
    keys = jnp.asarray(np.random.default_rng(5).standard_normal((16, 2, 2, 128)), jnp.bfloat16)
    for step in range(16):
        args[3], args[4], args[6] = keys[step], -keys[step], jnp.asarray([step + 1, step])
        args[:3] = programs("mean")(*args)
        assert not tpu_races_found()
    np.testing.assert_array_equal(args[0][:, 3], jnp.swapaxes(keys[:, 0], 0, 1))
    np.testing.assert_array_equal(args[1][:, 2, :15], -jnp.swapaxes(keys[1:, 1], 0, 1))
    exact = np.asarray(keys[:, 0], np.float64).mean(axis=0)
    np.testing.assert_allclose(np.asarray(args[2][:, 3], np.float64), exact, rtol=2**-8)
    for pool in args[:3]:
        assert jnp.isnan(pool[:, jnp.asarray([0, 1, 4, 5, 6, 7])]).all()


@pytest.mark.slow
def test_the_interpreter_sees_a_missing_wait(monkeypatch):
    args = arguments(np.random.default_rng(6), [8, 16, 24, 8, 8])
    monkeypatch.setattr(append, "_await", lambda copy: None)
    try:
        written = program()(*args)
        page = args[5][2, 2]
        assert jnp.isnan(written[0][:, page]).any() or tpu_races_found()
        program(dma="eager")(*args)
        assert tpu_races_found()
    finally:
        pltpu.reset_tpu_interpret_mode_state()


def test_the_interpreter_sees_a_page_out_of_bounds(monkeypatch):
    args = arguments(np.random.default_rng(8), [8, 16, 24, 8, 8])
    tokens = append._tokens

    def past_the_pool(page_table, lengths, num_pages, page_size):
        return tokens(page_table, lengths, num_pages, page_size).at[3].set(num_pages * page_size)

    monkeypatch.setattr(append, "_tokens", past_the_pool)
    try:
        with pytest.raises(Exception, match="IndexError"):
            program()(*args)
    finally:
        pltpu.reset_tpu_interpret_mode_state()


@pytest.mark.slow
def test_the_interpreter_sees_two_writers_of_a_tile(monkeypatch):
    """Without a common holder, two sequences that close pages of one tile race for it."""
    args = arguments(np.random.default_rng(7), [8, 8, 8, 8, 8], pages=8)

    def every_row_holds(pages, rows, tile):
        return jnp.where(pages >= 0, jnp.arange(pages.shape[0]) % rows, -1).astype(jnp.int32)

    monkeypatch.setattr(append, "_first_of_tile", every_row_holds)
    lost = jnp.isnan(program()(*args)[2][:, args[5][:, 0]]).all(axis=(0, 2))
    assert lost.sum() == 4
    program(dma="eager")(*args)
    assert tpu_races_found()


@pytest.mark.parametrize(
    ("pool", "dtype", "reason"),
    [
        ((2, 8, 8, 64), "float32", "a head_dim that is a multiple of 128 .*, not 64"),
        ((2, 8, 4, 128), "float32", "a page_size that is a multiple of 8, not 4"),
        ((2, 9, 8, 128), "float32", "a multiple of 8 pages with summaries of one vector.*, not 9"),
        ((2, 8, 8, 128), "float16", "k_pages in bfloat16 or float32, not float16"),
    ],
)
def test_what_the_kernel_cannot_do_is_named(pool, dtype, reason):
    pages, new = jnp.zeros(pool, dtype), jnp.zeros((1, pool[0], pool[3]))
    table, lengths = jnp.zeros((1, 4), jnp.int32), jnp.ones(1, jnp.int32)
    with pytest.raises(NotImplementedError, match=reason):
        append.append_kv(pages, pages, pages[:, :, 0], new, new, table, lengths)


def test_summaries_of_another_kind_are_refused():
    pages, new = jnp.zeros((2, 8, 8, 128)), jnp.zeros((1, 2, 128))
    args = (pages, pages, pages[:, :, 0], new, new, jnp.zeros((1, 4), jnp.int32), jnp.ones(1, jnp.int32))
    with pytest.raises(ValueError, match="not of kind min_max"):
        append.append_kv(*args, summary="min_max")
    with pytest.raises(ValueError, match="'median' is not known"):
        append.append_kv(*args, summary="median")
