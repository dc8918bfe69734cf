"""Page selection on TPUs: summaries gathered by DMA and scored in one kernel, the best chosen by XLA's top-k.

One grid step is one sequence with all its KV heads; a page's summaries are one strided copy. While a block of them is
scored, the next is on its way. No summary is gathered in HBM; the scores, 4 bytes for each page and head, are.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kinetics_kernels.reference import choose_pages

# Pages of a block; the double buffer holds them for all heads.
BLOCK_PAGES = 512
BUFFER_BYTES = 8 << 20
# Two tables, this step's and the next one's, two buffers each, in 1 MB of SMEM.
MAX_TABLE = 48 << 10


def select_pages(
    q: jax.Array,
    summaries: jax.Array,
    page_table: jax.Array,
    lengths: jax.Array,
    *,
    page_size: int,
    pages: int,
    sink_pages: int = 1,
    recent_pages: int = 1,
    summary: str = "mean",
    scale: float | None = None,
    block_pages: int = BLOCK_PAGES,
    interpret: Any = False,
) -> tuple[jax.Array, jax.Array]:
    """`reference.select_pages` with scores from a TPU kernel; shapes, dtypes and meanings are given there.

    `block_pages`, a multiple of 128, are scored at a time; `interpret` is pallas_call's. `scale` orders nothing for
    the `mean` key. Raises NotImplementedError for other kinds of summary and for what `page_scores` cannot do.
    """
    if summary != "mean":
        raise NotImplementedError(f"select_pages on mosaic_tpu: summary {summary!r} is not scored here, only 'mean'")
    used = -(-lengths // page_size)
    scores = page_scores(q, summaries, page_table, used, block_pages=block_pages, interpret=interpret)
    return choose_pages(
        scores, page_table, lengths, page_size=page_size, pages=pages, sink_pages=sink_pages, recent_pages=recent_pages
    )


def page_scores(
    q: jax.Array,
    summaries: jax.Array,
    page_table: jax.Array,
    used: jax.Array,
    *,
    block_pages: int = BLOCK_PAGES,
    interpret: Any = False,
) -> jax.Array:
    """q̄·μ of every page in use: `[batch, kv_heads, max_pages]` float32, q̄ the mean query of a group.

    `q [batch, q_heads, head_dim]`, `summaries [kv_heads, num_pages, head_dim]`, `page_table [batch, max_pages]`,
    `used [batch]` pages of each row; beyond them the scores are undefined and may be NaN. Raises NotImplementedError
    for dtypes but bfloat16 and float32, a head_dim that is no multiple of 128, an odd number of bfloat16 pages, heads
    whose buffers do not fit in VMEM, tables of more than MAX_TABLE pages.
    """
    batch, q_heads, head_dim = q.shape
    kv_heads = summaries.shape[0]
    max_pages = page_table.shape[1]
    _refuse(q, summaries, max_pages, block_pages)
    padded = -(-max_pages // block_pages) * block_pages
    table = jnp.pad(page_table.astype(jnp.int32), ((0, 0), (0, padded - max_pages)), constant_values=-1)[:, None]
    parts = 2 if batch % 2 == 0 else 1  # a chip of two cores takes one half on each
    steps = batch // parts

    def rows(*block, ahead=0, memory_space=pltpu.VMEM):
        index_map = lambda part, step, _: (part * steps + jnp.minimum(step + ahead, steps - 1), 0, 0)  # noqa: E731
        return pl.BlockSpec((1, *block), index_map, memory_space=memory_space)

    stored = jnp.int32 if summaries.dtype == jnp.bfloat16 else jnp.float32
    scores = pl.pallas_call(
        functools.partial(_kernel, steps=steps),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(parts, steps),
            in_specs=[
                rows(1, padded, memory_space=pltpu.SMEM),
                rows(1, padded, ahead=1, memory_space=pltpu.SMEM),
                rows(1, padded),
                rows(q_heads, head_dim),
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=rows(kv_heads, padded),
            scratch_shapes=[
                pltpu.VMEM((2, kv_heads, block_pages, head_dim), stored),
                pltpu.SemaphoreType.DMA((2,)),
                pltpu.SMEM((1,), jnp.int32),
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((batch, kv_heads, padded), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="page_scores",
    )(jnp.clip(used, 0, max_pages).astype(jnp.int32), table, table, table, q, summaries)
    return scores[:, :, :max_pages]


def _refuse(q: jax.Array, summaries: jax.Array, max_pages: int, block_pages: int) -> None:
    kv_heads, num_pages, head_dim = summaries.shape
    for name, array in (("q", q), ("summaries", summaries)):
        if array.dtype not in (jnp.bfloat16, jnp.float32):
            raise NotImplementedError(f"select_pages on mosaic_tpu: {name} is {array.dtype}, not bfloat16 or float32")
    if head_dim % 128:
        raise NotImplementedError(f"select_pages on mosaic_tpu: head_dim {head_dim} is no multiple of 128 lanes")
    if summaries.dtype == jnp.bfloat16 and num_pages % 2:
        raise NotImplementedError(f"select_pages on mosaic_tpu: {num_pages} bfloat16 summaries; an even number is read")
    if block_pages % 128 or 2 * kv_heads * block_pages * head_dim * 4 > BUFFER_BYTES:
        raise NotImplementedError(
            f"select_pages on mosaic_tpu: blocks of {block_pages} pages are no multiple of 128 or, for {kv_heads} KV "
            f"heads, more than {BUFFER_BYTES >> 20} MB"
        )
    if max_pages > MAX_TABLE:
        raise NotImplementedError(
            f"select_pages on mosaic_tpu: a table of {max_pages} pages; SMEM holds {MAX_TABLE}: larger pages"
        )


def _kernel(
    used,  # [batch] int32, SMEM
    table,  # [1, 1, padded] int32, SMEM: this step's pages
    next_table,  # the next step's
    table_lanes,  # this step's once more, as a vector
    q_ref,  # [1, q_heads, head_dim]
    summaries,  # [kv_heads, num_pages, head_dim] in HBM
    scores_ref,  # [1, kv_heads, padded]
    buffer,  # [2, kv_heads, block_pages, head_dim]: float32, or pairs of bfloat16 rows as int32
    arrived,  # DMA semaphores [2]
    first,  # int32 [1], SMEM: the buffer of this step's first block
    *,
    steps,
):
    part, step = pl.program_id(0), pl.program_id(1)
    _, kv_heads, block_pages, head_dim = buffer.shape
    paired = summaries.dtype == jnp.bfloat16
    # Copies move rows of 32 bits: a row of bfloat16 comes with the one it shares them with.
    rows = summaries.bitcast(jnp.int32) if paired else summaries

    def pages_of(step, block):
        return jnp.clip(used[part * steps + step] - block * block_pages, 0, block_pages)

    def copy(row, slot, index):
        return pltpu.make_async_copy(rows.at[:, pl.ds(row, 1)], buffer.at[slot, :, pl.ds(index, 1)], arrived.at[slot])

    def fetch(step, table, block, slot):
        def one(index, _):
            page = jnp.clip(table[0, 0, block * block_pages + index], 0, summaries.shape[1] - 1)
            copy(page // 2 if paired else page, slot, index).start()

        jax.lax.fori_loop(0, pages_of(step, block), one, None)

    @pl.when(step == 0)
    def _():
        first[0] = 0
        fetch(step, table, 0, 0)

    blocks = jnp.maximum(pl.cdiv(used[part * steps + step], block_pages), 1)
    first_slot = first[0]
    group = q_ref.shape[1] // kv_heads
    query = jnp.mean(q_ref[0].astype(jnp.float32).reshape(kv_heads, group, head_dim), axis=1, keepdims=True)

    def score(keys):
        precision = jax.lax.Precision.HIGHEST
        found = jnp.einsum("hgd,hpd->hgp", query, keys, precision=precision, preferred_element_type=jnp.float32)
        return found[:, 0]

    def one_block(block, _):
        slot = (first_slot + block) % 2

        @pl.when(block + 1 < blocks)
        def _():
            fetch(step, table, block + 1, 1 - slot)

        @pl.when((block + 1 == blocks) & (step + 1 < steps))
        def _():
            fetch(step + 1, next_table, 0, 1 - slot)

        _await(copy, pages_of(step, block), slot)
        lanes = pl.ds(pl.multiple_of(block * block_pages, block_pages), block_pages)
        stored = buffer[slot]
        if paired:
            even = pltpu.bitcast(stored << 16, jnp.float32)
            odd = pltpu.bitcast(stored & jnp.int32(-65536), jnp.float32)
            page = jnp.maximum(table_lanes[0, :, lanes], 0)
            scores_ref[0, :, lanes] = jnp.where(page % 2 == 0, score(even), score(odd))
        else:
            scores_ref[0, :, lanes] = score(stored)

    jax.lax.fori_loop(0, blocks, one_block, None)
    first[0] = (first_slot + blocks) % 2


def _await(copy, pages, slot):
    """Waits for the copies of a block; a wait counts bytes, so any row stands for any other."""

    def one(index, _):
        copy(0, slot, index).wait()

    jax.lax.fori_loop(0, pages, one, None)
