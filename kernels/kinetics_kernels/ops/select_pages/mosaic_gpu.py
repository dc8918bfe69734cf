"""select_pages on NVIDIA GPUs (Hopper and newer): scores by XLA, the exact choice by Pallas Mosaic GPU.

XLA gathers the summaries, multiplies and sums in one fusion, so that none of them is written anywhere; the scores, 4
bytes for each page and KV head, are. One program then chooses for one sequence and one KV head, all its scores in
registers as integers of the same order: the k-th largest by bisection, and the pages above it one by one in ascending
order, each the least that comes after the one before.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kinetics_kernels.numerics import BEST
from kinetics_kernels.ops.mosaic_gpu_limits import refuse_unless
from kinetics_kernels.reference import check_choice, check_summary
from kinetics_kernels.summaries.registry import kernel_code

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Int32

MAX_PAGES = 8192  # one program holds the scores of every page in registers: 64 of them a thread at this width
WARPGROUP = 128  # threads, each with a like share of the scores
HIGHEST_KEY, LOWEST_KEY = 0x7FFFFFFF, -0x80000000


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
    interpret: Any = False,
) -> tuple[Int32[Array, "batch kv_heads pages"], Int32[Array, "batch kv_heads"]]:
    """As `reference.select_pages`; dot products are summed in another order, so scores may differ in their last bit.

    `interpret` is `plgpu.kernel`'s. Raises ValueError as the reference does, NotImplementedError for a table wider
    than the kernel takes, or a kind of summary without code for it.
    """
    check_summary("select_pages", summary, summaries)
    check_choice(pages, sink_pages, recent_pages)
    batch, kv_heads, max_pages = page_table.shape[0], summaries.shape[0], page_table.shape[1]
    refuse_unless(
        "select_pages", (max_pages <= MAX_PAGES, f"page tables of at most {MAX_PAGES} pages, not {max_pages}")
    )
    rows = batch * kv_heads
    table = jnp.pad(page_table, ((0, 0), (0, -max_pages % WARPGROUP)), constant_values=-1)
    scores = page_scores(q, summaries, table, summary, q.shape[2] ** -0.5 if scale is None else scale)
    selected, covered = plgpu.kernel(
        functools.partial(
            _choose,
            page_size=page_size,
            pages=pages,
            max_pages=max_pages,
            sink_pages=sink_pages,
            recent_pages=recent_pages,
        ),
        out_type=(jax.ShapeDtypeStruct((rows, pages), jnp.int32), jax.ShapeDtypeStruct((rows,), jnp.int32)),
        grid=(rows,),
        grid_names=("row",),
        kernel_name="choose_pages",
        interpret=interpret,
    )(scores.reshape(rows, -1), table, lengths)
    return selected.reshape(batch, kv_heads, pages), covered.reshape(batch, kv_heads)


def page_scores(q: jax.Array, summaries: jax.Array, page_table: jax.Array, summary: str, scale: float) -> jax.Array:
    """The score of every page of a table, as `reference.select_pages` defines it: `[batch, kv_heads, pages]` float32.

    Products and sums, not a dot, which would have its operand gathered in memory.
    """
    kind, score = check_summary("select_pages", summary), kernel_code("select_pages", "mosaic_gpu", summary)
    batch, q_heads, head_dim = q.shape
    kv_heads = summaries.shape[0]
    query = jnp.mean(q.astype(jnp.float32).reshape(batch, kv_heads, q_heads // kv_heads, head_dim), axis=2)
    query = jnp.swapaxes(query, 0, 1)[:, :, None]  # [kv_heads, batch, 1, head_dim]
    stored = jnp.asarray(summaries).at[:, page_table].get(mode="clip").astype(jnp.float32)

    def vector(which: int) -> jax.Array:
        return stored if kind.vectors == 1 else stored[..., which, :]

    return jnp.swapaxes(score(query, vector, scale, functools.partial(jnp.sum, axis=-1)), 0, 1)


def _choose(
    scores_ref,  # [batch * kv_heads, width] float32, a multiple of 128 wide
    table_ref,  # [batch, width]
    lengths_ref,  # [batch]
    selected_ref,  # [batch * kv_heads, pages]
    covered_ref,  # [batch * kv_heads]
    *,
    page_size: int,
    pages: int,
    max_pages: int,
    sink_pages: int,
    recent_pages: int,
) -> None:
    row = lax.axis_index("row")
    sequence = row // (scores_ref.shape[0] // table_ref.shape[0])
    length, width = lengths_ref[sequence], scores_ref.shape[1]
    count = pl.cdiv(length, page_size)  # pages in use; the last one is the current page
    in_use = jnp.minimum(count, max_pages)
    wanted = jnp.minimum(pages, in_use)

    logical = lax.iota(jnp.int32, width)
    forced = (logical < sink_pages) | (logical >= count - recent_pages)
    keys = jnp.where(forced, HIGHEST_KEY, _ordered(scores_ref[row]))
    keys = jnp.where(logical < in_use, keys, LOWEST_KEY)
    threshold = _kth_largest(keys, wanted, jnp.int32(LOWEST_KEY), bits=32)
    above, equal = keys > threshold, (keys == threshold) & (logical < in_use)
    spare = wanted - jnp.sum(above.astype(jnp.int32))
    # Of the pages equal to the threshold the lowest are taken: down to the spare-th largest of width - logical.
    lowness = jnp.where(equal, width - logical, 0)
    taken = above | (lowness >= jnp.maximum(_kth_largest(lowness, spare, jnp.int32(0), bits=width.bit_length()), 1))
    ascending = jnp.where(taken, logical, width)

    def write_next(slot, last):
        page = jnp.min(jnp.where(ascending > last, ascending, width))
        selected_ref[row, slot] = table_ref[sequence, page]
        return page

    def write_unused(slot, _):
        selected_ref[row, slot] = jnp.int32(-1)

    lax.fori_loop(0, wanted, write_next, jnp.int32(-1))
    lax.fori_loop(wanted, pages, write_unused, None)
    covered_ref[row] = length - (count - jnp.minimum(count, pages)) * page_size


def _ordered(scores: jax.Array) -> jax.Array:
    """Float32 → int32 of the same order, as `numerics.ranked` has it."""
    scores = jnp.where(scores < BEST, scores, BEST)
    bits = lax.bitcast_convert_type(jnp.where(scores == 0.0, 0.0, scores), jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _kth_largest(keys: jax.Array, k: jax.Array, least: jax.Array, bits: int) -> jax.Array:
    """The largest value that at least k of `keys` int32 reach; they are from `least` up, by less than 2^bits."""

    def one_bit(index, reached_by_k):
        candidate = reached_by_k + (jnp.int32(1) << (bits - 1 - index))  # wraps: from the lowest integer up
        return jnp.where(jnp.sum((keys >= candidate).astype(jnp.int32)) >= k, candidate, reached_by_k)

    return lax.fori_loop(0, bits, one_bit, least)
