"""Rows sorted by group, each times its group's matrix: what a mixture of experts multiplies.

`jax.lax.ragged_dot` is this operation; on TPUs it is a kernel that reads the matrices of the groups that have rows.
Elsewhere XLA multiplies every row with every matrix: 128-fold work for Qwen3's experts, and on GPUs a copy of the rows
for each of them. There, rows are cut into tiles that each lie in one group, and a tile is multiplied with its own
matrix: on CPUs one tile after another, on GPUs by the Triton kernel.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

LEAST_TILE, MOST_TILE = 16, 128  # rows; 16 are the least of a tensor-core product


def grouped_matmul(rows: jax.Array, matrices: jax.Array, group_sizes: jax.Array) -> jax.Array:
    """`rows [rows, in]` sorted by group, `matrices [groups, in, out]`, `group_sizes [groups]` int32 → `[rows, out]`.

    The group sizes sum to the number of rows. The platform that the program is lowered for chooses the algorithm.
    """
    from kinetics_kernels.ops.grouped_matmul import triton

    return jax.lax.platform_dependent(
        rows, matrices, group_sizes, cpu=tile_by_tile, cuda=triton.grouped_matmul, default=jax.lax.ragged_dot
    )


def tile_rows(rows: int, groups: int) -> int:
    """Rows of a tile: the power of two that an even spread would fill, within limits."""
    return min(max(LEAST_TILE, 1 << (rows // groups).bit_length()), MOST_TILE)


def tiles(group_sizes: jax.Array, rows: int, tile: int) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """The group of each tile, its first row, and the end of its group's rows, `[tiles]` int32; and how many there are.

    A group without rows has no tile. The arrays are as long as there can be tiles, and end in idle ones, whose rows
    begin at their end.
    """
    groups = group_sizes.shape[0]
    most = rows // tile + min(rows, groups)
    ends = jnp.cumsum(group_sizes)
    last_tiles = jnp.cumsum(-(-group_sizes // tile))
    index = jnp.arange(most, dtype=jnp.int32)
    group = jnp.minimum(jnp.searchsorted(last_tiles, index, side="right"), groups - 1).astype(jnp.int32)
    before = jnp.where(group > 0, last_tiles[group - 1], 0)
    first = ends[group] - group_sizes[group] + (index - before) * tile
    return group, jnp.minimum(first, ends[group]), ends[group], last_tiles[-1]


def tile_by_tile(rows: jax.Array, matrices: jax.Array, group_sizes: jax.Array) -> jax.Array:
    """As `grouped_matmul`, in a loop over the tiles there are: a group without rows costs nothing."""
    count, width = rows.shape
    tile = tile_rows(count, matrices.shape[0])
    group, first, _, total = tiles(group_sizes, count, tile)
    padded = jnp.pad(rows, ((0, tile), (0, 0)))

    def one(index: jax.Array, out: jax.Array) -> jax.Array:
        part = jax.lax.dynamic_slice(padded, (first[index], 0), (tile, width))
        # In ascending order: rows beyond the group's end are written again by the tile they belong to.
        return jax.lax.dynamic_update_slice(out, part @ matrices[group[index]], (first[index], 0))

    out = jnp.zeros((count + tile, matrices.shape[2]), rows.dtype)
    return jax.lax.fori_loop(0, total, one, out)[:count]
