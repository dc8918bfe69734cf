"""select_pages on NVIDIA GPUs (Ampere and newer) by Pallas-Triton: scores and exact choice in one kernel.

One program serves one sequence and one KV head. It gathers the summaries through the page table and keeps their scores
in registers as integers of the same order, finds the k-th largest by bisection, two bits a pass, and writes the pages
above it, and the lowest of those equal to it, in their logical order. No score reaches memory.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from kinetics_kernels.ops.triton_limits import INPUT_DTYPES, refuse_unless
from kinetics_kernels.reference import SUMMARY_VECTORS

MOST_PAGES = 8192  # one program holds the scores of every page in registers: 128 of them a thread at this width
TILE_BYTES = 16_384  # of summaries in registers at a time: 64 pages of 128 bfloat16
HIGHEST_KEY, LOWEST_KEY = 0x7FFFFFFF, -0x80000000


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
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """As `reference.select_pages`; dot products are summed in another order, so scores may differ in their last bit.

    Raises ValueError as there, NotImplementedError for a dtype, head_dim or width of table that the kernel does not
    take.
    """
    if summary not in SUMMARY_VECTORS:
        raise ValueError(f"select_pages: summary {summary!r} is not known (known: {', '.join(SUMMARY_VECTORS)})")
    if recent_pages < 1 or pages < sink_pages + recent_pages + 1:
        raise ValueError(
            f"select_pages: {pages} pages with {sink_pages} sink and {recent_pages} recent leave no choice"
        )
    batch, q_heads, head_dim = q.shape
    kv_heads, num_pages = summaries.shape[:2]
    max_pages = page_table.shape[1]
    refuse_unless(
        "select_pages",
        (q.dtype in INPUT_DTYPES, f"q in float32, bfloat16 or float16, not {q.dtype}"),
        (summaries.dtype in INPUT_DTYPES, f"summaries in float32, bfloat16 or float16, not {summaries.dtype}"),
        (head_dim in (16, 32, 64, 128, 256), f"a head_dim that is a power of two from 16 to 256, not {head_dim}"),
        (max_pages <= MOST_PAGES, f"page tables of at most {MOST_PAGES} pages, not {max_pages}"),
    )
    rows = batch * kv_heads
    width = pl.next_power_of_2(max_pages)
    kernel = functools.partial(
        _select,
        group=q_heads // kv_heads,
        kv_heads=kv_heads,
        num_pages=num_pages,
        page_size=page_size,
        pages=pages,
        sink_pages=sink_pages,
        recent_pages=recent_pages,
        summary=summary,
        scale=head_dim**-0.5 if scale is None else scale,
        width=width,
        tile=min(width, TILE_BYTES // (SUMMARY_VECTORS[summary] * head_dim * summaries.dtype.itemsize)),
    )
    selected, covered = pl.pallas_call(
        kernel,
        grid=(rows,),
        out_shape=(jax.ShapeDtypeStruct((rows, pages), jnp.int32), jax.ShapeDtypeStruct((rows,), jnp.int32)),
        compiler_params=plt.CompilerParams(num_warps=4 if width <= 2048 else 8, num_stages=2),
        interpret=interpret,
        name="select_pages",
    )(q.reshape(-1, head_dim), summaries.reshape(-1, head_dim), page_table, lengths)
    return selected.reshape(batch, kv_heads, pages), covered.reshape(batch, kv_heads)


def _select(
    q_ref,  # [batch * q_heads, head_dim]
    summaries_ref,  # [kv_heads * num_pages * vectors, head_dim]
    table_ref,  # [batch, max_pages]
    lengths_ref,  # [batch]
    selected_ref,  # [batch * kv_heads, pages]
    covered_ref,  # [batch * kv_heads]
    *,
    group: int,
    kv_heads: int,
    num_pages: int,
    page_size: int,
    pages: int,
    sink_pages: int,
    recent_pages: int,
    summary: str,
    scale: float,
    width: int,
    tile: int,
) -> None:
    row = pl.program_id(0)
    sequence = jax.lax.div(row, kv_heads)
    first_page = jax.lax.rem(row, kv_heads) * num_pages
    length = lengths_ref[sequence]
    count = jax.lax.div(length + (page_size - 1), page_size)  # pages in use; the last one is the current page
    there = jnp.minimum(count, table_ref.shape[1])

    member, dims = jnp.arange(pl.next_power_of_2(group))[:, None], jnp.arange(q_ref.shape[1])[None, :]
    queries = plt.load(q_ref.at[row * group + member, dims], mask=member < group, other=0.0)
    query = jnp.sum(queries.astype(jnp.float32), axis=0, keepdims=True) / group

    def vector(page: jax.Array, which: int, mask: jax.Array) -> jax.Array:
        where = (first_page + page) * SUMMARY_VECTORS[summary] + which
        return plt.load(summaries_ref.at[where[:, None], dims], mask=mask[:, None], other=0.0).astype(jnp.float32)

    def score_tile(index, scores):
        logical = index * tile + jnp.arange(tile)
        mask = logical < there
        page = plt.load(table_ref.at[sequence, logical], mask=mask, other=0)
        page = jnp.clip(page, 0, num_pages - 1)
        if summary == "mean":
            terms = query * vector(page, 0, mask)
        elif summary == "min_max":
            terms = jnp.minimum(query, 0.0) * vector(page, 0, mask) + jnp.maximum(query, 0.0) * vector(page, 1, mask)
        else:
            scaled, spread = query * scale, vector(page, 1, mask)
            terms = scaled * vector(page, 0, mask) + 0.5 * (scaled * scaled) * (spread * spread)
        found = jnp.sum(terms, axis=1)
        return jnp.where(jnp.arange(width // tile)[:, None] == index, found[None, :], scores)

    scores = jnp.zeros((width // tile, tile), jnp.float32)
    scores = jax.lax.fori_loop(0, jax.lax.div(there + (tile - 1), tile), score_tile, scores).reshape(width)

    logical = jnp.arange(width)
    forced = (logical < sink_pages) | (logical >= count - recent_pages)
    keys = jnp.where(forced, HIGHEST_KEY, _ordered(scores))
    keys = jnp.where(logical < there, keys, LOWEST_KEY)
    wanted = jnp.minimum(pages, there)
    threshold = _kth_largest(keys, wanted)
    above, equal = keys > threshold, (keys == threshold) & (logical < there)
    spare = wanted - jnp.sum(above.astype(jnp.int32))
    taken = above | (equal & (jnp.cumsum(equal.astype(jnp.int32)) <= spare))
    rank = jnp.cumsum(taken.astype(jnp.int32)) - 1

    # Masked lanes point beyond the row: the interpreter lets every lane write, and drops those out of bounds.
    ids = plt.load(table_ref.at[sequence, logical], mask=logical < there, other=-1)
    plt.store(selected_ref.at[row, jnp.where(taken, rank, pages)], ids, mask=taken)
    slot = jnp.arange(pl.next_power_of_2(pages))
    unused = (slot >= wanted) & (slot < pages)
    plt.store(selected_ref.at[row, jnp.where(unused, slot, pages)], jnp.full(slot.shape, -1, jnp.int32), mask=unused)
    covered_ref[row] = length - (count - jnp.minimum(count, pages)) * page_size


def _ordered(scores: jax.Array) -> jax.Array:
    """Float32 → int32 of the same order; both zeros are one."""
    bits = jax.lax.bitcast_convert_type(jnp.where(scores == 0.0, 0.0, scores), jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _kth_largest(keys: jax.Array, k: jax.Array) -> jax.Array:
    """The k-th largest of `keys [width]` int32: the largest value that at least k keys reach, two bits at a time."""

    def two_bits(index, found):
        candidates = found + (jnp.arange(4) << (30 - 2 * index))  # wraps: from the lowest integer up
        reached = jnp.sum((keys[None, :] >= candidates[:, None]).astype(jnp.int32), axis=1)
        digit = jnp.sum((reached >= k).astype(jnp.int32)) - 1  # the first candidate is always reached
        return found + (digit << (30 - 2 * index))

    return jax.lax.fori_loop(0, 16, two_bits, jnp.int32(LOWEST_KEY))
