"""paged_decode on NVIDIA GPUs (Hopper) by Pallas Mosaic GPU: pages by TMA, products by wgmma.

One program, one warpgroup, attends for one sequence, one KV head and one part of its tokens. Pages arrive in shared
memory by one asynchronous copy each, side by side as a tile of 64 tokens, while earlier tiles are computed. The query
group is the first rows of a tile of 64, so K and V are read once. A warpgroup that also issues its copies leaves room
for two programs on a multiprocessor, which hide each other's waits and starts; a second warpgroup for the copies alone
would leave room for one. Parts write float32 partials, and a second kernel merges them by their log-sum-exps.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kinetics_kernels.ops.limits import GPU_PROGRAMS
from kinetics_kernels.ops.mosaic_gpu_limits import WARPGROUP_ROWS, refuse_unless, refuse_unless_hopper

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Int

INPUT_DTYPES = (jnp.bfloat16, jnp.float16)
TOKENS = 64  # of a tile: the second product sums over them, and wgmma takes whole swizzled rows of 128 bytes
BYTES_IN_FLIGHT = 65_536  # of K and V in shared memory: with the rest, two programs fit on a multiprocessor
MAX_SPLITS = 32  # the partials of a head fit in the registers of the merging program
LOG2_E = math.log2(math.e)
# The log-sum-exp of a part whose scores are all -inf: it weighs nothing beside others. Alone, the result is NaN.
WEIGHTLESS = float(jnp.finfo(jnp.float32).min)


def paged_decode(
    q: Float[Array, "batch q_heads head_dim"],
    k_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    v_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    page_table: Int[Array, "batch max_pages"] | Int[Array, "batch kv_heads pages"],
    lengths: Int[Array, " batch"] | Int[Array, "batch kv_heads"],
    *,
    scale: float | None = None,
    splits: int | None = None,
    stages: int | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "batch q_heads head_dim"], Float32[Array, "batch q_heads"]]:
    """As `reference.paged_decode`; weights are rounded to V's dtype before the second product.

    `splits`: parts that the tokens of a row are cut into, by default as many as fill the chip, at most 32. A row's
    arithmetic depends on its own tokens and on `splits`, on nothing else: equal splits, equal bits. `stages`: tiles
    of K and V in flight, by default 64 KB of them. `interpret` is `plgpu.kernel`'s.
    Raises NotImplementedError for a GPU, dtype, head_dim, page size, group or number of splits that the kernel does not
    take, ValueError for more stages than fit in shared memory.
    """
    batch, q_heads, head_dim = q.shape
    kv_heads, num_pages, page_size, _ = k_pages.shape
    group, table_pages = q_heads // kv_heads, page_table.shape[-1]
    rows = batch * kv_heads
    if splits is None:
        splits = default_splits(rows, table_pages * page_size // TOKENS)
    refuse_unless_hopper("paged_decode")
    refuse_unless(
        "paged_decode",
        (q.dtype in INPUT_DTYPES, f"q in bfloat16 or float16, not {q.dtype}"),
        (q.dtype == k_pages.dtype == v_pages.dtype, f"q and pools of one dtype, not {q.dtype} and {k_pages.dtype}"),
        (head_dim in (64, 128), f"a head_dim of 64 or 128 (registers spill at 256), not {head_dim}"),
        (
            page_size in (8, 16, 32) or page_size % TOKENS == 0,
            f"pages of 8, 16 or 32 tokens (rows of 8 are the least that is swizzled) or a multiple of 64 tokens, not "
            f"{page_size}",
        ),
        (group <= WARPGROUP_ROWS, f"at most {WARPGROUP_ROWS} query heads per KV head, not {group}"),
        (1 <= splits <= MAX_SPLITS, f"1 to {MAX_SPLITS} splits, not {splits}"),
    )
    if stages is None:
        stages = max(2, BYTES_IN_FLIGHT // (2 * TOKENS * head_dim * q.dtype.itemsize))
    partial_dtype = q.dtype if splits == 1 else jnp.float32
    swizzled = (plgpu.TilingTransform((8, 64)), plgpu.SwizzleTransform(128))
    tile = plgpu.SMEM((stages, TOKENS, head_dim), q.dtype, transforms=swizzled)
    arrived = plgpu.Barrier(num_arrivals=TOKENS // min(page_size, TOKENS), num_barriers=stages)
    query = [plgpu.SMEM((WARPGROUP_ROWS, head_dim), q.dtype, transforms=t) for t in ((), swizzled)]
    attend = functools.partial(
        _attend,
        scale=(head_dim**-0.5 if scale is None else scale) * LOG2_E,
        kv_heads=kv_heads,
        num_pages=num_pages,
        rows_per_table=kv_heads if page_table.ndim == 2 else 1,
        splits=splits,
        stages=stages,
    )
    out, lse = plgpu.kernel(
        attend,
        out_type=(
            jax.ShapeDtypeStruct((splits, rows, group, head_dim), partial_dtype),
            jax.ShapeDtypeStruct((splits, rows * group), jnp.float32),
        ),
        scratch_types={
            "ends": plgpu.RefUnion(query, plgpu.SMEM((WARPGROUP_ROWS, head_dim), partial_dtype)),
            "k_tiles": tile,
            "v_tiles": tile,
            "weights_tile": plgpu.SMEM((WARPGROUP_ROWS, TOKENS), q.dtype, transforms=swizzled),
            "lse_rows": plgpu.SMEM((WARPGROUP_ROWS,), jnp.float32),
            "q_arrived": plgpu.Barrier(),
            "k_arrived": arrived,
            "v_arrived": arrived,
        },
        grid=(rows, splits),
        grid_names=("row", "part"),
        kernel_name="paged_decode",
        interpret=interpret,
    )(
        q.reshape(rows, group, head_dim),
        k_pages.reshape(-1, page_size, head_dim),
        v_pages.reshape(-1, page_size, head_dim),
        page_table.reshape(-1, table_pages),
        lengths.reshape(-1),
    )
    out = out.reshape(splits, rows * group, head_dim)
    out, lse = (out[0], lse[0]) if splits == 1 else _merge(out, lse, q.dtype, interpret)
    return out.reshape(q.shape), lse.reshape(batch, q_heads)


def default_splits(rows: int, tiles: int) -> int:
    """Parts of each row, a power of two: as many as fill the chip, if each still has a tile of tokens."""
    wanted = min(GPU_PROGRAMS // rows, tiles, MAX_SPLITS)
    return 1 << max(0, wanted.bit_length() - 1)


def _attend(
    q_ref,  # [rows, group, head_dim], a row being a sequence and a KV head
    k_ref,  # [kv_heads * num_pages, page_size, head_dim]
    v_ref,
    table_ref,  # [rows / rows_per_table, pages]
    lengths_ref,  # [rows / rows_per_table]
    out_ref,  # [splits, rows, group, head_dim]
    lse_ref,  # [splits, rows * group]
    *,
    ends,  # the query as it arrives and as wgmma reads it, [64, head_dim] each; later the output, in their place
    k_tiles,  # [stages, TOKENS, head_dim]
    v_tiles,
    weights_tile,  # [64, TOKENS]
    lse_rows,  # [64]
    q_arrived,
    k_arrived,  # [stages], a copy each of as many pages as make a tile
    v_arrived,
    scale: float,  # times log2(e): the softmax is taken to base 2
    kv_heads: int,
    num_pages: int,
    rows_per_table: int,
    splits: int,
    stages: int,
) -> None:
    (q_rows, q_tile), out_rows = ends
    group, head_dim = q_ref.shape[1:]
    page_size = k_ref.shape[1]
    row, part = lax.axis_index("row"), lax.axis_index("part")
    table_row = row // rows_per_table
    first_page = row % kv_heads * num_pages  # of this head in the pools
    length = jnp.minimum(lengths_ref[table_row], table_ref.shape[1] * page_size)
    tiles = pl.cdiv(length, TOKENS)
    per_part = pl.cdiv(tiles, splits)
    first = part * per_part
    count = jnp.clip(tiles - first, 0, per_part)
    chunk = min(page_size, TOKENS)  # tokens of one copy

    def pages_of(index):
        """The ids of a tile of this part; past the length the last page in use, whose bytes are on their way."""
        last = jnp.maximum(pl.cdiv(length, page_size) - 1, 0)
        places = [((first + index) * TOKENS + start) // page_size for start in range(0, TOKENS, chunk)]
        return [table_ref[table_row, jnp.minimum(place, last)] for place in places]

    def missing_of(pages):
        """A bit for each copy of a tile whose page is missing."""
        return sum(jnp.where(page < 0, 1 << place, 0) for place, page in enumerate(pages))

    def fetch(pool, tiles, arrived, index, pages):
        slot = index % stages
        start = (first + index) * TOKENS % page_size if chunk < page_size else 0
        for place, page in enumerate(pages):
            source = pool.at[first_page + jnp.clip(page, 0, num_pages - 1), pl.ds(start, chunk)]
            plgpu.copy_gmem_to_smem(source, tiles.at[slot, pl.ds(place * chunk, chunk)], arrived.at[slot])

    plgpu.copy_gmem_to_smem(q_ref.at[row], q_rows.at[pl.ds(0, group)], q_arrived)
    missing = []
    for index in range(stages):
        pages = pages_of(index)
        missing.append(missing_of(pages))

        @pl.when(index < count)
        def _(index=index, pages=pages):
            fetch(k_ref, k_tiles, k_arrived, index, pages)
            fetch(v_ref, v_tiles, v_arrived, index, pages)

    plgpu.barrier_wait(q_arrived)
    # The rows beyond the group are whatever memory held: no row of a product meets another, and they are not written.
    q_tile[...] = _load(q_rows, plgpu.Layout.WGMMA)
    plgpu.commit_smem()

    def one_tile(index, carry):
        top, total, out, held, missing = carry
        slot, later = index % stages, index + stages
        pages = pages_of(later)  # known by the time that this tile's memory is free
        left = length - (first + index) * TOKENS

        def inside(layout):
            """1 for each token of the tile that the row holds, 0 elsewhere: `[TOKENS]` int32."""
            token = plgpu.broadcasted_iota(jnp.int32, (TOKENS,), 0, layout=layout)
            held = 1 - ((lax.broadcast(missing[0], (TOKENS,)) >> (token // chunk)) & 1)
            return jnp.where(token < left, held, 0)

        plgpu.barrier_wait(k_arrived.at[slot])
        scores = _product(q_tile, k_tiles.at[slot].transpose((1, 0)))

        @pl.when(later < count)
        def _():
            fetch(k_ref, k_tiles, k_arrived, later, pages)

        here = lax.broadcast_in_dim(inside(plgpu.Layout.WGMMA.reduce(0)), scores.shape, (1,))
        scores = jnp.where(here > 0, scores * scale, -jnp.inf)
        new_top = jnp.maximum(top, jnp.max(scores, axis=1))
        anchor = jnp.where(new_top == -jnp.inf, 0.0, new_top)  # no token yet: exp2(-inf - 0) = 0, no NaN
        weights = jnp.exp2(scores - _across(anchor, TOKENS))
        shrink = jnp.exp2(top - anchor)
        total = total * shrink + jnp.sum(weights, axis=1)
        weights_tile[...] = weights.astype(weights_tile.dtype)

        plgpu.barrier_wait(v_arrived.at[slot])

        @pl.when((left < TOKENS) | (missing[0] != 0))
        def _():  # values that no token of the row holds may be NaN, which a weight of 0 does not undo
            values = plgpu.layout_cast(v_tiles[slot], plgpu.Layout.WGMMA)
            held = _across(inside(plgpu.Layout.WGMMA.reduce(1)), head_dim)
            v_tiles[slot] = jnp.where(held > 0, values, jnp.zeros_like(values))

        plgpu.commit_smem()
        out = out * _across(shrink, head_dim) + _product(weights_tile, v_tiles.at[slot])

        @pl.when(later < count)
        def _():
            fetch(v_ref, v_tiles, v_arrived, later, pages)

        begun = (jnp.int32(1) << pl.cdiv(jnp.minimum(left, TOKENS), chunk)) - 1  # a bit for each copy with tokens
        return new_top, total, out, held | (begun & ~missing[0]), [*missing[1:], missing_of(pages)]

    by_row = plgpu.Layout.WGMMA.reduce(1)
    top, total, out, held, _ = lax.fori_loop(
        0,
        count,
        one_tile,
        (
            plgpu.layout_cast(jnp.full((WARPGROUP_ROWS,), -jnp.inf, jnp.float32), by_row),
            plgpu.layout_cast(jnp.zeros((WARPGROUP_ROWS,), jnp.float32), by_row),
            plgpu.layout_cast(jnp.zeros((WARPGROUP_ROWS, head_dim), jnp.float32), plgpu.Layout.WGMMA),
            jnp.int32(0),  # not 0 once there was a token
            missing,
        ),
    )
    seen = lax.broadcast(held, total.shape) != 0
    divisor = jnp.where(seen, total, 1.0) if splits == 1 else jnp.where(total == 0.0, 1.0, total)
    out_rows[...] = (out / _across(divisor, head_dim)).astype(out_rows.dtype)
    weightless = jnp.where(seen, jnp.nan if splits == 1 else WEIGHTLESS, -jnp.inf)
    lse_rows[...] = jnp.where(total == 0.0, weightless, top / LOG2_E + jnp.log(divisor))
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(out_rows.at[pl.ds(0, group)], out_ref.at[part, row])
    for member in range(group):
        lse_ref[part, row * group + member] = lse_rows[member]
    plgpu.wait_smem_to_gmem(0)


def _load(ref, layout) -> jax.Array:
    """Loads memory that is not laid out for its reader: slower, and done once a program."""
    return plgpu.load(ref, layout=layout, optimized=False)  # pyright: ignore[reportCallIssue] -- jax 0.10's wants idx


def _product(left, right) -> jax.Array:
    """`left [64, k]` by `right [k, n]`, both in shared memory, in float32 registers."""

    def multiply(accumulator):
        plgpu.wgmma(accumulator, left, right)
        return accumulator[...]

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((left.shape[0], right.shape[1]), jnp.float32))


def _across(vector: jax.Array, columns: int) -> jax.Array:
    """`[rows]` → `[rows, columns]`."""
    return lax.broadcast_in_dim(vector, (vector.shape[0], columns), (0,))


def _merge(outs: jax.Array, lses: jax.Array, dtype: Any, interpret: Any) -> tuple[jax.Array, jax.Array]:
    """`reference.merge_partials` of `outs [splits, heads, head_dim]` and `lses [splits, heads]`, a program a head."""
    splits, heads, head_dim = outs.shape

    def merge_partials(outs_ref, lses_ref, out_ref, lse_ref, out_row):
        head = lax.axis_index("head")
        parts = [lses_ref[part, head] for part in range(splits)]  # scalars
        top = functools.reduce(jnp.maximum, parts)
        anchor = jnp.where(top == -jnp.inf, 0.0, top)
        weights = [jnp.exp(lse - anchor) for lse in parts]
        total = sum(weights)
        divisor = jnp.where(total == 0.0, 1.0, jnp.where(top == WEIGHTLESS, jnp.nan, total))
        # One element a thread; 64 are fewer than the threads, which then hold copies.
        layout = plgpu.Layout.WG_STRIDED((128,), vec_size=1) if head_dim == 128 else plgpu.Layout.WGMMA.reduce(0)
        rows = [_load(outs_ref.at[part, head], layout) for part in range(splits)]
        out = sum(row * weight for row, weight in zip(rows, weights, strict=True)) / divisor
        out_row[...] = out.astype(out_row.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_row, out_ref.at[head])
        lse_ref[head] = jnp.where(total == 0.0, -jnp.inf, anchor + jnp.log(divisor))
        plgpu.wait_smem_to_gmem(0)

    return plgpu.kernel(
        merge_partials,
        out_type=(jax.ShapeDtypeStruct((heads, head_dim), dtype), jax.ShapeDtypeStruct((heads,), jnp.float32)),
        scratch_types=[plgpu.SMEM((head_dim,), dtype)],
        grid=(heads,),
        grid_names=("head",),
        interpret=interpret,
    )(outs, lses)
