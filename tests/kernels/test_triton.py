"""The Triton kernels, interpreted, against float64 and the reference, with NaN wherever nothing may be read."""

import functools

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinetics_kernels import reference
from kinetics_kernels.ops.append_kv.triton import append_kv
from kinetics_kernels.ops.paged_decode.triton import default_splits, paged_decode
from kinetics_kernels.ops.select_pages.triton import MAX_PAGES, default_fused, select_pages
from kinetics_kernels.summaries.registry import has_kernel_code, summary_names

from . import oracle
from .programs import lengths_of, over_programs

KINDS = [name for name in summary_names() if has_kernel_code("append_kv", "triton", name)]

# Per storage type: float32 sums in another order; one rounding of the output and one of the weights.
TOLERANCE = {"float32": 2e-5, "bfloat16": 2**-7, "float16": 2**-10}
SHAPES = {
    "batch": [1, 2, 3],
    "kv_heads": [1, 2],
    "group": [1, 2, 4, 5, 8, 16],
    "head_dim": [16, 64],
    "page_size": [8, 16, 32],
}
LONGEST = 150


@functools.cache
def program(op, **options):
    return jax.jit(functools.partial(op, **options))


def run(op, *arrays, **options):
    """A kernel, interpreted, under jit."""
    return program(op, interpret=True, **options)(*arrays)


def drawn_state(data: st.DataObject, seed: int, *, batch: int, longest: int = LONGEST, **shape) -> oracle.Paged:
    lengths = lengths_of(data, batch, longest)
    return oracle.padded_state(np.random.default_rng(seed), lengths, longest=longest, **shape)


def rounded(state: oracle.Paged, dtype: str) -> list[jax.Array]:
    """q, K, V and summaries in a storage type; the state is given the same values."""
    names = ("q", "k_pages", "v_pages", "summaries")
    stored = [jnp.asarray(getattr(state, name), dtype) for name in names]
    for name, value in zip(names, stored, strict=True):
        setattr(state, name, np.asarray(value, np.float32))
    return stored


def assert_close(actual, expected, dtype: str = "float32") -> None:
    tolerance = TOLERANCE[dtype]
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
@over_programs(SHAPES | {"dtype": list(TOLERANCE), "splits": [None, 1, 4], "scale": [None, 0.3]}, 9)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_decode_matches_float64(programs, data, seed):
    shape = dict(data.draw(programs))
    dtype, splits, scale = (shape.pop(name) for name in ("dtype", "splits", "scale"))
    state = drawn_state(data, seed, **shape)
    q, k_pages, v_pages, _ = rounded(state, dtype)
    tables = state.page_table, state.lengths
    out, lse = run(paged_decode, q, k_pages, v_pages, *tables, scale=scale, splits=splits)
    if scale is not None:
        state.q = state.q * (scale * shape["head_dim"] ** 0.5)
    expected_out, expected_lse = oracle.block_topk(state, pages=1000, sink=0, recent=1)
    assert out.dtype == dtype
    assert lse.dtype == jnp.float32
    assert_close(out, expected_out, dtype)
    assert_close(lse, expected_lse)


@pytest.mark.slow
@over_programs(
    SHAPES | {"sink": [0, 1, 2], "recent": [1, 2], "more": range(1, 7)} | {"summary": KINDS, "fused": [False, True]},
    9,
)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), seed=st.integers(0, 2**16))
def test_selection_and_decode_over_it_match_float64(programs, data, seed):
    shape = dict(data.draw(programs))
    sink, recent, more, fused = (shape.pop(name) for name in ("sink", "recent", "more", "fused"))
    state = drawn_state(data, seed, **shape)
    pages, tables = sink + recent + more, (state.page_table, state.lengths)
    options = {"page_size": state.page_size, "pages": pages, "sink_pages": sink, "recent_pages": recent}
    selected, covered = run(
        select_pages, state.q, state.summaries, *tables, summary=state.summary, fused=fused, **options
    )
    assert selected.shape == (len(state.lengths), shape["kv_heads"], pages)
    for row, length in enumerate(state.lengths):
        for head in range(shape["kv_heads"]):
            chosen = oracle.choose_pages(state, row, head, pages=pages, sink=sink, recent=recent)
            physical = [int(state.page_table[row, page]) for page in chosen]
            assert np.asarray(selected[row, head]).tolist() == physical + [-1] * (pages - len(physical))
            size = state.page_size
            assert covered[row, head] == sum(min((page + 1) * size, int(length)) - page * size for page in chosen)
    out, lse = run(paged_decode, state.q, state.k_pages, state.v_pages, selected, covered, splits=1)
    expected_out, expected_lse = oracle.block_topk(state, pages=pages, sink=sink, recent=recent)
    assert_close(out, expected_out)
    assert_close(lse, expected_lse)


