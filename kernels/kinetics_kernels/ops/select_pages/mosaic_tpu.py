"""Page selection on TPUs: summaries gathered by DMA and scored in one kernel, the best chosen by XLA's top-k.

One grid step is one sequence with all its KV heads. Where the page table names RUN pages in a row, one strided copy
brings them all; else a page is a copy of its own. While a block of pages is scored, the next is on its way. No summary
is gathered in HBM; the scores, 4 bytes for each page and head, are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from kinetics_kernels.numerics import result_shapes
from kinetics_kernels.ops.mosaic_tpu_limits import INPUT_DTYPES, MAX_TABLE, kept_in_hbm, refuse_unless
from kinetics_kernels.reference import check_summary, choose_pages
from kinetics_kernels.summaries.registry import kernel_code

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Int, Int32

# Pages that one copy brings if their ids ascend by one; of bfloat16 summaries, one tile.
RUN = 16
# Pages of a block, the most that fit: the double buffer holds them for all heads.
BLOCK_PAGES = (512, 256, 128)
BUFFER_BYTES = 8 << 20


def select_pages(
    q: Float[Array, "batch q_heads head_dim"],
    summaries: Float[Array, "kv_heads num_pages *vectors head_dim"],
    page_table: Int[Array, "batch max_pages"],
    lengths: Int[Array, " batch"],
    *,
    page_size: int,
    pages: int,
    sink_pages: int = 1,
    recent_pages: int = 1,
    summary: str = "mean",
    scale: float | None = None,
    block_pages: int | None = None,
    interpret: Any = False,
) -> tuple[Int32[Array, "batch kv_heads pages"], Int32[Array, "batch kv_heads"]]:
    """As `reference.select_pages`; dot products are summed in another order, so scores may differ in their last bit.

    Any table is served; one whose entries 16 i … 16 i + 15 are consecutive ids, the first of them even, costs a
    sixteenth of the copies. `block_pages`, a multiple of 128, are scored at a time, by default as many as fit;
    `interpret` is pallas_call's. Raises ValueError as the reference does, NotImplementedError as `page_scores`.
    """
    used = -(-lengths // page_size)
    scores = page_scores(
        q, summaries, page_table, used, summary=summary, scale=scale, block_pages=block_pages, interpret=interpret
    )
    return choose_pages(
        scores, page_table, lengths, page_size=page_size, pages=pages, sink_pages=sink_pages, recent_pages=recent_pages
    )


def page_scores(
    q: Float[Array, "batch q_heads head_dim"],
    summaries: Float[Array, "kv_heads num_pages *vectors head_dim"],
    page_table: Int[Array, "batch max_pages"],
    used: Int[Array, " batch"],
    *,
    summary: str = "mean",
    scale: float | None = None,
    block_pages: int | None = None,
    interpret: Any = False,
) -> Float32[Array, "batch kv_heads max_pages"]:
    """The score of every page in use, as `reference.select_pages` defines it: `[batch, kv_heads, max_pages]` float32.

    `used` are the pages in use of each row; beyond them the scores are undefined and may be NaN. Raises
    NotImplementedError for dtypes but bfloat16 and float32, a head_dim that is not 128 (with two vectors: no multiple
    of 128), an odd number of bfloat16 pages of one vector, bfloat16 summaries of three vectors and more, kinds of
    summary without code for it, heads whose buffers do not fit in VMEM, tables of more than MAX_TABLE pages.
    """
    kind = check_summary("select_pages", summary, summaries)
    score = kernel_code("select_pages", "mosaic_tpu", summary)
    batch, q_heads, head_dim = q.shape
    kv_heads, num_pages = summaries.shape[:2]
    max_pages = page_table.shape[1]
    packed = summaries.dtype == jnp.bfloat16  # two in a word of 32 bits, the least that a copy moves
    vectors = 1 if packed else kind.vectors  # buffers of words
    block_pages = block_pages or _pages_of_a_block(max_pages, vectors * kv_heads * head_dim * 4)
    _refuse(q, summaries, max_pages, block_pages, vectors)
    padded = -(-max_pages // block_pages) * block_pages
    table = jnp.pad(page_table.astype(jnp.int32), ((0, 0), (0, padded - max_pages)), constant_values=-1)
    used = jnp.clip(used, 0, max_pages).astype(jnp.int32)
    table = _with_runs(table, used, num_pages, pairs=packed and kind.vectors == 1)[:, None]
    shaped = result_shapes(q, summaries, table, used)
    parts = 2 if batch % 2 == 0 else 1  # a chip of two cores takes one half on each
    steps = batch // parts

    def rows(*block, ahead=0, memory_space=pltpu.VMEM):
        index_map = lambda part, step, _: (part * steps + jnp.minimum(step + ahead, steps - 1), 0, 0)  # noqa: E731
        return pl.BlockSpec((1, *block), index_map, memory_space=memory_space)

    scores = pl.pallas_call(
        functools.partial(_kernel, steps=steps, score=score, scale=head_dim**-0.5 if scale is None else scale),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(parts, steps),
            in_specs=[
                rows(1, padded, memory_space=pltpu.SMEM),
                rows(1, padded, ahead=1, memory_space=pltpu.SMEM),
                rows(q_heads, head_dim),
                pl.BlockSpec(memory_space=pl.ANY),
            ],
            out_specs=rows(kv_heads, padded),
            scratch_shapes=[
                pltpu.VMEM((2, vectors, kv_heads, block_pages, head_dim), jnp.int32 if packed else jnp.float32),
                pltpu.SemaphoreType.DMA((2,)),
                pltpu.SMEM((1,), jnp.int32),
            ],
        ),
        out_shape=shaped((batch, kv_heads, padded), jnp.float32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary")),
        interpret=interpret,
        name="page_scores",
    )(used, table, table, q, kept_in_hbm(summaries, interpret))
    return scores[:, :, :max_pages]


def _pages_of_a_block(max_pages: int, page_bytes: int) -> int:
    fitting = [pages for pages in BLOCK_PAGES if 2 * pages * page_bytes <= BUFFER_BYTES]
    return min(max(fitting, default=BLOCK_PAGES[-1]), -(-max_pages // 128) * 128)


def _refuse(q: jax.Array, summaries: jax.Array, max_pages: int, block_pages: int, vectors: int) -> None:
    kv_heads, num_pages, *_, head_dim = summaries.shape
    one_vector, arrays = summaries.ndim == 3, (("q", q), ("summaries", summaries))
    block_bytes = vectors * kv_heads * block_pages * head_dim * 4
    refuse_unless(
        "select_pages",
        *[(array.dtype in INPUT_DTYPES, f"{name} in bfloat16 or float32, not {array.dtype}") for name, array in arrays],
        (head_dim % 128 == 0, f"a head_dim that is a multiple of 128, not {head_dim}"),
        (head_dim == 128 or not one_vector, f"summaries of one vector with a head_dim of 128, not {head_dim}"),
        (
            not one_vector or summaries.dtype != jnp.bfloat16 or num_pages % 2 == 0,
            f"an even number of bfloat16 summaries of one vector, not {num_pages}",
        ),
        (
            one_vector or summaries.dtype != jnp.bfloat16 or summaries.shape[2] == 2,
            f"bfloat16 summaries of one or two vectors, not {summaries.shape[2]}",
        ),
        (block_pages % 128 == 0, f"blocks of a multiple of 128 pages, not {block_pages}"),
        (
            2 * block_bytes <= BUFFER_BYTES,
            f"two blocks of up to {BUFFER_BYTES >> 20} MB, which {kv_heads} KV heads x {block_pages} pages exceed",
        ),
        (max_pages <= MAX_TABLE, f"page tables of at most {MAX_TABLE} pages, which fill SMEM, not {max_pages}"),
    )


def _with_runs(table: jax.Array, used: jax.Array, num_pages: int, pairs: bool) -> jax.Array:
    """`table [batch, padded]` with ~id for an id that starts a run at a multiple of RUN, all other ids in the pool.

    What lies beyond `used [batch]` ends no run: those pages are copied and never scored. With `pairs` a run starts at
    an even id.
    """
    place = jnp.arange(table.shape[1])
    follows = (jnp.roll(table, -1, axis=1) == table + 1) | (place + 1 >= used[:, None])
    reach = 1  # how many entries `follows` speaks for
    while reach < RUN - 1:
        step = min(reach, RUN - 1 - reach)
        follows &= jnp.roll(follows, -step, axis=1)
        reach += step
    starts = follows & (place % RUN == 0) & (table >= 0) & (table <= num_pages - RUN)
    if pairs:
        starts &= table % 2 == 0
    return jnp.where(starts, ~table, jnp.clip(table, 0, num_pages - 1))


def _kernel(
    used,  # [batch] int32, SMEM
    table,  # [1, 1, padded] int32, SMEM: this step's pages, `_with_runs`
    next_table,  # the next step's
    q_ref,  # [1, q_heads, head_dim]
    summaries,  # [kv_heads, num_pages, (2,) head_dim] in HBM
    scores_ref,  # [1, kv_heads, padded]
    buffer,  # [2, vectors, kv_heads, block_pages, head_dim]: float32, or pairs of bfloat16 as int32
    arrived,  # DMA semaphores [2]
    first,  # int32 [1], SMEM: the buffer of this step's first block
    *,
    steps,
    score: Callable[..., jax.Array],
    scale,
):
    part, step = pl.program_id(0), pl.program_id(1)
    _, vectors, kv_heads, block_pages, head_dim = buffer.shape
    packed, paired = summaries.dtype == jnp.bfloat16, summaries.dtype == jnp.bfloat16 and summaries.ndim == 3
    words = summaries.bitcast(jnp.int32) if packed else summaries

    def pages_of(step, block):
        return jnp.clip(used[part * steps + step] - block * block_pages, 0, block_pages)

    def each_group(table, block, pages, in_run, alone):
        """Calls `in_run(place, page)` for a run, else `alone(place, page of a place)`, for every RUN pages in use."""

        def one(index, _):
            place = index * RUN
            entry = table[0, 0, block * block_pages + place]
            pl.when(entry < 0)(lambda: in_run(place, ~entry))
            pl.when(entry >= 0)(lambda: alone(place, lambda at: table[0, 0, block * block_pages + at]))

        jax.lax.fori_loop(0, pl.cdiv(pages, RUN), one, None)

    def each_copy(act, step, table, block, slot):
        """Applies `act` to the copies of one block of a step.

        Two pages of one bfloat16 vector share a row of words: a page alone brings the other, a run fills half its rows.
        """
        pages = pages_of(step, block)

        def copies(place, page, count):
            row, rows = (page // 2, pl.cdiv(count, 2)) if paired else (page, count)
            for which in range(vectors):
                source = (slice(None), pl.ds(row, rows), *([which] if summaries.ndim == 4 else []))
                target = buffer.at[slot, which, :, pl.ds(place, rows)]
                act(pltpu.make_async_copy(words.at[source], target, arrived.at[slot]))

        def alone(place, page_at):
            places = place, jnp.minimum(place + RUN, pages)
            jax.lax.fori_loop(*places, lambda at, _: copies(at, page_at(at), 1), None)

        each_group(table, block, pages, lambda place, page: copies(place, page, RUN), alone)

    start = functools.partial(each_copy, lambda copy: copy.start())

    @pl.when(step == 0)
    def _():
        first[0] = 0
        start(step, table, 0, 0)

    blocks = jnp.maximum(pl.cdiv(used[part * steps + step], block_pages), 1)
    first_slot = first[0]
    group = q_ref.shape[1] // kv_heads
    query = jnp.mean(q_ref[0].astype(jnp.float32).reshape(kv_heads, group, head_dim), axis=1, keepdims=True)

    def gather_pair_halves(slot, block):
        """Gives pages that came alone the layout of a run: RUN rows of bfloat16 in RUN // 2 rows of words."""

        def alone(place, page_at):
            row = jax.lax.broadcasted_iota(jnp.int32, (kv_heads, RUN, head_dim), 1)
            odd = jnp.zeros_like(row)
            for at in range(RUN):
                odd = jnp.where(row == at, page_at(place + at) % 2, odd)
            place = pl.multiple_of(place, RUN)
            even_half, odd_half = _halves(buffer[slot, 0, :, pl.ds(place, RUN)])
            chosen = jnp.where(odd == 1, odd_half, even_half).astype(jnp.bfloat16)
            buffer[slot, 0, :, pl.ds(place, RUN // 2)] = pltpu.bitcast(chosen, jnp.int32)

        each_group(table, block, pages_of(step, block), lambda place, page: None, alone)

    def one_block(block, _):
        slot = (first_slot + block) % 2

        @pl.when(block + 1 < blocks)
        def _():
            start(step, table, block + 1, 1 - slot)

        @pl.when((block + 1 == blocks) & (step + 1 < steps))
        def _():
            start(step + 1, next_table, 0, 1 - slot)

        each_copy(_await, step, table, block, slot)
        if paired:
            gather_pair_halves(slot, block)
            runs = buffer[slot, 0].reshape(kv_heads, block_pages // RUN, RUN, head_dim)[:, :, : RUN // 2]
            stored = (pltpu.bitcast(runs, jnp.bfloat16).reshape(kv_heads, block_pages, head_dim),)
        elif packed:
            stored = tuple(half.astype(jnp.bfloat16) for half in _halves(buffer[slot, 0]))
        else:
            stored = tuple(buffer[slot, which] for which in range(vectors))
        lanes = pl.ds(pl.multiple_of(block * block_pages, block_pages), block_pages)
        scores_ref[0, :, lanes] = score(query, stored, scale, _dot)

    jax.lax.fori_loop(0, blocks, one_block, None)
    first[0] = (first_slot + blocks) % 2


def _await(copy) -> None:
    copy.wait()


def _halves(words: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The two bfloat16 of every word, as float32: of the even row and of the odd one."""
    return pltpu.bitcast(words << 16, jnp.float32), pltpu.bitcast(words & jnp.int32(-65536), jnp.float32)


def _dot(query: jax.Array, vectors: jax.Array) -> jax.Array:
    """In float32. bfloat16 vectors meet the query as the sum of three bfloat16: one pass through the matrix unit."""
    equation, exact = "hgd,hpd->hgp", jax.lax.Precision.HIGHEST
    if vectors.dtype == jnp.float32:
        return jnp.einsum(equation, query, vectors, precision=exact, preferred_element_type=jnp.float32)[:, 0]
    parts, rest = [], query
    for _ in range(3):
        parts.append(rest.astype(jnp.bfloat16).astype(jnp.float32))
        rest = rest - parts[-1]
    query = jnp.concatenate(parts, axis=1).astype(jnp.bfloat16)
    products = jnp.einsum(equation, query, vectors, preferred_element_type=jnp.float32)
    return products[:, 0] + (products[:, 1] + products[:, 2])
