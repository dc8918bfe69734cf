"""paged_decode on NVIDIA GPUs (Ampere and newer) by Pallas-Triton.

One program attends for one sequence, one KV head and one part of its tokens: the whole query group in one tile of 16
rows, so K and V are read once. Tokens are addressed one by one (`page * page_size + slot`), which makes any page size
a gather of rows of head_dim. Parts write float32 partials, and a second kernel merges them by their log-sum-exps. A
part beyond a row's tokens writes a log-sum-exp of -inf alone: splits cost bytes only where there are tokens to split.
Triton's maximum passes over NaN, its sums do not: what says that a row failed is the sum of its weights.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from kinetics_kernels.numerics import result_shapes
from kinetics_kernels.ops.limits import GPU_PROGRAMS
from kinetics_kernels.ops.triton_limits import INPUT_DTYPES, refuse_unless

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Int

GROUP_TILE = 16  # the least rows of a tensor-core product
TILE_BYTES = 16_384  # of K, and of V, in flight per pipeline stage: 64 tokens of 128 bfloat16
MAX_SPLITS = 32  # the partials of a head fit in the registers of the merging program
LOG2_E = math.log2(math.e)


def paged_decode(
    q: Float[Array, "batch q_heads head_dim"],
    k_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    v_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    page_table: Int[Array, "batch max_pages"] | Int[Array, "batch kv_heads pages"],
    lengths: Int[Array, " batch"] | Int[Array, "batch kv_heads"],
    *,
    scale: float | None = None,
    splits: int | None = None,
    tokens: int | None = None,
    interpret: bool = False,
) -> tuple[Float[Array, "batch q_heads head_dim"], Float32[Array, "batch q_heads"]]:
    """As `reference.paged_decode`; weights are rounded to V's dtype before the second product.

    `splits`: parts that the tokens of a row are cut into, a power of two; by default as many as fill the chip, whatever
    the table's width. A row's arithmetic depends on its own tokens and on `splits`, on nothing else: a selection that
    keeps everything equals dense attention to the bit. `tokens`: of an iteration, a power of two from 16 to 128, by
    default 64 of up to 128 bfloat16. Raises NotImplementedError for a dtype, head_dim, group, size of pool or number of
    tokens that the kernel does not take.
    """
    batch, q_heads, head_dim = q.shape
    kv_heads, num_pages, page_size, _ = k_pages.shape
    group, table_pages = q_heads // kv_heads, page_table.shape[-1]
    tokens = min(64, TILE_BYTES // (head_dim * q.dtype.itemsize)) if tokens is None else tokens
    refuse_unless(
        "paged_decode",
        (tokens in (16, 32, 64, 128), f"tokens of an iteration of 16, 32, 64 or 128, not {tokens}"),
        (q.dtype in INPUT_DTYPES, f"q in float32, bfloat16 or float16, not {q.dtype}"),
        (q.dtype == k_pages.dtype == v_pages.dtype, f"q and pools of one dtype, not {q.dtype} and {k_pages.dtype}"),
        (head_dim in (16, 32, 64, 128, 256), f"a head_dim that is a power of two from 16 to 256, not {head_dim}"),
        (group <= GROUP_TILE, f"at most {GROUP_TILE} query heads per KV head, not {group}"),
        (kv_heads * num_pages * page_size < 2**31, "pools of fewer than 2 ** 31 tokens, counted for each KV head"),
    )
    shaped = result_shapes(q, k_pages, v_pages, page_table, lengths)
    rows = batch * kv_heads
    splits = default_splits(rows) if splits is None else splits
    attend = functools.partial(
        _attend,
        scale=(head_dim**-0.5 if scale is None else scale) * LOG2_E,
        group=group,
        kv_heads=kv_heads,
        num_pages=num_pages,
        page_size=page_size,
        rows_per_table=kv_heads if page_table.ndim == 2 else 1,
        tokens=tokens,
        splits=splits,
    )
    heads = rows * group
    partial_dtype = q.dtype if splits == 1 else jnp.float32
    out, lse = pl.pallas_call(
        attend,
        grid=(rows, splits),
        out_shape=(
            shaped((splits * heads, head_dim), partial_dtype),
            shaped((splits * heads,), jnp.float32),
        ),
        compiler_params=plt.CompilerParams(num_warps=4, num_stages=3),
        interpret=interpret,
        name="paged_decode",
    )(
        q.reshape(heads, head_dim),
        k_pages.reshape(-1, head_dim),
        v_pages.reshape(-1, head_dim),
        page_table.reshape(-1, table_pages),
        lengths.reshape(-1),
    )
    if splits > 1:
        out, lse = pl.pallas_call(
            functools.partial(_merge, heads=heads, splits=splits),
            grid=(heads,),
            out_shape=(shaped((heads, head_dim), q.dtype), shaped((heads,), jnp.float32)),
            compiler_params=plt.CompilerParams(num_warps=4, num_stages=1),
            interpret=interpret,
            name="merge_partials",
        )(out, lse)
    return out.reshape(q.shape), lse.reshape(batch, q_heads)


def default_splits(rows: int) -> int:
    """Parts of each row, a power of two: as many as fill the chip. Shards of up to 8 rows keep their bits, at 32."""
    return 1 << max(0, min(GPU_PROGRAMS // rows, MAX_SPLITS).bit_length() - 1)


def _attend(
    q_ref,  # [rows * group, head_dim], a row being a sequence and a KV head
    k_ref,  # [kv_heads * num_pages * page_size, head_dim]
    v_ref,
    table_ref,  # [rows / rows_per_table, pages]
    lengths_ref,  # [rows / rows_per_table]
    out_ref,  # [splits * rows * group, head_dim]
    lse_ref,  # [splits * rows * group]
    *,
    scale: float,  # times log2(e): the softmax is taken to base 2
    group: int,
    kv_heads: int,
    num_pages: int,
    page_size: int,
    rows_per_table: int,
    tokens: int,
    splits: int,
) -> None:
    row, part = pl.program_id(0), pl.program_id(1)
    table_row = jax.lax.div(row, rows_per_table)
    first_token = jax.lax.rem(row, kv_heads) * (num_pages * page_size)  # of this head in the pools
    length = jnp.minimum(lengths_ref[table_row], table_ref.shape[1] * page_size)
    tiles = jax.lax.div(length + (tokens - 1), tokens)
    per_part = jax.lax.div(tiles + (splits - 1), splits)

    member, dims = jnp.arange(GROUP_TILE), jnp.arange(q_ref.shape[1])[None, :]
    heads = row * group + member
    query = plt.load(q_ref.at[heads[:, None], dims], mask=(member < group)[:, None], other=0.0)

    def tile(index, carry):
        top, total, out, held = carry
        position = index * tokens + jnp.arange(tokens)
        inside = position < length
        page = plt.load(table_ref.at[table_row, jax.lax.div(position, page_size)], mask=inside, other=-1)
        inside = inside & (page >= 0)
        page = jnp.clip(page, 0, num_pages - 1)
        token = first_token + page * page_size + jax.lax.rem(position, page_size)
        keys = plt.load(k_ref.at[token[:, None], dims], mask=inside[:, None], other=0.0)
        scores = _product(query, keys, contract=1) * scale
        scores = jnp.where(inside[None, :], scores, -jnp.inf)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        anchor = jnp.where(new_top == -jnp.inf, 0.0, new_top)  # no token yet: exp2(-inf - 0) = 0, no NaN
        weights = jnp.exp2(scores - anchor[:, None])
        shrink = jnp.exp2(top - anchor)
        values = plt.load(v_ref.at[token[:, None], dims], mask=inside[:, None], other=0.0)
        total = total * shrink + jnp.sum(weights, axis=1)
        out = out * shrink[:, None] + _product(weights.astype(values.dtype), values, contract=0)
        return new_top, total, out, jnp.where(inside, 1, held)

    start = (
        jnp.full((GROUP_TILE,), -jnp.inf, jnp.float32),
        jnp.zeros((GROUP_TILE,), jnp.float32),
        jnp.zeros((GROUP_TILE, q_ref.shape[1]), jnp.float32),
        jnp.zeros((tokens,), jnp.int32),  # by place in a tile, whether there was a token
    )
    first = part * per_part
    top, total, out, held = jax.lax.fori_loop(first, jnp.minimum(first + per_part, tiles), tile, start)
    held = jnp.max(held) > 0
    divisor = jnp.where(held, total, 1.0)
    lse = jnp.where(held, top / LOG2_E + jnp.log(divisor), -jnp.inf)
    if splits == 1:  # as in numerics.softmax_end; of several parts the merge decides
        lse = jnp.where(divisor == 0, jnp.nan, lse)
    where = part * (pl.num_programs(0) * group) + heads
    out = (out / divisor[:, None]).astype(out_ref.dtype)
    written = (member < group) & ((first < tiles) | (part == 0))  # the merge reads no other part
    plt.store(out_ref.at[where[:, None], dims], out, mask=written[:, None])
    plt.store(lse_ref.at[where], lse, mask=member < group)


def _product(left: jax.Array, right: jax.Array, *, contract: int) -> jax.Array:
    """Float32 product of `left [m, k]` with `right` over its dimension `contract`; float32 operands stay float32."""
    exact = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    dimensions = (((1,), (contract,)), ((), ()))
    return jax.lax.dot_general(left, right, dimensions, precision=exact, preferred_element_type=jnp.float32)


def _merge(outs_ref, lses_ref, out_ref, lse_ref, *, heads: int, splits: int) -> None:
    """One query head: `outs [splits * heads, head_dim]`, `lses [splits * heads]` → `[heads, head_dim]`, `[heads]`."""
    head = pl.program_id(0)
    parts = jnp.arange(splits) * heads + head
    lses, dims = lses_ref[parts], jnp.arange(outs_ref.shape[1])
    top = jnp.max(lses)
    anchor = jnp.where(top == -jnp.inf, 0.0, top)
    weights = jnp.exp(lses - anchor)
    total = jnp.sum(weights)
    divisor = jnp.where(total == 0, 1.0, total)
    outs = plt.load(outs_ref.at[parts[:, None], dims[None, :]], mask=(lses != -jnp.inf)[:, None], other=0.0)
    # No part weighs anything: the first one holds 0 if the row has no token, NaN if all its scores are -inf.
    first = outs_ref[head, :]
    out = jnp.where(total == 0, first, jnp.sum(outs * weights[:, None], axis=0) / divisor)
    out_ref[head, :] = out.astype(out_ref.dtype)
    lse_ref[head] = jnp.where(total == 0, jnp.sum(first) - jnp.inf, anchor + jnp.log(divisor))
