"""select_pages on NVIDIA GPUs (Ampere and newer) by Pallas-Triton: page scores and the exact choice.

Summaries are gathered through the page table, a tile of pages at a time, and scored as integers of the same order. One
program chooses for one sequence and KV head: it holds every key in registers, finds the k-th largest by bisection, two
bits a pass, and writes the pages above it, and the lowest of those equal to it, in their logical order. Fused, the same
program scores, and no score reaches memory. Apart, a kernel of one program for each tile scores, so that few rows fill
the chip too, and 4 bytes a page go through memory. Both score the same tiles by the same code: their bits are equal.

By bytes, batch 1 x 8 KV heads, 32K tokens at page 16, bfloat16: 4.2 MB of summaries are 1.4 us at 3 TB/s, and 46 us for
8 of the 264 programs that draw it; apart, 256 programs, 0.07 MB of keys and one more launch. Batch 64: 512 either way.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plt

from kinetics_kernels.numerics import BEST, result_shapes
from kinetics_kernels.ops.limits import GPU_PROGRAMS
from kinetics_kernels.ops.triton_limits import INPUT_DTYPES, refuse_unless
from kinetics_kernels.reference import check_choice, check_summary
from kinetics_kernels.summaries.registry import kernel_code

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, Int32

MAX_PAGES = 16_384  # one program holds the key of every page in registers: 64 of them a thread at this width
TILE_BYTES = 16_384  # of summaries in registers at a time: 64 pages of 128 bfloat16
LAUNCH_BYTES = 6_000_000  # what an H100 reads, at 3 TB/s, in the 2 us that one more launch is put at
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
    fused: bool | None = None,
    interpret: bool = False,
) -> tuple[Int32[Array, "batch kv_heads pages"], Int32[Array, "batch kv_heads"]]:
    """As `reference.select_pages`; dot products are summed in another order, so scores may differ in their last bit.

    `fused`: one kernel that scores and chooses, or one for each, with the same result to the bit; by default whichever
    the bytes favour. Raises ValueError as the reference does, NotImplementedError for a dtype, head_dim, width of
    table or kind of summary that the kernels do not take.
    """
    kind = check_summary("select_pages", summary, summaries)
    check_choice(pages, sink_pages, recent_pages)
    batch, q_heads, head_dim = q.shape
    kv_heads, num_pages = summaries.shape[:2]
    max_pages = page_table.shape[1]
    refuse_unless(
        "select_pages",
        (q.dtype in INPUT_DTYPES, f"q in float32, bfloat16 or float16, not {q.dtype}"),
        (summaries.dtype in INPUT_DTYPES, f"summaries in float32, bfloat16 or float16, not {summaries.dtype}"),
        (head_dim in (16, 32, 64, 128, 256), f"a head_dim that is a power of two from 16 to 256, not {head_dim}"),
        (max_pages <= MAX_PAGES, f"page tables of at most {MAX_PAGES} pages, not {max_pages}"),
    )
    shaped = result_shapes(q, summaries, page_table, lengths)
    page_bytes = kind.vectors * head_dim * summaries.dtype.itemsize
    rows, width = batch * kv_heads, pl.next_power_of_2(max_pages)
    setting = _Setting(
        group=q_heads // kv_heads,
        kv_heads=kv_heads,
        num_pages=num_pages,
        page_size=page_size,
        pages=pages,
        sink_pages=sink_pages,
        recent_pages=recent_pages,
        vectors=kind.vectors,
        score=kernel_code("select_pages", "triton", summary),
        scale=head_dim**-0.5 if scale is None else scale,
        width=width,
        tile=min(width, pl.next_power_of_2(TILE_BYTES // page_bytes // 2 + 1)),
    )

    def call(kernel, name, *arrays, grid, out_shape):
        return pl.pallas_call(
            functools.partial(kernel, setting=setting),
            grid=grid,
            out_shape=out_shape,
            compiler_params=plt.CompilerParams(num_warps=4 if width <= 4096 else 8, num_stages=2),
            interpret=interpret,
            name=name,
        )(*arrays)

    chosen = (shaped((rows, pages), jnp.int32), shaped((rows,), jnp.int32))
    choosing = {"grid": (rows,), "out_shape": chosen}
    arrays = (q.reshape(-1, head_dim), summaries.reshape(-1, head_dim), page_table, lengths)
    if default_fused(rows, max_pages * page_bytes) if fused is None else fused:
        selected, covered = call(_score_and_choose, "select_pages", *arrays, **choosing)
    else:
        grid, keys = (rows, pl.cdiv(max_pages, setting.tile)), shaped((rows, width), jnp.int32)
        keys = call(_score, "score_pages", *arrays, grid=grid, out_shape=keys)
        selected, covered = call(_choose, "choose_pages", keys, page_table, lengths, **choosing)
    return selected.reshape(batch, kv_heads, pages), covered.reshape(batch, kv_heads)


def default_fused(rows: int, row_bytes: int) -> bool:
    """Whether one kernel is faster than two: few rows read slowly in one, the second kernel costs a launch."""
    return (GPU_PROGRAMS - rows) * row_bytes <= LAUNCH_BYTES


@dataclasses.dataclass(frozen=True)
class _Setting:
    """What the kernels are compiled for."""

    group: int
    kv_heads: int
    num_pages: int
    page_size: int
    pages: int
    sink_pages: int
    recent_pages: int
    vectors: int
    score: Callable[..., jax.Array]
    scale: float
    width: int  # of the table, up to a power of two
    tile: int  # pages scored at a time


# Their arrays: `q_ref [batch * q_heads, head_dim]`, `summaries_ref [kv_heads * num_pages * vectors, head_dim]`,
# `table_ref [batch, max_pages]`, `lengths_ref [batch]`, and by row, which is a sequence and a KV head, `keys_ref [rows,
# width]`, `selected_ref [rows, pages]` and `covered_ref [rows]`.


def _score_and_choose(
    q_ref, summaries_ref, table_ref, lengths_ref, selected_ref, covered_ref, *, setting: _Setting
) -> None:
    row = pl.program_id(0)
    in_use, query = _pages_in_use(table_ref, lengths_ref, row, setting), _mean_query(q_ref, row, setting)

    def put(index, keys):
        tile_keys = _keys_of_tile(query, summaries_ref, table_ref, row, index, in_use, setting)
        return jnp.where(jnp.arange(setting.width // setting.tile)[:, None] == index, tile_keys[None, :], keys)

    keys = jnp.zeros((setting.width // setting.tile, setting.tile), jnp.int32)
    keys = jax.lax.fori_loop(0, jax.lax.div(in_use + (setting.tile - 1), setting.tile), put, keys)
    _write_best(keys.reshape(setting.width), in_use, row, table_ref, lengths_ref, selected_ref, covered_ref, setting)


def _score(q_ref, summaries_ref, table_ref, lengths_ref, keys_ref, *, setting: _Setting) -> None:
    row, index = pl.program_id(0), pl.program_id(1)
    in_use = _pages_in_use(table_ref, lengths_ref, row, setting)

    @pl.when(index * setting.tile < in_use)
    def _():
        keys = _keys_of_tile(_mean_query(q_ref, row, setting), summaries_ref, table_ref, row, index, in_use, setting)
        keys_ref[row, index * setting.tile + jnp.arange(setting.tile)] = keys


def _choose(keys_ref, table_ref, lengths_ref, selected_ref, covered_ref, *, setting: _Setting) -> None:
    row, logical = pl.program_id(0), jnp.arange(setting.width)
    in_use = _pages_in_use(table_ref, lengths_ref, row, setting)
    keys = plt.load(keys_ref.at[row, logical], mask=logical < in_use, other=LOWEST_KEY)
    _write_best(keys, in_use, row, table_ref, lengths_ref, selected_ref, covered_ref, setting)


def _pages_in_use(table_ref, lengths_ref, row, setting: _Setting) -> jax.Array:
    """The pages that a row's length uses and its table has room for."""
    length = lengths_ref[jax.lax.div(row, setting.kv_heads)]
    return jnp.minimum(jax.lax.div(length + (setting.page_size - 1), setting.page_size), table_ref.shape[1])