@pytest.mark.slow
@over_programs(
    {"batch": [1, 2, 3], "pages": [3, 4, 7, 12, 20, 30], "summary": ["mean", "min_max"], "fused": [False, True]}, 8
)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), levels=st.integers(1, 4), seed=st.integers(0, 2**16))
def test_ties_and_both_zeros_choose_as_the_reference(programs, data, levels, seed):
    """Scores of a few whole values, exact in any order of summing, with zeros of both signs among them."""
    drawn = data.draw(programs)
    rng = np.random.default_rng(seed)
    shape = {"batch": drawn["batch"], "longest": 100, "page_size": 2, "summary": drawn["summary"], "poison": 0.0}
    state = drawn_state(data, seed, **shape)
    state.q[:] = rng.integers(-1, 2, state.q.shape) * 2.0
    state.summaries[:] = rng.integers(-levels, levels + 1, state.summaries.shape) * rng.choice([-0.0, 1.0])
    arrays = (state.q, state.summaries, state.page_table, state.lengths)
    options = {"page_size": 2, "pages": drawn["pages"], "summary": drawn["summary"]}
    actual = run(select_pages, *arrays, fused=drawn["fused"], **options)
    expected = program(reference.select_pages, **options)(*arrays)
    np.testing.assert_array_equal(actual[0], expected[0])
    np.testing.assert_array_equal(actual[1], expected[1])


def test_negative_zero_ties_with_zero():
    state = oracle.random_state(np.random.default_rng(2), [40], kv_heads=1, group=1, poison=0.0)
    state.q[:] = 1.0
    state.summaries[:] = 0.0
    state.summaries[0, state.page_table[0, 1:4]] = -0.0
    selected, _ = run(select_pages, state.q, state.summaries, state.page_table, state.lengths, page_size=4, pages=5)
    assert np.asarray(selected)[0, 0].tolist() == state.page_table[0, [0, 1, 2, 3, 9]].tolist()


