"""Paged decode on TPUs: pages gathered by DMA into a double buffer, one running softmax over blocks of them.

One grid step is one sequence and as many KV heads as share its page table: all that fit in VMEM where the table belongs
to the sequence (a page is then one strided copy for all of them), one where every KV head has its own. While a block is
computed, the next is on its way, be it of the same step or the first of the next. K and V cross HBM once.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kinetics_kernels.numerics import result_shapes
from kinetics_kernels.ops.mosaic_tpu_limits import INPUT_DTYPES, MAX_TABLE, kept_in_hbm, refuse_unless

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Int

# Tokens of a block, whatever the table: a short table and a long one do the same arithmetic on the tokens they share.
BLOCK_TOKENS = 512
# K and V, two buffers each, of all heads of a step. v5e gives a kernel 16 MB of VMEM by default.
BUFFER_BYTES = 8 << 20


def paged_decode(
    q: Float[Array, "batch q_heads head_dim"],
    k_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    v_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    page_table: Int[Array, "batch max_pages"] | Int[Array, "batch kv_heads pages"],
    lengths: Int[Array, " batch"] | Int[Array, "batch kv_heads"],
    *,
    scale: float | None = None,
    block_tokens: int = BLOCK_TOKENS,
    interpret: Any = False,
) -> tuple[Float[Array, "batch q_heads head_dim"], Float32[Array, "batch q_heads"]]:
    """`reference.paged_decode` as one TPU kernel; shapes, dtypes and meanings are given there.

    `block_tokens` is the size of one block of the running softmax, the same bits for any table at the same size;
    `interpret` is pallas_call's. Scores, weights and sums are float32; bfloat16 weights would round them, so that
    weights meet bfloat16 values as the sum of two. Raises NotImplementedError for what the kernel cannot do: dtypes
    but bfloat16 and float32, a head_dim that is no multiple of 128, a page_size that does not divide `block_tokens` or
    is no multiple of 8, tables of more than MAX_TABLE pages.
    """
    batch, q_heads, head_dim = q.shape
    kv_heads, _, page_size, _ = k_pages.shape
    _refuse(q, k_pages, v_pages, page_table, block_tokens)
    shaped = result_shapes(q, k_pages, v_pages, page_table, lengths)
    group = q_heads // kv_heads
    per_head = page_table.ndim == 3
    heads = 1 if per_head else _heads_of_a_step(kv_heads, block_tokens * head_dim * k_pages.dtype.itemsize)
    head_steps = kv_heads // heads
    steps = batch * head_steps
    parts = 2 if steps % 2 == 0 else 1  # a chip of two cores takes one half on each
    steps //= parts

    def row(part, step):
        """The row of the table that a step reads, its sequence, and its place among the sequence's steps."""
        step = part * steps + step
        sequence, place = step // head_steps, step % head_steps
        return (step if per_head else sequence), sequence, place

    def table(ahead):
        index_map = lambda part, step, _: (row(part, jnp.minimum(step + ahead, steps - 1))[0], 0, 0)  # noqa: E731
        return pl.BlockSpec((1, 1, page_table.shape[-1]), index_map, memory_space=pltpu.SMEM)

    def rows(*block):
        return pl.BlockSpec((1, heads, *block), lambda part, step, _: (*row(part, step)[1:], *(0,) * len(block)))

    buffer = pltpu.VMEM((2, heads, block_tokens // page_size, page_size, head_dim), k_pages.dtype)
    out, lse = pl.pallas_call(
        functools.partial(
            _kernel,
            scale=head_dim**-0.5 if scale is None else scale,
            row=row,
            dtype=jnp.promote_types(q.dtype, k_pages.dtype),
        ),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(parts, steps),
            in_specs=[
                table(ahead=0),
                table(ahead=1),
                rows(group, head_dim),
                pl.BlockSpec(memory_space=pl.ANY),
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=[rows(group, head_dim), rows(group, 1)],
            scratch_shapes=[buffer, buffer, pltpu.SemaphoreType.DMA((2, 2)), pltpu.SMEM((3,), jnp.int32)],
        ),
        out_shape=[
            shaped((batch, kv_heads, group, head_dim), q.dtype),
            shaped((batch, kv_heads, group, 1), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="paged_decode",
    )(
        jnp.minimum(lengths, page_table.shape[-1] * page_size).reshape(-1).astype(jnp.int32),
        *[page_table.reshape(-1, 1, page_table.shape[-1]).astype(jnp.int32)] * 2,
        q.reshape(batch, kv_heads, group, head_dim),
        kept_in_hbm(k_pages, interpret),
        kept_in_hbm(v_pages, interpret),
    )
    return out.reshape(q.shape), lse.reshape(batch, q_heads)


def _refuse(q: jax.Array, k_pages: jax.Array, v_pages: jax.Array, page_table: jax.Array, block_tokens: int) -> None:
    (page_size, head_dim), table_pages = k_pages.shape[2:], page_table.shape[-1]
    arrays = (("q", q), ("k_pages", k_pages), ("v_pages", v_pages))
    refuse_unless(
        "paged_decode",
        *[(array.dtype in INPUT_DTYPES, f"{name} in bfloat16 or float32, not {array.dtype}") for name, array in arrays],
        (k_pages.dtype == v_pages.dtype, f"pools of one dtype, not {k_pages.dtype} and {v_pages.dtype}"),
        (head_dim % 128 == 0, f"a head_dim that is a multiple of 128 (else XLA copies the pools), not {head_dim}"),
        (
            page_size % 8 == 0 and block_tokens % page_size == 0,
            f"a page_size that is a multiple of 8 and divides {block_tokens} tokens, not {page_size}",
        ),
        (table_pages <= MAX_TABLE, f"page tables of at most {MAX_TABLE} pages, which fill SMEM, not {table_pages}"),
    )


def _heads_of_a_step(kv_heads: int, buffer_bytes: int) -> int:
    """The largest divisor of the number of heads whose four buffers fit in VMEM."""
    fitting = [n for n in range(1, kv_heads + 1) if kv_heads % n == 0 and 4 * n * buffer_bytes <= BUFFER_BYTES]
    return max(fitting, default=1)


def _kernel(
    lengths,  # [rows of the table] int32, SMEM
    table,  # [1, 1, max_pages] int32, SMEM: this step's pages
    next_table,  # the next step's
    q_ref,  # [1, heads, group, head_dim]
    k_pages,  # [kv_heads, num_pages, page_size, head_dim] in HBM
    v_pages,
    out_ref,  # [1, heads, group, head_dim]
    lse_ref,  # [1, heads, group, 1]
    k_buffer,  # [2, heads, pages of a block, page_size, head_dim]
    v_buffer,
    arrived,  # DMA semaphores [2 buffers, K and V]
    state,  # int32 [3], SMEM: missing pages of the block in either buffer; the buffer of this step's first block
    *,
    scale,
    row,
    dtype,
):
    part, step = pl.program_id(0), pl.program_id(1)
    _, heads, per_block, page_size, head_dim = k_buffer.shape
    tokens = per_block * page_size
    pools = ((k_pages, k_buffer), (v_pages, v_buffer))

    def copies(page, place, slot, index):
        """Page `page` of this step's heads, K and V, to a place of a block."""
        chosen = pl.ds(place * heads, heads)
        return [
            pltpu.make_async_copy(pool.at[chosen, page], buffer.at[slot, :, index], arrived.at[slot, which])
            for which, (pool, buffer) in enumerate(pools)
        ]

    def fetch(step, table, block, slot):
        """Starts the copies of the pages in use of one block of a step."""
        table_row, _, place = row(part, step)
        first = block * per_block
        used = _pages_of_a_block(lengths[table_row], block, per_block, page_size)

        def one(index, missing):
            page = table[0, 0, first + index]
            for copy in copies(_page_in_pool(page, k_pages), place, slot, index):
                copy.start()
            return missing + (page < 0).astype(jnp.int32)

        state[slot] = jax.lax.fori_loop(0, used, one, jnp.int32(0))

    @pl.when(step == 0)
    def _():
        state[2] = 0
        fetch(step, table, 0, 0)

    length = lengths[row(part, step)[0]]
    blocks = jnp.maximum(pl.cdiv(length, tokens), 1)  # an empty row attends one block of nothing
    first_slot = state[2]
    query = q_ref[0].astype(dtype)

    def one_block(block, carry):
        slot = (first_slot + block) % 2

        @pl.when(block + 1 < blocks)
        def _():
            fetch(step, table, block + 1, 1 - slot)

        @pl.when((block + 1 == blocks) & (step + 1 < pl.num_programs(1)))
        def _():
            fetch(step + 1, next_table, 0, 1 - slot)

        used, missing = _pages_of_a_block(length, block, per_block, page_size), state[slot]
        _await(copies, used, slot)

        @pl.when((length < (block + 1) * tokens) | (missing > 0))
        def _():
            _clear_unused(v_buffer.at[slot], table, length, block)

        token = jax.lax.broadcasted_iota(jnp.int32, (1, 1, tokens), 2)

        def without_missing(index, inside):  # int32: Mosaic carries no mask through a loop
            on_page = (token >= index * page_size) & (token < (index + 1) * page_size)
            return jnp.where(on_page & (table[0, 0, block * per_block + index] < 0), 0, inside)

        inside = (token < length - block * tokens).astype(jnp.int32)
        inside = jax.lax.fori_loop(0, jnp.where(missing > 0, used, 0), without_missing, inside)
        keys = k_buffer[slot].reshape(heads, tokens, head_dim).astype(dtype)
        values = v_buffer[slot].reshape(heads, tokens, head_dim).astype(dtype)
        top, total, out, held = carry
        scores = _dot("hgd,htd->hgt", query, keys) * scale
        scores = jnp.where(inside > 0, scores, -jnp.inf)
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
        anchor = jnp.where(new_top == -jnp.inf, 0.0, new_top)
        weights = jnp.exp(scores - anchor)
        shrink = jnp.exp(top - anchor)
        total = total * shrink + jnp.sum(weights, axis=-1, keepdims=True)
        return new_top, total, out * shrink + _weighted_sum(weights, values), held + used - missing

    empty = jnp.zeros((*query.shape[:2], 1), jnp.float32)
    start = (empty - jnp.inf, empty, jnp.zeros(query.shape, jnp.float32), jnp.int32(0))  # the last: pages attended
    top, total, out, held = jax.lax.fori_loop(0, blocks, one_block, start)
    state[2] = (first_slot + blocks) % 2
    divisor = jnp.where(held > 0, total, 1.0)  # as in numerics.softmax_end
    out_ref[0] = (out / divisor).astype(out_ref.dtype)
    lse = jnp.where(divisor == 0, jnp.nan, top + jnp.log(divisor))
    lse_ref[0] = jnp.where(held > 0, lse, -jnp.inf)


def _pages_of_a_block(length, block, per_block: int, page_size: int):
    """Pages in use of a block of a row of `length` tokens."""
    return jnp.clip(pl.cdiv(length, page_size) - block * per_block, 0, per_block)


def _clear_unused(values, table, length, block) -> None:
    """Zeroes the values that no token of the row holds: they may be NaN, which a weight of 0 does not undo."""
    heads, per_block, page_size, _ = values.shape

    def one(index, _):
        place = block * per_block + index
        page = table[0, 0, jnp.minimum(place, table.shape[2] - 1)]
        held = jnp.where(page < 0, 0, length - place * page_size)
        for head in range(heads):
            rows = values[head, index]
            slot = jax.lax.broadcasted_iota(jnp.int32, rows.shape, 0)
            values[head, index] = jnp.where(slot < held, rows, jnp.zeros_like(rows))

    jax.lax.fori_loop(0, per_block, one, None)


def _page_in_pool(page, pool):
    """A page that can be read: what a missing page (-1) gives is masked, ids past the pool are clipped as in jnp."""
    return jnp.clip(page, 0, pool.shape[1] - 1)


def _await(copies, pages, slot):
    """Waits for the copies of a block's pages; a wait counts bytes, so any page stands for any other."""

    def one(index, _):
        for copy in copies(0, 0, slot, index):
            copy.wait()

    jax.lax.fori_loop(0, pages, one, None)


def _dot(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    """Products of float32 in float32, of bfloat16 as they are, summed in float32."""
    precision = jax.lax.Precision.HIGHEST if left.dtype == jnp.float32 else None
    return jnp.einsum(equation, left, right, precision=precision, preferred_element_type=jnp.float32)


def _weighted_sum(weights: jax.Array, values: jax.Array) -> jax.Array:
    """`[heads, group, tokens]` float32 weights by `[heads, tokens, head_dim]` values, in float32.

    bfloat16 values meet the weights as the sum of two bfloat16, side by side in one product: 16 bits of the weight for
    one pass of the values through the matrix unit.
    """
    if values.dtype == jnp.float32:
        return _dot("hgt,htd->hgd", weights, values)
    high = weights.astype(jnp.bfloat16)
    low = (weights - high.astype(jnp.float32)).astype(jnp.bfloat16)
    both = _dot("hgt,htd->hgd", jnp.concatenate([high, low], axis=1), values)
    return both[:, : weights.shape[1]] + both[:, weights.shape[1] :]
