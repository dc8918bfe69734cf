"""The TPU scoring kernel in the interpreter, with its race detector, and the selection made from it."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental.pallas import tpu as pltpu
from kinetics_kernels.ops.select_pages import mosaic_tpu as select

from . import oracle


def interpret(dtype="float32", dma="on_wait", cores=1):
    """The TPU interpreter for float32. It has no `ref.bitcast`, which bfloat16 needs: the plain one checks those."""
    if dtype == "bfloat16":
        return True
    return pltpu.InterpretParams(detect_races=True, dma_execution_mode=dma, num_cores_or_threads=cores)


def races_found() -> bool:
    assert interpreter.races is not None
    return interpreter.races.races_found


def random_state(lengths, dtype="float32", seed=0, **shape) -> oracle.Paged:
    """Pages of two tokens: many pages from few tokens. The pool is even, its summaries rounded to `dtype`."""
    state = oracle.random_state(np.random.default_rng(seed), lengths, head_dim=128, page_size=2, **shape)
    state.summaries = np.array(jnp.asarray(state.summaries, dtype), np.float32)
    return state


def even_pool(state: oracle.Paged, dtype) -> jnp.ndarray:
    summaries = np.pad(state.summaries, ((0, 0), (0, state.summaries.shape[1] % 2), (0, 0)), constant_values=np.nan)
    return jnp.asarray(summaries, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("lengths", "shape", "cores"),
    [
        ([300, 0, 31, 5], {"kv_heads": 2, "group": 3}, 1),
        ([0, 0, 258], {"kv_heads": 3, "group": 1}, 1),
        ([256, 3, 0, 40], {"kv_heads": 1, "group": 5}, 2),
    ],
)
def test_scores_and_selection_match_float64(lengths, shape, cores, dtype):
    """Rows without a page, blocks that end with a row, odd and even pages; summaries of free pages are NaN."""
    state = random_state(lengths, dtype, **shape)
    used = -(-state.lengths // 2)
    pool = even_pool(state, dtype)
    scores = select.page_scores(
        jnp.asarray(state.q),
        pool,
        jnp.asarray(state.page_table),
        used,
        block_pages=128,
        interpret=interpret(dtype, cores=cores),
    )
    assert dtype == "bfloat16" or not races_found()
    assert scores.shape == (len(lengths), shape["kv_heads"], state.page_table.shape[1])
    query = state.q.astype(np.float64).reshape(len(lengths), shape["kv_heads"], shape["group"], 128).mean(axis=2)
    for row, length in enumerate(lengths):
        full = length // 2  # the current page, if it is not full, has no summary
        stored = state.summaries.astype(np.float64)[:, state.page_table[row, :full]]
        expected = np.einsum("hd,hpd->hp", query[row], stored)
        np.testing.assert_allclose(scores[row, :, :full], expected, rtol=2e-5, atol=2e-5)
    selected, covered = select.select_pages(
        jnp.asarray(state.q),
        pool,
        jnp.asarray(state.page_table),
        jnp.asarray(state.lengths),
        page_size=2,
        pages=7,
        block_pages=128,
        interpret=interpret(dtype, cores=cores),
    )
    for row, length in enumerate(lengths):
        for head in range(shape["kv_heads"]):
            chosen = oracle.choose_pages(state, row, head, pages=7, sink=1, recent=1)
            physical = [int(state.page_table[row, page]) for page in chosen]
            assert selected[row, head].tolist() == physical + [-1] * (7 - len(physical))
            assert covered[row, head] == sum(min((page + 1) * 2, length) - page * 2 for page in chosen)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_ties_go_to_the_lower_page(dtype):
    """Equal summaries score alike wherever they lie, in either half of a pair."""
    state = random_state([280], kv_heads=1, poison=0.0)
    state.summaries[:] = np.random.default_rng(1).standard_normal(128)
    selected, _ = select.select_pages(
        jnp.asarray(state.q),
        even_pool(state, dtype),
        jnp.asarray(state.page_table),
        jnp.asarray(state.lengths),
        page_size=2,
        pages=5,
        block_pages=128,
        interpret=interpret(dtype),
    )
    assert selected[0, 0].tolist() == state.page_table[0, [0, 1, 2, 3, 139]].tolist()


def test_the_interpreter_sees_a_missing_wait(monkeypatch):
    state = random_state([36, 22], poison=0.0)
    arrays = (jnp.asarray(state.q), even_pool(state, "float32"), jnp.asarray(state.page_table), -(-state.lengths // 2))
    assert np.isfinite(select.page_scores(*arrays, block_pages=128, interpret=interpret())[0, :, :18]).all()
    monkeypatch.setattr(select, "_await", lambda *_: None)
    try:
        scores = select.page_scores(*arrays, block_pages=256, interpret=interpret())
        assert np.isnan(scores[0, :, :18]).any()
        select.page_scores(*arrays, block_pages=256, interpret=interpret(dma="eager"))
        assert races_found()
    finally:
        pltpu.reset_tpu_interpret_mode_state()


@pytest.mark.parametrize(
    ("pool", "dtype", "options", "reason"),
    [
        ((2, 8, 128), "float32", {"summary": "min_max"}, "summary 'min_max'"),
        ((2, 8, 64), "float32", {}, "head_dim 64"),
        ((2, 8, 128), "float16", {}, "summaries is float16"),
        ((2, 9, 128), "bfloat16", {}, "9 bfloat16 summaries"),
        ((2, 8, 128), "float32", {"block_pages": 100}, "blocks of 100 pages"),
        ((32, 8, 128), "float32", {}, "for 32 KV heads"),
    ],
)
def test_what_the_kernel_cannot_do_is_named(pool, dtype, options, reason):
    q, table, lengths = jnp.ones((1, pool[0], pool[2])), jnp.zeros((1, 4), jnp.int32), jnp.ones(1, jnp.int32)
    with pytest.raises(NotImplementedError, match=reason):
        select.select_pages(q, jnp.ones(pool, dtype), table, lengths, page_size=8, pages=3, **options)
