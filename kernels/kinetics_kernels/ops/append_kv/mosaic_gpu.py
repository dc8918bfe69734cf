"""append_kv on NVIDIA GPUs (Hopper and newer) by Pallas Mosaic GPU: rows of head_dim written in place.

One program serves one sequence and one KV head. The kernel writes to the pools themselves, so nothing else of them
moves. Rows come and go by TMA; a page that its token fills comes back in tiles of 64 tokens, and its summary is
written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kinetics_kernels.ops.mosaic_gpu_limits import WARPGROUP_ROWS, refuse_unless
from kinetics_kernels.reference import check_summary
from kinetics_kernels.summaries.registry import kernel_code

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

INPUT_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def append_kv(
    k_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    v_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    summaries: Float[Array, "kv_heads num_pages *vectors head_dim"] | None,
    k_new: Float[Array, "batch kv_heads head_dim"],
    v_new: Float[Array, "batch kv_heads head_dim"],
    page_table: Int[Array, "batch max_pages"],
    lengths: Int[Array, " batch"],
    *,
    summary: str = "mean",
    interpret: Any = False,
) -> tuple[
    Float[Array, "kv_heads num_pages page_size head_dim"],
    Float[Array, "kv_heads num_pages page_size head_dim"],
    Float[Array, "kv_heads num_pages *vectors head_dim"] | None,
]:
    """As `reference.append_kv`; a summary's float32 sums run in another order, so it may round to its neighbour.

    `interpret` is `plgpu.kernel`'s. Raises ValueError as the reference does, NotImplementedError for a dtype, head_dim,
    page size or kind of summary that the kernel does not take.
    """
    vectors = check_summary("append_kv", summary, summaries).vectors
    make = None if summaries is None else kernel_code("append_kv", "mosaic_gpu", summary)
    kv_heads, _, page_size, head_dim = k_pages.shape
    refuse_unless(
        "append_kv",
        (k_pages.dtype in INPUT_DTYPES, f"pools in float32, bfloat16 or float16, not {k_pages.dtype}"),
        (k_pages.dtype == v_pages.dtype, f"pools of one dtype, not {k_pages.dtype} and {v_pages.dtype}"),
        (head_dim in (64, 128), f"a head_dim of 64 or 128, not {head_dim}"),
        (
            page_size < WARPGROUP_ROWS or page_size % WARPGROUP_ROWS == 0,
            f"pages of less than {WARPGROUP_ROWS} tokens or a multiple of them, not {page_size}",
        ),
    )
    pools = [k_pages, v_pages]
    if summaries is not None:
        pools.append(summaries.reshape(*k_pages.shape[:2], vectors, head_dim))
    refs = [jax.new_ref(pool) for pool in pools]
    plgpu.kernel(
        functools.partial(_append, make=make),
        out_type=(),
        scratch_types={
            "page_rows": plgpu.SMEM((WARPGROUP_ROWS, head_dim), k_pages.dtype),
            "new_rows": plgpu.SMEM((2, head_dim), k_pages.dtype),
            "summary_rows": plgpu.SMEM((vectors, head_dim), k_pages.dtype if summaries is None else summaries.dtype),
            "arrived": plgpu.Barrier(),
            "new_arrived": plgpu.Barrier(num_arrivals=2),
        },
        grid=(page_table.shape[0], kv_heads),
        grid_names=("sequence", "head"),
        kernel_name="append_kv",
        interpret=interpret,
    )(k_new.astype(k_pages.dtype), v_new.astype(k_pages.dtype), page_table, lengths, *refs)
    written = [jax.freeze(ref) for ref in refs]
    return written[0], written[1], None if summaries is None else written[2].reshape(summaries.shape)


def _append(
    k_new_ref,  # [batch, kv_heads, head_dim]
    v_new_ref,
    table_ref,  # [batch, max_pages]
    lengths_ref,  # [batch]
    k_ref,  # [kv_heads, num_pages, page_size, head_dim]
    v_ref,
    *summaries_refs,  # none, or one [kv_heads, num_pages, vectors, head_dim]
    page_rows,  # [64, head_dim]
    new_rows,  # [2, head_dim]: the token's key and value
    summary_rows,  # [vectors, head_dim]
    arrived,
    new_arrived,
    make: Callable[..., tuple[jax.Array, ...]] | None,  # of summaries; None without them
) -> None:
    sequence, head = lax.axis_index("sequence"), lax.axis_index("head")
    num_pages, page_size = k_ref.shape[1:3]
    length, max_pages = lengths_ref[sequence], table_ref.shape[1]
    position = jnp.maximum(length - 1, 0)
    logical, slot = position // page_size, position % page_size
    page = table_ref[sequence, jnp.minimum(logical, max_pages - 1)]
    named = (length > 0) & (logical < max_pages) & (page >= 0) & (page < num_pages)

    @pl.when(named)
    def _():
        plgpu.copy_gmem_to_smem(k_new_ref.at[sequence, head], new_rows.at[0], new_arrived)
        plgpu.copy_gmem_to_smem(v_new_ref.at[sequence, head], new_rows.at[1], new_arrived)
        plgpu.barrier_wait(new_arrived)
        plgpu.copy_smem_to_gmem(new_rows.at[0], k_ref.at[head, page, slot])
        plgpu.copy_smem_to_gmem(new_rows.at[1], v_ref.at[head, page, slot])
        plgpu.wait_smem_to_gmem(0)

    def over_page(reduce, combine, unused, value=lambda keys: keys):
        """A reduction of `value` of the page's keys over its tokens: `[head_dim]` float32."""
        parts = []
        for first in range(0, page_size, WARPGROUP_ROWS):
            tile = min(page_size, WARPGROUP_ROWS)
            plgpu.copy_gmem_to_smem(k_ref.at[head, page, pl.ds(first, tile)], page_rows.at[pl.ds(0, tile)], arrived)
            plgpu.barrier_wait(arrived)
            stored = _load(page_rows, plgpu.Layout.WGMMA).astype(jnp.float32)
            plgpu.commit_smem()  # read before another copy overwrites it
            token = plgpu.broadcasted_iota(jnp.int32, stored.shape, 0, layout=plgpu.Layout.WGMMA)
            # From shared memory, whatever came back of a row that was only just written.
            new = _on_rows(_load(new_rows.at[0], plgpu.Layout.WGMMA.reduce(0)).astype(jnp.float32))
            keys = jnp.where(first + token == slot, new, stored)
            parts.append(reduce(jnp.where(token < tile, value(keys), unused), axis=0))
        return functools.reduce(combine, parts)

    def close_page(summaries_ref, make) -> None:
        for which, vector in enumerate(make(over_page, page_size)):
            summary_rows[which] = vector.astype(summary_rows.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(summary_rows, summaries_ref.at[head, page])
        plgpu.wait_smem_to_gmem(0)

    for summaries_ref in summaries_refs:
        pl.when(named & (slot == page_size - 1))(functools.partial(close_page, summaries_ref, make))


def _on_rows(vector: jax.Array) -> jax.Array:
    """`[head_dim]` → `[64, head_dim]`."""
    return lax.broadcast_in_dim(vector, (WARPGROUP_ROWS, vector.shape[0]), (1,))


def _load(ref, layout) -> jax.Array:
    """Loads memory that is not laid out for its reader: slower, and little of it."""
    return plgpu.load(ref, layout=layout, optimized=False)  # pyright: ignore[reportCallIssue] -- jax 0.10's wants idx