@pytest.mark.slow
@pytest.mark.parametrize("per_head", [False, True])
def test_unnamed_pages_may_hold_nan_and_gaps_are_skipped(per_head):
    """A page id of -1 within the length hides its tokens, as in the reference, in both forms of table."""
    state = oracle.random_state(np.random.default_rng(0), [130, 41, 9], page_size=8)
    table, lengths = state.page_table, state.lengths
    table[0, 3] = table[1, 0] = -1
    if per_head:
        table, lengths = (np.repeat(x[:, None], 2, axis=1) for x in (table, lengths))
        table[0, 1, 5] = -1
    arrays = (state.q, state.k_pages, state.v_pages, table, lengths)
    expected = jax.jit(reference.paged_decode)(*arrays)
    for splits in (1, 4):
        for actual, wanted in zip(run(paged_decode, *arrays, splits=splits), expected, strict=True):
            assert_close(actual, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(("summary", "dtype", "max_pages"), [("mean", "bfloat16", 300), ("mean_std", "float32", 70)])
def test_scores_apart_choose_what_the_fused_kernel_chooses(summary, dtype, max_pages):
    """Random scores, tables of several tiles that are no whole number of them, a table full to its last page."""
    rng = np.random.default_rng(6)
    state = oracle.random_state(rng, [8 * max_pages, 803, 0], head_dim=64, group=5, page_size=8, summary=summary)
    q, _, _, summaries = rounded(state, dtype)
    arrays = (q, summaries, state.page_table[:, :max_pages], state.lengths)
    options = {"page_size": 8, "pages": 20, "summary": summary}
    together, apart = (run(select_pages, *arrays, fused=fused, **options) for fused in (True, False))
    np.testing.assert_array_equal(together[0], apart[0])
    np.testing.assert_array_equal(together[1], apart[1])
    expected = jax.jit(functools.partial(reference.select_pages, **options))(*arrays)
    np.testing.assert_array_equal(apart[0], expected[0])


@pytest.mark.slow
def test_the_widest_table_full_to_its_last_page():
    """Scores of five values: thousands of exact ties at the threshold."""
    rng = np.random.default_rng(7)
    q, summaries = np.zeros((1, 1, 16), np.float32), np.zeros((1, MAX_PAGES, 16), np.float32)
    q[..., 0], summaries[..., 0] = 1.0, rng.integers(-2, 3, (1, MAX_PAGES))
    table = rng.permutation(MAX_PAGES).astype(np.int32)[None]
    arrays, options = (q, summaries, table, np.array([8 * MAX_PAGES], np.int32)), {"page_size": 8, "pages": 5000}
    expected = jax.jit(functools.partial(reference.select_pages, **options))(*arrays)
    for fused in (True, False):
        actual = run(select_pages, *arrays, fused=fused, **options)
        np.testing.assert_array_equal(actual[0], expected[0])
        np.testing.assert_array_equal(actual[1], expected[1])


def test_scoring_is_apart_where_too_few_rows_would_read_too_much():
    row = 2048 * 256  # bytes: 32K tokens at page 16, 128 bfloat16
    assert not default_fused(8, row)
    assert not default_fused(128, row)
    assert default_fused(512, row)
    assert default_fused(8, 64 * 256)


@pytest.mark.slow
def test_selecting_everything_equals_dense_to_the_bit():
    """By default too, though the dense table is twice as wide: the splits depend on the rows alone."""
    state = oracle.random_state(np.random.default_rng(1), [300, 128, 77, 1, 0], page_size=16, max_pages=40)
    pools, tables = (state.k_pages, state.v_pages), (state.page_table, state.lengths)
    chosen = run(select_pages, state.q, state.summaries, *tables, page_size=16, pages=20)
    for splits in (None, 4):
        dense = run(paged_decode, state.q, *pools, *tables, splits=splits)
        sparse = run(paged_decode, state.q, *pools, *chosen, splits=splits)
        np.testing.assert_array_equal(dense[0], sparse[0])
        np.testing.assert_array_equal(dense[1], sparse[1])


def test_splits_fill_the_chip():
    assert default_splits(rows=1) == default_splits(rows=8) == 32
    assert default_splits(rows=64) == 4
    assert default_splits(rows=132) == 2
    assert default_splits(rows=512) == 1


@pytest.mark.slow
@pytest.mark.parametrize("summary", KINDS)
@pytest.mark.parametrize("page_size", [8, 512])
def test_append_writes_what_the_reference_writes(summary, page_size):
    """Rows that fill a page, that do not, that are idle, and that have no page; 512 tokens take several tiles."""
    full = 2 * page_size
    state = oracle.random_state(
        np.random.default_rng(3), [full - 1, 3, page_size, 1, full], page_size=page_size, max_pages=2, summary=summary
    )
    lengths = np.array([full, 3, page_size, 0, full + 1], np.int32)
    new = np.random.default_rng(4).standard_normal((2, 5, 2, 16)).astype(np.float32)
    for summaries in (state.summaries, None):
        arrays = (state.k_pages, state.v_pages, summaries, *new, state.page_table, lengths)
        actual = run(append_kv, *arrays, summary=summary)
        expected = jax.jit(functools.partial(reference.append_kv, summary=summary))(*arrays)
        np.testing.assert_array_equal(actual[0], expected[0])
        np.testing.assert_array_equal(actual[1], expected[1])
        if summaries is None:
            assert actual[2] is None
        else:
            assert np.isfinite(actual[2][:, state.page_table[0, 1]]).all()
            np.testing.assert_allclose(actual[2], expected[2], rtol=2e-6, atol=1e-6)


def test_what_the_kernels_do_not_take_is_refused_by_name():
    state = oracle.random_state(np.random.default_rng(5), [9], head_dim=24)
    tables = (state.page_table, state.lengths)
    force = {"backend": "triton"}
    with pytest.raises(NotImplementedError, match="paged_decode: the triton backend takes a head_dim that is a power"):
        kernels.paged_decode(state.q, state.k_pages, state.v_pages, *tables, **force)
    with pytest.raises(NotImplementedError, match="select_pages: the triton backend takes a head_dim"):
        kernels.select_pages(state.q, state.summaries, *tables, page_size=4, pages=4, **force)
    new = np.ones((1, 2, 24), np.float32)
    with pytest.raises(NotImplementedError, match="append_kv: the triton backend takes a head_dim"):
        kernels.append_kv(state.k_pages, state.v_pages, state.summaries, new, new, *tables, **force)
    state = oracle.random_state(np.random.default_rng(5), [9], group=17)
    with pytest.raises(NotImplementedError, match="at most 16 query heads per KV head, not 17"):
        kernels.paged_decode(state.q, state.k_pages, state.v_pages, state.page_table, state.lengths, **force)
    pools = [jnp.asarray(pool, jnp.bfloat16) for pool in (state.k_pages, state.v_pages)]
    with pytest.raises(NotImplementedError, match="of one dtype, not float32 and bfloat16"):
        kernels.paged_decode(state.q, *pools, state.page_table, state.lengths, **force)
    wide = np.full((1, 16385), -1, np.int32)
    with pytest.raises(NotImplementedError, match="at most 16384 pages, not 16385"):
        kernels.select_pages(state.q, state.summaries, wide, state.lengths, page_size=4, pages=4, **force)
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 8, 16), (8, 2**24, 16, 16), (1, 4), (1,))]
    too_many = functools.partial(kernels.paged_decode, **force)
    with pytest.raises(NotImplementedError, match=r"pools of fewer than 2 \*\* 31 tokens"):
        jax.eval_shape(too_many, shapes[0], shapes[1], *shapes[1:])
    with pytest.raises(ValueError, match="leave no choice"):
        kernels.select_pages(state.q, state.summaries, *tables, page_size=4, pages=2, **force)
    new, pools = np.ones((1, 2, 16), np.float32), (state.k_pages, state.v_pages, state.summaries)
    with pytest.raises(ValueError, match="not of kind min_max"):
        kernels.append_kv(*pools, new, new, state.page_table, state.lengths, summary="min_max", **force)


def lowered(op, *shapes, **options) -> str:
    """The program for an H100, lowered without one."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        traced = jax.jit(functools.partial(op, backend="triton", **options)).trace(*shapes)
        return traced.lower(lowering_platforms=("cuda",)).as_text()


def test_every_kernel_lowers_through_the_public_ops():
    pool = jax.ShapeDtypeStruct((8, 256, 16, 128), jnp.bfloat16)
    q, new = jax.ShapeDtypeStruct((4, 40, 128), jnp.bfloat16), jax.ShapeDtypeStruct((4, 8, 128), jnp.bfloat16)
    summaries = jax.ShapeDtypeStruct((8, 256, 128), jnp.bfloat16)
    tables = jax.ShapeDtypeStruct((4, 64), jnp.int32), jax.ShapeDtypeStruct((4,), jnp.int32)
    text = lowered(kernels.block_topk_decode, q, pool, pool, summaries, *tables, pages=16)
    assert all(f'name = "{name}"' in text for name in ("select_pages", "paged_decode", "merge_partials"))
    assert 'name = "append_kv"' in lowered(kernels.append_kv, pool, pool, summaries, new, new, *tables)