def _mean_query(q_ref, row, setting: _Setting) -> jax.Array:
    """The mean query of a row's group, `[1, head_dim]` float32."""
    member, dims = jnp.arange(pl.next_power_of_2(setting.group))[:, None], jnp.arange(q_ref.shape[1])[None, :]
    queries = plt.load(q_ref.at[row * setting.group + member, dims], mask=member < setting.group, other=0.0)
    return jnp.sum(queries.astype(jnp.float32), axis=0, keepdims=True) / setting.group


def _keys_of_tile(query, summaries_ref, table_ref, row, index, in_use, setting: _Setting) -> jax.Array:
    """The pages from `index * tile`: integers `[tile]` in the order of their scores."""
    dims, logical = jnp.arange(query.shape[1])[None, :], index * setting.tile + jnp.arange(setting.tile)
    mask = logical < in_use
    page = plt.load(table_ref.at[jax.lax.div(row, setting.kv_heads), logical], mask=mask, other=0)
    page = jax.lax.rem(row, setting.kv_heads) * setting.num_pages + jnp.clip(page, 0, setting.num_pages - 1)

    def vector(which: int) -> jax.Array:
        where = page * setting.vectors + which
        return plt.load(summaries_ref.at[where[:, None], dims], mask=mask[:, None], other=0.0).astype(jnp.float32)

    return _ordered(setting.score(query, vector, setting.scale, functools.partial(jnp.sum, axis=1)))


