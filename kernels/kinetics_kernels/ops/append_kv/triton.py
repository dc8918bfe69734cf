"""append_kv on NVIDIA GPUs (Ampere and newer) by Pallas-Triton: rows of head_dim written in place.

One program serves one sequence and one KV head. The pools are aliased to the results, so nothing else of them moves.
A page that its token fills is read back once, and its summary written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from kinetics_kernels.numerics import result_shapes
from kinetics_kernels.ops.triton_limits import INPUT_DTYPES, refuse_unless
from kinetics_kernels.reference import check_summary
from kinetics_kernels.summaries.registry import kernel_code

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

TILE_ELEMENTS = 4096  # of a page in registers while its summary is taken


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
    interpret: bool = False,
) -> tuple[
    Float[Array, "kv_heads num_pages page_size head_dim"],
    Float[Array, "kv_heads num_pages page_size head_dim"],
    Float[Array, "kv_heads num_pages *vectors head_dim"] | None,
]:
    """As `reference.append_kv`; a summary's float32 sums run in another order, so it may round to its neighbour.

    Raises ValueError as the reference does, NotImplementedError for a dtype, head_dim, page size, size of pool or kind
    of summary that the kernel does not take.
    """
    kind = check_summary("append_kv", summary, summaries)
    kv_heads, _, page_size, head_dim = k_pages.shape
    refuse_unless(
        "append_kv",
        (k_pages.dtype in INPUT_DTYPES, f"pools in float32, bfloat16 or float16, not {k_pages.dtype}"),
        (head_dim in (16, 32, 64, 128, 256), f"a head_dim that is a power of two from 16 to 256, not {head_dim}"),
        (page_size & (page_size - 1) == 0, f"a page size that is a power of two, not {page_size}"),
        (k_pages.size // head_dim < 2**31, "pools of fewer than 2 ** 31 tokens, counted for each KV head"),
    )
    pools = [k_pages, v_pages] if summaries is None else [k_pages, v_pages, summaries]
    rows = [pool.reshape(-1, head_dim) for pool in pools]
    shaped = result_shapes(*pools, k_new, v_new, page_table, lengths)
    kernel = functools.partial(
        _append,
        pools=len(pools),
        kv_heads=kv_heads,
        num_pages=k_pages.shape[1],
        page_size=page_size,
        vectors=kind.vectors,
        make=None if summaries is None else kernel_code("append_kv", "triton", summary),
        tile=min(page_size, TILE_ELEMENTS // head_dim),
    )
    written = pl.pallas_call(
        kernel,
        grid=(page_table.shape[0], kv_heads),
        out_shape=[shaped(pool.shape, pool.dtype) for pool in rows],
        input_output_aliases={4 + index: index for index in range(len(pools))},
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=1),
        interpret=interpret,
        name="append_kv",
    )(k_new.reshape(-1, head_dim), v_new.reshape(-1, head_dim), page_table, lengths, *rows)
    written = [pool.reshape(like.shape) for pool, like in zip(written, pools, strict=True)]
    return written[0], written[1], None if summaries is None else written[2]


def _append(
    k_new_ref,  # [batch * kv_heads, head_dim]
    v_new_ref,
    table_ref,  # [batch, max_pages]
    lengths_ref,  # [batch]
    *pool_refs,  # the pools as rows of head_dim, [kv_heads * num_pages * (page_size or vectors), head_dim]; then again
    pools: int,
    kv_heads: int,
    num_pages: int,
    page_size: int,
    vectors: int,
    make: Callable[..., tuple[jax.Array, ...]] | None,  # of summaries; None without them
    tile: int,
) -> None:
    sequence, head = pl.program_id(0), pl.program_id(1)
    written = pool_refs[pools:]  # the same memory as what goes in
    k_ref, v_ref = written[:2]
    length, dims = lengths_ref[sequence], jnp.arange(k_ref.shape[1])
    position = jnp.maximum(length - 1, 0)
    logical, slot = jax.lax.div(position, page_size), jax.lax.rem(position, page_size)
    named = (length > 0) & (logical < table_ref.shape[1])
    page = table_ref[sequence, jnp.minimum(logical, table_ref.shape[1] - 1)]
    named = named & (page >= 0) & (page < num_pages)
    first_token = (head * num_pages + page) * page_size
    k_new = k_new_ref[sequence * kv_heads + head, dims].astype(k_ref.dtype)
    v_new = v_new_ref[sequence * kv_heads + head, dims].astype(v_ref.dtype)

    @pl.when(named)
    def _():
        k_ref[first_token + slot, dims] = k_new
        v_ref[first_token + slot, dims] = v_new

    def close_page(summaries_ref, make) -> None:
        def keys(index):  # [tile, head_dim]; the new key comes from registers, not from memory just written
            row = index * tile + jnp.arange(tile)[:, None]
            stored = plt.load(k_ref.at[first_token + row, dims[None, :]], mask=row < slot, other=0.0)
            return jnp.where(row == slot, k_new[None, :], stored).astype(jnp.float32)

        def over_tiles(combine, start):
            return jax.lax.fori_loop(0, page_size // tile, lambda i, carry: combine(carry, keys(i)), start)

        made = make(over_tiles, jnp.zeros(dims.shape, jnp.float32), page_size)
        for which, vector in enumerate(made):
            row = (head * num_pages + page) * vectors + which
            summaries_ref[row, dims] = vector.astype(summaries_ref.dtype)

    for summaries_ref in written[2:]:
        pl.when(named & (slot == page_size - 1))(functools.partial(close_page, summaries_ref, make))
