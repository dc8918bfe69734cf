"""Grouped products: the loop and the Triton kernel, interpreted, against float64, whatever groups have rows."""

import functools
import warnings

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinetics_kernels import devices, grouped, reference
from kinetics_kernels.backends import chosen_backend, implementation
from kinetics_kernels.ops.grouped_matmul import triton

from .test_lowering import target_device

WAYS = {"loop": grouped.multiply_tiles, "triton": functools.partial(triton.grouped_matmul, interpret=True)}
TOLERANCE = {"float32": 2e-5, "bfloat16": 2**-7}


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    sizes=st.lists(st.one_of(st.just(0), st.integers(0, 40)), min_size=1, max_size=12).filter(sum),
    inner=st.sampled_from([16, 80, 128]),
    columns=st.sampled_from([16, 72, 130]),
    dtype=st.sampled_from(list(TOLERANCE)),
    way=st.sampled_from(list(WAYS)),
    seed=st.integers(0, 99),
)
def test_against_float64(sizes, inner, columns, dtype, way, seed):
    rng = np.random.default_rng(seed)
    rows = jnp.asarray(rng.standard_normal((sum(sizes), inner)), dtype)
    matrices = jnp.asarray(rng.standard_normal((len(sizes), inner, columns)) * inner**-0.5, dtype)
    group_of = np.repeat(np.arange(len(sizes)), sizes)
    wide = np.asarray(matrices, np.float64)
    expected = np.einsum("ri,rio->ro", np.asarray(rows, np.float64), wide[group_of])
    # A matrix without rows is never used.
    matrices = jnp.where(jnp.asarray(np.array(sizes) > 0)[:, None, None], matrices, jnp.nan)
    out = jax.jit(WAYS[way])(rows, matrices, jnp.asarray(sizes, jnp.int32))
    np.testing.assert_allclose(np.asarray(out, np.float64), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


_tiles = jax.jit(functools.partial(grouped.tiles, rows=90, tile=16))


@given(ends=st.lists(st.integers(0, 90), min_size=5, max_size=5))
@settings(max_examples=40, deadline=None)
def test_tiles_cover_every_row_once(ends):
    tile, sizes = 16, np.diff(sorted([0, *ends, 90]))
    group, first, end, total = map(np.asarray, _tiles(sizes.astype(np.int32)))
    rows = [(g, row) for g, f, e in zip(group, first, end, strict=True) for row in range(f, min(f + tile, e))]
    assert rows == list(zip(np.repeat(np.arange(len(sizes)), sizes), range(90), strict=True))
    assert total == sum(-(-size // tile) for size in sizes)
    assert (first[total:] >= end[total:]).all()


def test_on_a_cpu_idle_groups_cost_nothing():
    """The compiled loop holds a tile, its matrix and the output: no copy of the rows for each group."""
    groups, rows, inner, columns = 64, 32, 128, 256
    compiled = jax.jit(kernels.grouped_matmul).lower(
        jnp.zeros((rows, inner)), jnp.zeros((groups, inner, columns)), jnp.zeros(groups, jnp.int32)
    )
    memory = compiled.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 3 * inner * columns * 4
    assert "ragged" not in compiled.as_text()


@pytest.mark.slow
def test_rows_of_no_group_change_nothing():
    """As on a mesh, where the rows of experts elsewhere come last."""
    rng = np.random.default_rng(0)
    rows, matrices = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((40, 16), (3, 16, 24)))
    sizes = jnp.array([5, 0, 20])
    for way in WAYS.values():
        all_rows, grouped_rows = way(rows, matrices, sizes), way(rows[:25], matrices, sizes)
        np.testing.assert_allclose(all_rows[:25], grouped_rows, rtol=2e-5, atol=2e-5)


@pytest.mark.slow
def test_what_the_kernel_does_not_take():
    arrays = jnp.ones((4, 16)), jnp.ones((2, 16, 16), jnp.bfloat16), jnp.array([2, 2])
    reason = "grouped_matmul: the triton backend takes rows and matrices of one dtype, not float32 and bfloat16"
    with pytest.raises(NotImplementedError, match=reason):
        kernels.grouped_matmul(*arrays, backend="triton")
    with target_device("NVIDIA H100 80GB HBM3"), pytest.warns(UserWarning, match=f"{reason}.*falling back to the ref"):
        out = kernels.grouped_matmul(*arrays)
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, np.full((4, 16), 16.0))


def test_backends_that_are_unknown_or_not_written_are_refused():
    arrays = jnp.ones((4, 16)), jnp.ones((2, 16, 16)), jnp.array([2, 2])
    with pytest.raises(ValueError, match="grouped_matmul: backend 'cuda' is not known"):
        kernels.grouped_matmul(*arrays, backend="cuda")
    with pytest.raises(NotImplementedError, match="no mosaic_tpu kernel is written; backends of this op: xla, triton"):
        kernels.grouped_matmul(*arrays, backend="mosaic_tpu")


@pytest.mark.parametrize("kind", ["TPU v5 lite", "NVIDIA H100 80GB HBM3"])
def test_without_a_kernel_the_reference_is_chosen_in_silence(kind, monkeypatch):
    """On TPUs, where it is XLA's own kernel, and on Hopper once jax has no Pallas-Triton."""
    monkeypatch.setattr(devices, "has_pallas_triton", lambda: False)
    with target_device(kind), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert implementation("grouped_matmul", None) is reference.grouped_matmul
        name, why = chosen_backend("grouped_matmul")
    assert name == "xla"
    assert f"the jnp reference on {kind}; no mosaic_" in why
    assert ("jax.lax.ragged_dot" in why) == kind.startswith("TPU")