def _write_best(keys, in_use, row, table_ref, lengths_ref, selected_ref, covered_ref, setting: _Setting) -> None:
    """The forced pages and the best of the rest by `keys [width]`, of which the first `in_use` count."""
    sequence, logical = jax.lax.div(row, setting.kv_heads), jnp.arange(setting.width)
    length = lengths_ref[sequence]
    # Pages of the length, be they in the table or not; the last one is the current page.
    count = jax.lax.div(length + (setting.page_size - 1), setting.page_size)
    forced = (logical < setting.sink_pages) | (logical >= count - setting.recent_pages)
    keys = jnp.where(forced, HIGHEST_KEY, keys)
    keys = jnp.where(logical < in_use, keys, LOWEST_KEY)
    wanted = jnp.minimum(setting.pages, in_use)
    threshold = _kth_largest(keys, wanted)
    above, equal = keys > threshold, (keys == threshold) & (logical < in_use)
    spare = wanted - jnp.sum(above.astype(jnp.int32))
    # Both are counted in one pass over the row, those above in the upper half: neither is more than MAX_PAGES.
    so_far = jnp.cumsum((above.astype(jnp.int32) << 16) + equal.astype(jnp.int32))
    equals = so_far & 0xFFFF
    taken = above | (equal & (equals <= spare))
    rank = (so_far >> 16) + jnp.minimum(equals, spare) - 1

    # Masked lanes point beyond the row: the interpreter lets every lane write, and drops those out of bounds.
    ids = plt.load(table_ref.at[sequence, logical], mask=logical < in_use, other=-1)
    plt.store(selected_ref.at[row, jnp.where(taken, rank, setting.pages)], ids, mask=taken)
    slot = jnp.arange(pl.next_power_of_2(setting.pages))
    unused = (slot >= wanted) & (slot < setting.pages)
    slot = jnp.where(unused, slot, setting.pages)
    plt.store(selected_ref.at[row, slot], jnp.full(slot.shape, -1, jnp.int32), mask=unused)
    covered_ref[row] = length - (count - jnp.minimum(count, setting.pages)) * setting.page_size


def _ordered(scores: jax.Array) -> jax.Array:
    """Float32 → int32 of the same order, as `numerics.ranked` has it."""
    scores = jnp.where(scores < BEST, scores, BEST)
    bits = jax.lax.bitcast_convert_type(jnp.where(scores == 0.0, 0.0, scores), jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _kth_largest(keys: jax.Array, k: jax.Array) -> jax.Array:
    """The k-th largest of `keys [width]` int32: the largest value that at least k keys reach, two bits at a time."""

    def two_bits(index, reached_by_k):
        candidates = reached_by_k + (jnp.arange(4) << (30 - 2 * index))  # wraps: from the lowest integer up
        reached = jnp.sum((keys[None, :] >= candidates[:, None]).astype(jnp.int32), axis=1)
        digit = jnp.sum((reached >= k).astype(jnp.int32)) - 1  # the first candidate is always reached
        return reached_by_k + (digit << (30 - 2 * index))

    return jax.lax.fori_loop(0, 16, two_bits, jnp.int32(LOWEST_KEY))
