"""The Mosaic GPU kernels in the interpreter, with its race detector, against float64 and the reference.

NaN stands wherever nothing may be read. What the interpreter does not see: it runs wgmma at once and lets it read
shared memory unchecked, so a missing wait for a page, or a missing commit_smem before a product, changes nothing here
(tests/deviceless reads the order of both from the PTX). Copies to and from memory are checked, which the canaries show.
"""

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import mosaic_gpu as plgpu
from kinetics_kernels import reference
from kinetics_kernels.ops.append_kv.mosaic_gpu import append_kv
from kinetics_kernels.ops.paged_decode.mosaic_gpu import default_splits, paged_decode
from kinetics_kernels.ops.select_pages.mosaic_gpu import select_pages
from kinetics_kernels.summaries.registry import has_kernel_code, summary_names

from . import oracle
from .interpreted import interpreted

KINDS = [name for name in summary_names() if has_kernel_code("append_kv", "mosaic_gpu", name)]

pytestmark = [
    pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the Mosaic GPU interpreter needs jax 0.11"),
    pytest.mark.slow,
]
# One rounding of the output and one of the weights; log-sum-exps are float32 throughout.
TOLERANCE = {"bfloat16": 2**-7, "float16": 2**-10, "float32": 2e-5}


def params():
    return plgpu.InterpretGPUParams(detect_races=True)


def races_found() -> bool:
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    return gpu_callbacks.get_races().races_found


def run(op, *arrays, **options):
    """A kernel, interpreted; a race is an error."""
    program = interpreted(op, interpret=params(), **options)
    results = program(*(None if array is None else jnp.asarray(array) for array in arrays))
    assert not races_found()
    return results


def rounded(state: oracle.Paged, dtype: str) -> list[jax.Array]:
    """q, K and V in a storage type; the state is given the same values."""
    names = ("q", "k_pages", "v_pages")
    stored = [jnp.asarray(getattr(state, name), dtype) for name in names]
    for name, value in zip(names, stored, strict=True):
        setattr(state, name, np.asarray(value, np.float32))
    return stored


def assert_close(actual, expected, dtype: str = "float32") -> None:
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=tolerance, atol=tolerance)


def assert_dense(state: oracle.Paged, dtype: str = "bfloat16", **options) -> tuple[jax.Array, jax.Array]:
    out, lse = run(paged_decode, *rounded(state, dtype), state.page_table, state.lengths, **options)
    expected_out, expected_lse = oracle.block_topk(state, pages=1000, sink=0, recent=1)
    assert out.dtype == dtype
    assert lse.dtype == jnp.float32
    assert_close(out, expected_out, dtype)
    assert_close(lse, expected_lse)
    return out, lse


@settings(max_examples=4, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 150), min_size=1, max_size=2),
    kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 2, 4, 5]),
    head_dim=st.sampled_from([64, 128]),
    page_size=st.sampled_from([8, 16, 32, 64, 128]),
    dtype=st.sampled_from(["bfloat16", "float16"]),
    splits=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 2**16),
)
def test_decode_matches_float64(lengths, kv_heads, group, head_dim, page_size, dtype, splits, seed):
    shape = {"kv_heads": kv_heads, "group": group, "head_dim": head_dim, "page_size": page_size}
    assert_dense(oracle.random_state(np.random.default_rng(seed), lengths, **shape), dtype, splits=splits)


@pytest.mark.parametrize(("stages", "splits"), [(1, 1), (3, 2)])
def test_empty_rows_tile_borders_and_stages(stages, splits):
    lengths = [0, 64, 65, 300]
    state = oracle.random_state(
        np.random.default_rng(1), lengths, kv_heads=1, group=16, page_size=16, head_dim=64, max_pages=40
    )
    out, lse = assert_dense(state, splits=splits, stages=stages)
    assert (out[0] == 0).all()
    assert (lse[0] == -np.inf).all()


