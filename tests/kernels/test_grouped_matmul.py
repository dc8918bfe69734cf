"""Grouped products: the loop and the Triton kernel, interpreted, against float64, whatever groups have rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kinetics_kernels.ops import grouped_matmul as plan
from kinetics_kernels.ops.grouped_matmul import triton

WAYS = {"loop": plan.tile_by_tile, "triton": functools.partial(triton.grouped_matmul, interpret=True)}
TOLERANCE = {"float32": 2e-5, "bfloat16": 2**-7}


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


_tiles = jax.jit(functools.partial(plan.tiles, rows=90, tile=16))


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
    compiled = jax.jit(plan.grouped_matmul).lower(
        jnp.zeros((rows, inner)), jnp.zeros((groups, inner, columns)), jnp.zeros(groups, jnp.int32)
    )
    memory = compiled.compile().memory_analysis()
    assert memory.temp_size_in_bytes < 3 * inner * columns * 4
    assert "ragged" not in compiled.as_text()


def test_what_the_kernel_does_not_take():
    with pytest.raises(NotImplementedError, match="one dtype"):
        triton.grouped_matmul(jnp.zeros((4, 16)), jnp.zeros((2, 16, 16), jnp.bfloat16), jnp.array([2, 2]))
