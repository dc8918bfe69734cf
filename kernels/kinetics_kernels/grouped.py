"""Rows sorted by group, each times its group's matrix: what a mixture of experts multiplies.

`jax.lax.ragged_dot` is this operation; on TPUs it is a kernel that reads the matrices of the groups that have rows.
Elsewhere XLA multiplies every row with every matrix: 128-fold work for Qwen3's experts, and on GPUs a copy of the rows
for each of them. There, rows are cut into tiles that each lie in one group, and a tile is multiplied with its own
matrix: here one tile after another, in ops/grouped_matmul/ one program a tile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from kinetics_kernels.numerics import varying_as

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Int32

MIN_TILE, MAX_TILE = 16, 128  # rows; 16 are the least of a tensor-core product


def grouped_matmul(
    rows: Float[Array, "rows inner"], matrices: Float[Array, "groups inner columns"], group_sizes: Int[Array, " groups"]
) -> Float[Array, "rows columns"]:
    """Multiplies each of `rows`, sorted by group, with its group's matrix; returns rows' dtype.

    The first `group_sizes[0]` rows belong to group 0, the next `group_sizes[1]` to group 1, and so on; rows beyond
    their sum belong to no group, and what is returned for them is undefined. Lowered for a TPU it is
    `jax.lax.ragged_dot`, elsewhere `multiply_tiles`.
    """
    return jax.lax.platform_dependent(rows, matrices, group_sizes, tpu=ragged_dot, default=multiply_tiles)


def ragged_dot(
    rows: Float[Array, "rows inner"], matrices: Float[Array, "groups inner columns"], group_sizes: Int[Array, " groups"]
) -> Float[Array, "rows columns"]:
    """As `grouped_matmul`, by XLA's own product."""
    return jax.lax.ragged_dot(rows, matrices, group_sizes).astype(rows.dtype)


def multiply_tiles(
    rows: Float[Array, "rows inner"], matrices: Float[Array, "groups inner columns"], group_sizes: Int[Array, " groups"]
) -> Float[Array, "rows columns"]:
    """As `grouped_matmul`, in a loop over the tiles in use: a group without rows costs nothing."""
    count = rows.shape[0]
    tile = tile_rows(count, matrices.shape[0])
    group, first, _, total = tiles(group_sizes, count, tile)
    padded = jnp.pad(rows, ((0, tile), (0, 0)))

    def one(index: jax.Array, out: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice_in_dim(padded, first[index], tile)
        product = (part @ matrices[group[index]]).astype(out.dtype)
        # In ascending order: rows beyond the group's end are written again by the tile they belong to.
        return jax.lax.dynamic_update_slice_in_dim(out, product, first[index], axis=0)

    out = varying_as(jnp.zeros((count + tile, matrices.shape[2]), rows.dtype), rows, matrices, group_sizes)
    return jax.lax.fori_loop(0, total, one, out)[:count]


def tile_rows(rows: int, groups: int) -> int:
    """Rows of a tile: the power of two that an even spread would fill, within limits."""
    return min(max(MIN_TILE, 1 << (rows // groups).bit_length()), MAX_TILE)


def tiles(
    group_sizes: Int[Array, " groups"], rows: int, tile: int
) -> tuple[Int32[Array, " tiles"], Int32[Array, " tiles"], Int32[Array, " tiles"], Int32[Array, ""]]:
    """Cuts `rows` into tiles of `tile` rows, none across two groups.

    Returns the group of each tile, its first row, and the end of its group's rows; and how many tiles are in use. A
    group without rows has no tile. The arrays are as long as there can be tiles, and end in idle ones, whose rows begin
    at their end.
    """
    groups = group_sizes.shape[0]
    most = rows // tile + min(rows, groups)
    ends = jnp.cumsum(group_sizes, dtype=jnp.int32)
    last_tiles = jnp.cumsum(-(-group_sizes // tile), dtype=jnp.int32)
    index = jnp.arange(most, dtype=jnp.int32)
    group = jnp.minimum(jnp.searchsorted(last_tiles, index, side="right"), groups - 1).astype(jnp.int32)
    before = jnp.where(group > 0, last_tiles[group - 1], 0)
    first = ends[group] - group_sizes[group] + (index - before) * tile
    return group, jnp.minimum(first, ends[group]), ends[group], last_tiles[-1]