@pytest.mark.parametrize("per_head", [False, True])
def test_missing_pages_lengths_past_the_table_and_ids_past_the_pool(per_head):
    """What no engine should send means what it means to the reference; the page that -1 is clipped to holds NaN."""
    state = oracle.random_state(np.random.default_rng(2), [80, 80, 80], kv_heads=2, page_size=8, head_dim=64)
    table, lengths = state.page_table, np.array([75, 75, 1000], np.int32)
    table[0, [1, 5, 9]] = -1
    table[1, :10] = -1
    table[table == 0] = -1
    table[2, 3] = state.k_pages.shape[1] + 7
    table[2, 10] = table[2, 0]  # a length past the table reaches every page of it
    for pool in (state.k_pages, state.v_pages):
        pool[:, 0], pool[:, -1] = np.nan, 0.5
    if per_head:
        table, lengths = (np.repeat(x[:, None], 2, axis=1) for x in (table, lengths))
        table[0, 1, 2] = -1
    q, k_pages, v_pages = rounded(state, "float16")
    out, lse = run(paged_decode, q, k_pages, v_pages, table, lengths, scale=0.3)
    expected = reference.paged_decode(state.q, state.k_pages, state.v_pages, table, lengths, scale=0.3)
    assert_close(out, expected[0], "float16")
    assert_close(lse, expected[1])
    assert (out[1] == 0).all()


def test_selecting_everything_equals_dense_to_the_bit_at_equal_splits():
    state = oracle.random_state(np.random.default_rng(3), [150, 61, 0], page_size=16, head_dim=64, max_pages=20)
    pools, tables = rounded(state, "bfloat16"), (state.page_table, state.lengths)
    chosen = run(select_pages, state.q, state.summaries, *tables, page_size=16, pages=12)
    dense, sparse = run(paged_decode, *pools, *tables, splits=2), run(paged_decode, *pools, *chosen, splits=2)
    np.testing.assert_array_equal(dense[0], sparse[0])
    np.testing.assert_array_equal(dense[1], sparse[1])


def test_splits_fill_the_chip_and_leave_a_tile_to_each_part():
    assert default_splits(rows=8, tiles=16) == 16
    assert default_splits(rows=8, tiles=1000) == 32
    assert default_splits(rows=512, tiles=1000) == default_splits(rows=1, tiles=0) == 1


@pytest.mark.parametrize("summary", KINDS)
def test_selection_and_decode_over_it_match_float64(summary):
    """Through the public ops; rows of more pages than the choice, of as many, of fewer, of none."""
    state = oracle.random_state(
        np.random.default_rng(4), [300, 18, 7, 0], page_size=8, group=3, head_dim=64, summary=summary
    )
    with plgpu.force_gpu_interpret_mode(params()):
        out, lse = kernels.block_topk_decode(
            *rounded(state, "bfloat16"),
            jnp.asarray(state.summaries),
            jnp.asarray(state.page_table),
            jnp.asarray(state.lengths),
            pages=9,
            sink_pages=2,
            recent_pages=2,
            summary=summary,
            backend="mosaic_gpu",
        )
    assert not races_found()
    expected_out, expected_lse = oracle.block_topk(state, pages=9, sink=2, recent=2)
    assert_close(out, expected_out, "bfloat16")
    assert_close(lse, expected_lse)


