"""grouped_matmul on NVIDIA GPUs (Ampere and newer) by Pallas-Triton.

One program multiplies one tile of rows of one group with a block of columns of the group's matrix, in a loop over the
inner dimension. At few rows a group the matrices' bytes are all that counts: each program reads its block once.

By bytes, Qwen3-30B-A3B, 8 tokens: at most 64 of 128 experts are chosen, each with three matrices of 3.1 MB in bfloat16:
604 MB a layer, 0.2 ms at 3 TB/s.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from kinetics_kernels import grouped
from kinetics_kernels.numerics import result_shapes
from kinetics_kernels.ops.triton_limits import INPUT_DTYPES, refuse_unless

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

COLUMNS, INNER = 64, 64  # of a matrix, in flight per pipeline stage: 8 KB in bfloat16


def grouped_matmul(
    rows: Float[Array, "rows inner"],
    matrices: Float[Array, "groups inner columns"],
    group_sizes: Int[Array, " groups"],
    *,
    interpret: bool = False,
) -> Float[Array, "rows columns"]:
    """As `grouped.grouped_matmul`, accumulated in float32. Raises NotImplementedError for dtypes it does not take."""
    count, inner = rows.shape
    groups, _, columns = matrices.shape
    refuse_unless(
        "grouped_matmul",
        (rows.dtype in INPUT_DTYPES, f"rows in float32, bfloat16 or float16, not {rows.dtype}"),
        (rows.dtype == matrices.dtype, f"rows and matrices of one dtype, not {rows.dtype} and {matrices.dtype}"),
    )
    shaped = result_shapes(rows, matrices, group_sizes)
    tile = grouped.tile_rows(count, groups)
    group, first, end, _ = grouped.tiles(group_sizes, count, tile)
    return pl.pallas_call(
        functools.partial(_multiply, tile=tile, inner=inner, columns=columns),
        grid=(pl.cdiv(columns, COLUMNS), group.shape[0]),
        out_shape=shaped((count, columns), rows.dtype),
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=4 if rows.dtype.itemsize == 2 else 2),
        interpret=interpret,
        name="grouped_matmul",
    )(rows, matrices.reshape(groups * inner, columns), group, first, end)


def _multiply(
    rows_ref,  # [rows, inner]
    matrices_ref,  # [groups * inner, columns]
    group_ref,  # [tiles]
    first_ref,
    end_ref,
    out_ref,  # [rows, columns]
    *,
    tile: int,
    inner: int,
    columns: int,
) -> None:
    index = pl.program_id(1)
    group, first, end = group_ref[index], first_ref[index], end_ref[index]
    row = first + jnp.arange(tile)
    column = pl.program_id(0) * COLUMNS + jnp.arange(COLUMNS)
    of_group, of_matrix = (row < end)[:, None], (column < columns)[None, :]

    def step(part, total):
        depth = part * INNER + jnp.arange(INNER)
        inside = depth < inner
        left = plt.load(rows_ref.at[row[:, None], depth[None, :]], mask=of_group & inside[None, :], other=0.0)
        where = group * inner + depth
        right = plt.load(matrices_ref.at[where[:, None], column[None, :]], mask=inside[:, None] & of_matrix, other=0.0)
        exact = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
        return total + jax.lax.dot(left, right, precision=exact, preferred_element_type=jnp.float32)

    steps = jnp.where(first < end, jnp.int32(pl.cdiv(inner, INNER)), jnp.int32(0))  # none for an idle tile
    total = jax.lax.fori_loop(jnp.int32(0), steps, step, jnp.zeros((tile, COLUMNS), jnp.float32))
    plt.store(out_ref.at[row[:, None], column[None, :]], total.astype(out_ref.dtype), mask=of_group & of_matrix)
