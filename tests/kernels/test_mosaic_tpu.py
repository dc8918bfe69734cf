"""The TPU decode kernel in the interpreter, with its race detector, against float64 and the reference.

An interpreted program takes a second to compile and a fraction of it to run: states of one shape share one.
"""

import functools

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental.pallas import tpu as pltpu
from kinetics_kernels import reference
from kinetics_kernels.ops.paged_decode import mosaic_tpu as decode

from . import oracle
from .interpreted import interpreted, tpu_races_found

TOLERANCE = {"rtol": 2e-5, "atol": 2e-5}


def kernel(dma="on_wait", cores=1, **options):
    """The kernel interpreted: what was never written is NaN, and two accesses without an order are a race."""
    # The clock's size is how many copies can be told apart: by default all are one, and never race each other.
    params = pltpu.InterpretParams(
        detect_races=True, dma_execution_mode=dma, num_cores_or_threads=cores, vector_clock_size=64
    )
    return interpreted(decode.paged_decode, interpret=params, **options)


programs = functools.cache(kernel)


def paged_decode(*arrays, program=None, **options):
    out, lse = (program or programs(**options))(*map(jnp.asarray, arrays))
    return np.asarray(out, np.float64), np.asarray(lse, np.float64)


def padded_state(rng, lengths, max_pages=12, **shape) -> oracle.Paged:
    """A state whose shape does not depend on how long its rows are."""
    shape = {"page_size": 8, "head_dim": 128, "max_pages": max_pages, **shape}
    taken = sum(-(-length // shape["page_size"]) for length in lengths)
    return oracle.random_state(rng, lengths, spare_pages=len(lengths) * max_pages + 1 - taken, **shape)


def pools(state: oracle.Paged) -> tuple[np.ndarray, ...]:
    return state.q, state.k_pages, state.v_pages


def assert_dense(state: oracle.Paged, **options) -> tuple[np.ndarray, np.ndarray]:
    out, lse = paged_decode(*pools(state), state.page_table, state.lengths, **options)
    assert not tpu_races_found()
    expected_out, expected_lse = oracle.block_topk(state, pages=1000, sink=0, recent=1)
    np.testing.assert_allclose(out, expected_out, **TOLERANCE)
    np.testing.assert_allclose(lse, expected_lse, **TOLERANCE)
    return out, lse


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 96), min_size=4, max_size=4),
    shape=st.sampled_from([(1, 5, 16, 32, 4), (2, 2, 8, 32, 4), (3, 1, 8, 64, 3)]),
    seed=st.integers(0, 2**16),
)
def test_dense_matches_float64(lengths, shape, seed):
    kv_heads, group, page_size, block, batch = shape
    shape = {"kv_heads": kv_heads, "group": group, "page_size": page_size, "max_pages": 96 // page_size}
    assert_dense(padded_state(np.random.default_rng(seed), lengths[:batch], **shape), block_tokens=block)


@pytest.mark.slow
@pytest.mark.parametrize(("group", "page_size", "head_dim"), [(4, 32, 128), (8, 64, 256), (16, 128, 128), (1, 16, 256)])
def test_groups_page_sizes_and_head_dims(group, page_size, head_dim):
    rng = np.random.default_rng(group)
    lengths = [2 * page_size + 3, page_size]
    assert_dense(oracle.random_state(rng, lengths, group=group, page_size=page_size, head_dim=head_dim))


@pytest.mark.slow
@pytest.mark.parametrize("fitting", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_empty_rows_and_block_borders(batch, fitting, monkeypatch):
    """The prefetch crosses rows without a page, full blocks and short ones, with one head a step and with two."""
    monkeypatch.setattr(decode, "BUFFER_BYTES", fitting * 4 * 32 * 128 * 4)
    assert decode._heads_of_a_step(2, 32 * 128 * 4) == fitting
    program = kernel(block_tokens=32)
    for lengths in ([0, 0, 0], [0, 40, 0], [33, 0, 1], [32, 64, 96]):
        out, lse = assert_dense(padded_state(np.random.default_rng(1), lengths[:batch]), program=program)
        idle = np.array(lengths[:batch]) == 0
        assert (out[idle] == 0).all()
        assert (lse[idle] == -np.inf).all()


@pytest.mark.slow
def test_two_cores_share_the_rows():
    """Each core of a v5p takes half of the steps, with its own buffers; neither touches what the other writes."""
    state = padded_state(np.random.default_rng(8), [40, 0, 17, 64])
    assert_dense(state, block_tokens=32, cores=2)


@pytest.mark.slow
def test_tables_per_head_match_float64_and_dense_to_the_bit():
    state = oracle.random_state(np.random.default_rng(2), [100, 61, 0, 9], page_size=8, group=3, head_dim=128)
    state.page_table = np.pad(state.page_table, ((0, 0), (0, 3)), constant_values=-1)
    dense = paged_decode(*pools(state), state.page_table, state.lengths, block_tokens=32)
    for pages in (5, 13, 20):
        selected, covered = reference.select_pages(
            state.q, state.summaries, state.page_table, state.lengths, page_size=8, pages=pages
        )
        selected = np.pad(selected, ((0, 0), (0, 0), (0, 20 - pages)), constant_values=-1)
        out, lse = paged_decode(*pools(state), selected, covered, block_tokens=32)
        assert not tpu_races_found()
        expected_out, expected_lse = oracle.block_topk(state, pages=pages, sink=1, recent=1)
        np.testing.assert_allclose(out, expected_out, **TOLERANCE)
        np.testing.assert_allclose(lse, expected_lse, **TOLERANCE)
    np.testing.assert_array_equal(out, dense[0])
    np.testing.assert_array_equal(lse, dense[1])


@pytest.mark.slow
def test_missing_pages_lengths_past_the_table_and_ids_past_the_pool():
    """What no engine should send means what it means to the reference."""
    state = oracle.random_state(np.random.default_rng(3), [80, 80, 80], page_size=8, head_dim=128, poison=0.0)
    table = state.page_table.copy()
    table[0, [0, 5, 9]] = -1
    table[1, :10] = -1
    table[2, 3] = state.k_pages.shape[1] + 7
    state.v_pages[:, -1, 3] = 2.0  # the page that the id is clipped to
    lengths = np.array([75, 75, 1000], np.int32)
    expected = reference.paged_decode(*pools(state), table, lengths)
    out, lse = paged_decode(*pools(state), table, lengths, block_tokens=32)
    np.testing.assert_allclose(out, expected[0], **TOLERANCE)
    np.testing.assert_allclose(lse, expected[1], **TOLERANCE)
    assert (out[1] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(("q", "pool"), [("bfloat16", "bfloat16"), ("float32", "bfloat16"), ("bfloat16", "float32")])
def test_dtypes(q, pool):
    state = oracle.random_state(np.random.default_rng(4), [90, 40], page_size=16, group=4, head_dim=128)
    arrays = [jnp.asarray(a, dtype) for a, dtype in zip(pools(state), (q, pool, pool), strict=True)]
    state.q, state.k_pages, state.v_pages = (np.asarray(a, np.float32) for a in arrays)
    out, lse = paged_decode(*arrays, state.page_table, state.lengths, scale=0.3, block_tokens=64)
    state.q = state.q * 0.3 * 128**0.5  # the oracle scales by head_dim alone
    expected_out, expected_lse = oracle.block_topk(state, pages=1000, sink=0, recent=1)
    rounded = 2**-8 if q == "bfloat16" else 2e-5
    np.testing.assert_allclose(out, expected_out, rtol=rounded, atol=rounded)
    np.testing.assert_allclose(lse, expected_lse, **TOLERANCE)


def test_weights_keep_16_bits_beside_bfloat16_values():
    rng = np.random.default_rng(5)
    weights = rng.uniform(size=(2, 4, 256)).astype(np.float32)
    values = jnp.asarray(rng.uniform(size=(2, 256, 128)), jnp.bfloat16)
    exact = np.einsum("hgt,htd->hgd", weights.astype(np.float64), np.asarray(values, np.float64))
    error = abs(np.asarray(decode._weighted_sum(jnp.asarray(weights), values)) / exact - 1).max()
    assert error < 2**-16


@pytest.mark.slow
def test_the_interpreter_sees_a_missing_wait(monkeypatch):
    """Without the wait, copies that run late leave NaN, and copies that run early race."""
    state = padded_state(np.random.default_rng(6), [40, 24, 0, 0], poison=0.0)
    out, _ = paged_decode(*pools(state), state.page_table, state.lengths, block_tokens=32)
    assert np.isfinite(out).all()
    monkeypatch.setattr(decode, "_await", lambda *_: None)
    try:
        program = kernel(block_tokens=16)
        out, _ = paged_decode(*pools(state), state.page_table, state.lengths, program=program)
        assert np.isnan(out).any()
        program = kernel(block_tokens=16, dma="eager")
        paged_decode(*pools(state), state.page_table, state.lengths, program=program)
        assert tpu_races_found()
    finally:
        pltpu.reset_tpu_interpret_mode_state()


@pytest.mark.slow
def test_the_interpreter_sees_a_page_out_of_bounds(monkeypatch):
    state = padded_state(np.random.default_rng(6), [40, 16], poison=0.0)
    state.page_table[0, 2] = state.k_pages.shape[1]
    monkeypatch.setattr(decode, "_page_in_pool", lambda page, pool: page)
    try:
        with pytest.raises(Exception, match="IndexError"):
            paged_decode(*pools(state), state.page_table, state.lengths, program=kernel(block_tokens=32))
    finally:
        pltpu.reset_tpu_interpret_mode_state()


@pytest.mark.parametrize(
    ("shape", "dtype", "options", "reason"),
    [
        ({"head_dim": 64, "page_size": 8}, "float32", {}, "a head_dim that is a multiple of 128 .*, not 64"),
        ({"head_dim": 128, "page_size": 4}, "float32", {}, "a page_size that is a multiple of 8 .*, not 4"),
        ({"head_dim": 128, "page_size": 8}, "float16", {}, "q in bfloat16 or float32, not float16"),
        (
            {"head_dim": 128, "page_size": 8, "max_pages": 50_000},
            "float32",
            {},
            "page tables of at most 49152 pages, .*, not 50000",
        ),
        ({"head_dim": 128, "page_size": 16}, "float32", {"block_tokens": 40}, "divides 40 tokens, not 16"),
    ],
)
def test_what_the_kernel_cannot_do_is_named(shape, dtype, options, reason):
    state = oracle.random_state(np.random.default_rng(7), [9], **shape)
    arrays = [jnp.asarray(a, dtype) for a in pools(state)]
    with pytest.raises(NotImplementedError, match=reason):
        decode.paged_decode(*arrays, jnp.asarray(state.page_table), jnp.asarray(state.lengths), **options)


@pytest.mark.slow
@pytest.mark.parametrize("summary", ["mean", "min_max", "mean_std"])
def test_every_kernel_lowers_through_the_public_ops(summary):
    def struct(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype)

    def step(pools, new, q, table, lengths):
        tpu = {"summary": summary, "backend": "mosaic_tpu"}
        pools = kernels.append_kv(*pools, new, new, table, lengths, **tpu)
        return pools, kernels.block_topk_decode(q, *pools, table, lengths, pages=8, **tpu)

    vectors = [] if summary == "mean" else [2]
    pools = struct(8, 64, 16, 128), struct(8, 64, 16, 128), struct(8, 64, *vectors, 128)
    tables = struct(4, 32, dtype=jnp.int32), struct(4, dtype=jnp.int32)
    device = jax.sharding.AbstractDevice(device_kind="TPU v5e", num_cores=1, platform="tpu")
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        traced = jax.jit(step, donate_argnums=0).trace(pools, struct(4, 8, 128), struct(4, 40, 128), *tables)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3
    assert all(name in text for name in ("append_kv", "page_scores", "paged_decode"))