@settings(max_examples=3, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 600), min_size=1, max_size=2),
    levels=st.integers(1, 4),
    pages=st.integers(3, 16),
    summary=st.sampled_from(["mean", "min_max"]),
    seed=st.integers(0, 2**16),
)
def test_ties_and_both_zeros_choose_as_the_reference(lengths, levels, pages, summary, seed):
    """Scores of a few whole values, exact in any order of summing, with zeros of both signs among them."""
    rng = np.random.default_rng(seed)
    state = oracle.random_state(rng, lengths, page_size=2, summary=summary, poison=0.0)
    state.q[:] = rng.integers(-1, 2, state.q.shape) * 2.0
    state.summaries[:] = rng.integers(-levels, levels + 1, state.summaries.shape) * rng.choice([-0.0, 1.0])
    arrays = (state.q, state.summaries, state.page_table, state.lengths)
    options = {"page_size": 2, "pages": pages, "summary": summary}
    for actual, expected in zip(
        run(select_pages, *arrays, **options), reference.select_pages(*arrays, **options), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("summary", KINDS)
@pytest.mark.parametrize("page_size", [8, 128])
def test_append_writes_what_the_reference_writes(summary, page_size):
    """Rows that fill a page, that do not, that are idle, and that have no page; 128 tokens take two tiles."""
    full = 2 * page_size
    state = oracle.random_state(
        np.random.default_rng(5),
        [full - 1, 3, page_size, 1, full],
        page_size=page_size,
        max_pages=2,
        summary=summary,
        head_dim=64,
    )
    lengths = np.array([full, 3, page_size, 0, full + 1], np.int32)
    new = np.random.default_rng(6).standard_normal((2, 5, 2, 64)).astype(np.float32)
    for summaries in (state.summaries, None) if summary == "mean" else (state.summaries,):
        arrays = (state.k_pages, state.v_pages, summaries, *new, state.page_table, lengths)
        actual = run(append_kv, *arrays, summary=summary)
        expected = reference.append_kv(*arrays, summary=summary)
        np.testing.assert_array_equal(actual[0], expected[0])
        np.testing.assert_array_equal(actual[1], expected[1])
        if summaries is None:
            assert actual[2] is None
        else:
            assert np.isfinite(actual[2][:, state.page_table[0, 1]]).all()
            np.testing.assert_allclose(actual[2], expected[2], rtol=2e-6, atol=1e-6)


def canary_races() -> bool:
    """Decodes two tiles; jax 0.12 raises where 0.11 takes a note."""
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    state = oracle.random_state(np.random.default_rng(7), [70], kv_heads=1, page_size=16, head_dim=64, poison=0.0)
    try:
        program = interpreted(paged_decode, splits=1, interpret=params())
        program(*rounded(state, "bfloat16"), state.page_table, state.lengths)
    except Exception as error:
        gpu_callbacks.reset_gpu_interpret_mode_state()
        return "RACE DETECTED" in str(error)
    return races_found()


def test_the_interpreter_sees_an_output_copied_before_it_is_committed(monkeypatch):
    assert not canary_races()
    monkeypatch.setattr(plgpu, "commit_smem", lambda: None)
    assert canary_races()


def test_the_interpreter_sees_a_query_read_before_it_arrived(monkeypatch):
    monkeypatch.setattr(plgpu, "barrier_wait", lambda barrier: None)
    assert canary_races()


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "reason"),
    [
        ({}, "float32", {}, "q in bfloat16 or float16, not float32"),
        ({"head_dim": 256}, "bfloat16", {}, r"head_dim of 64 or 128 \(registers spill at 256\), not 256"),
        ({"page_size": 24}, "bfloat16", {}, "pages of 8, 16 or 32 tokens .* not 24"),
        ({"page_size": 4}, "bfloat16", {}, "not 4"),
        ({"group": 65}, "bfloat16", {}, "at most 64 query heads per KV head, not 65"),
        ({}, "bfloat16", {"splits": 33}, "1 to 32 splits, not 33"),
    ],
)
def test_what_decode_does_not_take_is_refused_by_name(shape, dtype, options, reason):
    state = oracle.random_state(np.random.default_rng(8), [9], **{"head_dim": 64, "page_size": 16, **shape})
    with pytest.raises(NotImplementedError, match=reason):
        paged_decode(*rounded(state, dtype), state.page_table, state.lengths, **options)


def test_what_the_other_kernels_do_not_take_is_refused_by_name(monkeypatch):
    state = oracle.random_state(np.random.default_rng(9), [9], page_size=72)
    tables, force = (state.page_table, state.lengths), {"backend": "mosaic_gpu"}
    pools, new = (state.k_pages, state.v_pages, state.summaries), np.ones((1, 2, 16), np.float32)
    with pytest.raises(NotImplementedError, match="append_kv: the mosaic_gpu backend takes a head_dim of 64 or 128"):
        kernels.append_kv(*pools, new, new, *tables, **force)
    wide = oracle.random_state(np.random.default_rng(9), [9], page_size=72, head_dim=64)
    wide_new = np.ones((1, 2, 64), np.float32)
    with pytest.raises(NotImplementedError, match="pages of less than 64 tokens or a multiple of them, not 72"):
        kernels.append_kv(wide.k_pages, wide.v_pages, None, wide_new, wide_new, *tables, **force)
    with pytest.raises(ValueError, match="not of kind min_max"):
        kernels.append_kv(*pools, new, new, *tables, summary="min_max", **force)
    many = np.full((1, 8193), -1, np.int32)
    with pytest.raises(NotImplementedError, match="at most 8192 pages, not 8193"):
        kernels.select_pages(state.q, state.summaries, many, state.lengths, page_size=72, pages=4, **force)
    with pytest.raises(ValueError, match="leave no choice"):
        kernels.select_pages(state.q, state.summaries, *tables, page_size=72, pages=2, **force)
    monkeypatch.setattr(jax, "__version_info__", (0, 10, 2))
    with pytest.raises(NotImplementedError, match=r"jax 0\.11 or newer"):
        kernels.select_pages(state.q, state.summaries, *tables, page_size=72, pages=4, **force)
