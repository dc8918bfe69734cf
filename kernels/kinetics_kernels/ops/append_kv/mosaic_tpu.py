"""append_kv on TPUs: the tile of a new row is read, changed and written back, in pools that never move.

A row of bfloat16 cannot be written alone: a copy moves whole tiles of the memory, TILE rows. One grid step serves as
many sequences as fit in VMEM, all of them in flight: every read, then every change, then every write. Their tokens lie
in pages of their own, but summaries of two pages may share a tile: the first sequence to close a page of a tile holds
it for all of the step, and the next step reads only after the last write.
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
from kinetics_kernels.ops.mosaic_tpu_limits import INPUT_DTYPES, refuse_unless
from kinetics_kernels.reference import check_summary
from kinetics_kernels.summaries.registry import kernel_code

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

# Rows of head_dim that lie together in HBM, for bfloat16 and float32 alike.
TILE = 8
# Tiles and pages of all sequences of a step. v5e gives a kernel 16 MB of VMEM by default.
BUFFER_BYTES = 8 << 20


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

    Per sequence a tile of K and one of V come and go, 32 * kv_heads * head_dim elements; a page that fills is read
    once, and its summary goes (two vectors and more) or its tile comes and goes (one vector). A step of the grid waits
    for two copies, one in and one out, whatever the number of sequences in it: at 8 KV heads of 128 bfloat16 256 of
    them without summaries, 102 with them at page 16, 47 at page 64. A page that is written to belongs to one sequence.
    `interpret` is pallas_call's. Raises ValueError as the reference does, NotImplementedError for what the kernel does
    not take: dtypes but bfloat16 and float32, a head_dim that is no multiple of 128, a page_size, or, with summaries of
    one vector, a number of pages that is no multiple of 8, and kinds of summary without code for it.
    """
    kind = check_summary("append_kv", summary, summaries)
    make = None if summaries is None else kernel_code("append_kv", "mosaic_tpu", summary)
    pools = (k_pages, v_pages) if summaries is None else (k_pages, v_pages, summaries)
    _refuse(pools)
    kv_heads, num_pages, page_size, head_dim = k_pages.shape
    batch = page_table.shape[0]
    shaped = result_shapes(*pools, k_new, v_new, page_table, lengths)

    token = _tokens(page_table, lengths, num_pages, page_size)
    tiles = [(kv_heads, TILE, head_dim)] * 2
    if summaries is not None:
        held = summaries.shape[2:] if summaries.ndim == 4 else (TILE, head_dim)
        tiles += [(kv_heads, *held), (kv_heads, page_size, head_dim)]
    dtypes = [pool.dtype for pool in (*pools, *pools[: len(tiles) - len(pools)])]
    row_bytes = sum(_padded_size(tile) * dtype.itemsize for tile, dtype in zip(tiles, dtypes, strict=True))
    rows = max(1, min(batch, BUFFER_BYTES // row_bytes))

    closes = (token >= 0) & (lengths % page_size == 0)
    holder = _first_of_tile(jnp.where(closes, token // page_size, -1), rows, TILE if kind.vectors == 1 else 1)
    pinned = pl.BlockSpec(memory_space=pl.ANY)
    new_rows = pl.BlockSpec((rows, kv_heads, head_dim), lambda step, *_: (step, 0, 0))
    written = pl.pallas_call(
        functools.partial(_kernel, batch=batch, pools=len(pools), page_size=page_size, make=make),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(pl.cdiv(batch, rows),),
            in_specs=[new_rows, new_rows, *[pinned] * len(pools)],
            out_specs=[pinned] * len(pools),
            scratch_shapes=[
                *[pltpu.VMEM((rows, *tile), dtype) for tile, dtype in zip(tiles, dtypes, strict=True)],
                pltpu.SemaphoreType.DMA((len(tiles),)),
            ],
        ),
        out_shape=[shaped(pool.shape, pool.dtype) for pool in pools],
        input_output_aliases={4 + index: index for index in range(len(pools))},
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary",)),
        interpret=interpret,
        name="append_kv",
    )(token, holder, k_new.astype(k_pages.dtype), v_new.astype(v_pages.dtype), *pools)
    return written[0], written[1], None if summaries is None else written[2]


def _refuse(pools: tuple[jax.Array, ...]) -> None:
    num_pages, page_size, head_dim = pools[0].shape[1:]
    named = [*zip(("k_pages", "v_pages", "summaries"), pools, strict=False)]
    refuse_unless(
        "append_kv",
        *[(pool.dtype in INPUT_DTYPES, f"{name} in bfloat16 or float32, not {pool.dtype}") for name, pool in named],
        (head_dim % 128 == 0, f"a head_dim that is a multiple of 128 (else XLA copies the pools), not {head_dim}"),
        (page_size % TILE == 0, f"a page_size that is a multiple of {TILE}, not {page_size}"),
        (
            len(pools) < 3 or pools[2].ndim == 4 or num_pages % TILE == 0,
            f"pools of a multiple of {TILE} pages with summaries of one vector, which are written {TILE} at a time, "
            f"not {num_pages}",
        ),
    )


def _tokens(page_table: jax.Array, lengths: jax.Array, num_pages: int, page_size: int) -> jax.Array:
    """Where each row's token lies in the pools, `page * page_size + slot` int32; -1 where none is written."""
    position = jnp.maximum(lengths - 1, 0)
    page = jnp.take_along_axis(page_table, (position // page_size)[:, None], axis=1)[:, 0]
    named = (lengths > 0) & (page >= 0) & (page < num_pages)
    return jnp.where(named, page * page_size + position % page_size, -1).astype(jnp.int32)


def _padded_size(tile: tuple[int, ...]) -> int:
    """Elements of a tile in VMEM, whose rows come in TILEs."""
    return tile[0] * -(-tile[1] // TILE) * TILE * tile[2]


def _first_of_tile(pages: jax.Array, rows: int, tile: int) -> jax.Array:
    """Of `pages [batch]`, -1 for none, `rows` to a step: the place in its step of the first page of the same tile."""
    row = jnp.arange(pages.shape[0])
    alike = (pages[:, None] // tile == pages // tile) & (row[:, None] // rows == row // rows)
    return jnp.where(pages >= 0, jnp.argmax(alike, axis=1) % rows, -1).astype(jnp.int32)


def _kernel(
    token,  # [batch] int32, SMEM: page * page_size + slot of the new token; -1 where nothing is written
    holder,  # [batch] int32, SMEM: the place in this step that holds the tile of a closed page's summary; -1 where open
    k_new,  # [rows, kv_heads, head_dim]
    v_new,
    *refs,  # the pools in HBM, twice: what comes in is what goes out; buffers [rows, kv_heads, …]; DMA semaphores
    batch,
    pools,
    page_size,
    make: Callable[..., tuple[jax.Array, ...]] | None,  # of summaries; None without them
):
    k_pages, v_pages, *summaries = refs[pools : 2 * pools]
    k_tiles, v_tiles, *closing, arrived = refs[2 * pools :]
    tiled = bool(summaries) and summaries[0].ndim == 3  # of one vector: rows of a tile, of which one is written
    rows = k_new.shape[0]
    first = pl.program_id(0) * rows
    copied = pltpu.make_async_copy

    def for_rows(action):
        """Calls `action(place, token, closes, holds)` for every row that writes."""

        def one(place, _):
            pl.when(token[first + place] >= 0)(
                lambda: action(place, token[first + place], holder[first + place] >= 0, holder[first + place] == place)
            )

        jax.lax.fori_loop(0, jnp.minimum(rows, batch - first), one, None)

    def tiles(place, where):
        """The tiles of K and V that hold a token: where they lie, and their buffers."""
        chosen = pl.ds(pl.multiple_of(where % page_size // TILE * TILE, TILE), TILE)
        pages = [pool.at[:, where // page_size, chosen] for pool in (k_pages, v_pages)]
        return zip(pages, (k_tiles.at[place], v_tiles.at[place]), (arrived.at[0], arrived.at[1]), strict=True)

    def summary_tile(place, where):
        page = where // page_size
        if not tiled:  # several vectors are a tile of their own
            return summaries[0].at[:, page], closing[0].at[place], arrived.at[2]
        aligned = pl.ds(pl.multiple_of(page // TILE * TILE, TILE), TILE)
        return summaries[0].at[:, aligned], closing[0].at[place], arrived.at[2]

    def reads(place, where, closes, holds, act):
        for pool, buffer, semaphore in tiles(place, where):
            act(copied(pool, buffer, semaphore))
        if summaries:
            page = copied(k_pages.at[:, where // page_size], closing[1].at[place], arrived.at[3])
            pl.when(closes)(lambda: act(page))
            if tiled:
                pl.when(holds)(lambda: act(copied(*summary_tile(place, where))))

    def writes(place, where, closes, holds, act):
        for pool, buffer, semaphore in tiles(place, where):
            act(copied(buffer, pool, semaphore))
        if summaries:
            pool, buffer, semaphore = summary_tile(place, where)
            pl.when(holds)(lambda: act(copied(buffer, pool, semaphore)))

    def change(place, where, closes, holds):
        for buffer, new in ((k_tiles, k_new), (v_tiles, v_new)):
            buffer[place] = _with_row(buffer[place], where % TILE, new[place][:, None])
        if summaries:
            pl.when(closes)(lambda: close_page(place, where, make))

    def close_page(place, where, make):
        page = _with_row(closing[1][place], page_size - 1, k_new[place][:, None])
        vectors = make(page.astype(jnp.float32))
        if tiled:
            held = holder[first + place]
            closing[0][held] = _with_row(closing[0][held], where // page_size % TILE, vectors[0])
        else:
            closing[0][place] = jnp.concatenate(vectors, axis=1).astype(closing[0].dtype)

    for_rows(functools.partial(reads, act=lambda copy: copy.start()))
    for_rows(functools.partial(reads, act=_await))
    for_rows(change)
    for_rows(functools.partial(writes, act=lambda copy: copy.start()))
    for_rows(functools.partial(writes, act=_await))


def _await(copy) -> None:
    copy.wait()


def _with_row(tile: jax.Array, row, new: jax.Array) -> jax.Array:
    """`[kv_heads, rows, head_dim]` with one row replaced by `new [kv_heads, 1, head_dim]`."""
    chosen = jax.lax.broadcasted_iota(jnp.int32, tile.shape, 1) == row
    return jnp.where(chosen, new.astype(jnp.float32), tile.astype(jnp.float32)).astype(tile.dtype)
