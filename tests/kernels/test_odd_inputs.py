"""Integers of any dtype, empty batches and empty tables are served; heads that do not divide are refused by name."""

import functools

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
import pytest

from . import oracle


@pytest.fixture(scope="module")
def state() -> oracle.Paged:
    return oracle.random_state(np.random.default_rng(0), [11, 6, 0])


def every_op(state: oracle.Paged, table: np.ndarray, lengths: np.ndarray, **options) -> dict:
    """The results of every op that takes a table and lengths."""
    batch = len(lengths)
    q, new = state.q[:batch], np.ones((batch, 2, 16), np.float32)
    pools = (state.k_pages, state.v_pages)
    logits = kernels.token_logits(q, pools[0], table, lengths)
    mask = kernels.token_topk_mask(logits, lengths, num_kv_heads=2, tokens=4)
    return {
        "append_kv": kernels.append_kv(*pools, state.summaries, new, new, table, lengths, **options),
        "select_pages": kernels.select_pages(q, state.summaries, table, lengths, page_size=4, pages=3, **options),
        "paged_decode": kernels.paged_decode(q, *pools, table, lengths, **options),
        "block_topk_decode": kernels.block_topk_decode(q, *pools, state.summaries, table, lengths, pages=3, **options),
        "token_logits": logits,
        "litesys_mask": kernels.litesys_mask(
            logits, lengths, num_kv_heads=2, kind="token_topk", tokens=3, local=1, sink=1
        ),
        "masked_decode": kernels.masked_decode(logits, mask, pools[1], table, lengths),
    }


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["int8", "uint32"])
def test_tables_and_lengths_of_any_integer_dtype(state, dtype):
    """Unsigned tables cannot say -1: theirs names page 0 there, beyond every length."""
    table = np.maximum(state.page_table, 0) if dtype.startswith("u") else state.page_table
    served = jax.jit(functools.partial(every_op, state))
    plain = served(table, state.lengths)
    same = served(table.astype(dtype), state.lengths.astype(dtype))
    for expected, actual in zip(jax.tree.leaves(plain), jax.tree.leaves(same), strict=True):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["xla", "triton"])
def test_an_empty_batch(state, backend):
    """A kernel would have no program to run: the reference answers, whatever was forced."""
    empty = every_op(state, state.page_table[:0], state.lengths[:0], backend=backend)
    assert empty["paged_decode"][0].shape == (0, 4, 16)
    assert empty["block_topk_decode"][1].shape == (0, 4)
    assert empty["select_pages"][0].shape == (0, 2, 3)
    assert empty["masked_decode"][0].shape == (0, 4, 16)
    np.testing.assert_array_equal(empty["append_kv"][0], state.k_pages)


def test_a_table_without_pages(state):
    table, lengths = np.zeros((3, 0), np.int32), np.zeros(3, np.int32)
    out, lse = kernels.paged_decode(state.q, state.k_pages, state.v_pages, table, lengths)
    assert not np.asarray(out).any()
    assert np.all(np.asarray(lse) == -np.inf)


def test_heads_that_do_not_divide(state):
    q = np.ones((3, 5, 16), np.float32)
    rest = (state.page_table, state.lengths)
    logits = jnp.zeros((3, 5, 12))
    calls = {
        "paged_decode": lambda: kernels.paged_decode(q, state.k_pages, state.v_pages, *rest),
        "select_pages": lambda: kernels.select_pages(q, state.summaries, *rest, page_size=4, pages=3),
        "token_logits": lambda: kernels.token_logits(q, state.k_pages, *rest),
        "masked_decode": lambda: kernels.masked_decode(logits, logits > 0, state.v_pages, *rest),
        "token_topk_mask": lambda: kernels.token_topk_mask(logits, rest[1], num_kv_heads=2, tokens=3),
        "litesys_mask": lambda: kernels.litesys_mask(logits, rest[1], num_kv_heads=2, kind="sliding_window", local=2),
    }
    for op, call in calls.items():
        with pytest.raises(ValueError, match=f"^{op}: 5 query heads are no multiple of 2 KV heads$"):
            call()
