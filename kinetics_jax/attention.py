"""What a layer attends to: the `attend` functions of a full forward, of prefill and of a decode step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from kinetics_jax.cache import PagedCache, Pools, write_prompt
from kinetics_jax.config import ModelConfig
from kinetics_jax.models.qwen3 import Attend
from kinetics_jax.policies import (
    BlockPolicy,
    BlockTopK,
    Dense,
    LiteSysBlockTopK,
    Policy,
    RandomBlocks,
    SlidingWindow,
    TokenTopK,
)
from kinetics_jax.shapes import TILE, paged_tile
from kinetics_jax.sharding import kv_copies, pool_spec, rows_spec
from kinetics_jax.shared_prefix import SharedPrefix, shared_prefix_decode

EXACT = jax.lax.Precision.HIGHEST  # float32 products stay float32 on TPU and GPU too
# Folded into a token's key for RandomBlocks: beyond any vocabulary, whose draws count up from 0 under the same key.
RANDOM_BLOCKS = 0x52424C4B


def causal_attention(
    q: Float[Array, "batch time heads head_dim"],
    k: Float[Array, "batch time kv_heads head_dim"],
    v: Float[Array, "batch time kv_heads head_dim"],
) -> Float[Array, "batch time heads head_dim"]:
    """Causal grouped-query attention, scaled by head_dim ** -0.5, tile by tile with a running softmax in float32.

    Tiles above the diagonal are skipped, so the work is half of time², and memory grows with time alone.
    """
    tile = min(TILE, q.shape[1])
    keys, values = _tiled(k, tile), _tiled(v, tile)
    return _attend_in_tiles(q, lambda index: (keys[index], values[index]), k.shape[2], tile)


def paged_causal_attention(
    q: Float[Array, "1 time heads head_dim"],
    k_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    v_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    page_table: Int[Array, " pages"],
    start: Int[Array, ""],
    length: Int[Array, ""],
) -> Float[Array, "1 time heads head_dim"]:
    """Causal attention of tokens `start … start + time` of one sequence of `length` tokens over its pages.

    The pages hold the keys of these tokens too. `start` and time are multiples of `paged_tile(page_size)`.
    """
    kv_heads, _, page_size, head_dim = k_pages.shape
    tile = paged_tile(page_size)
    pages = tile // page_size

    def tokens(pool: jax.Array, index: jax.Array) -> jax.Array:  # → [1, kv_heads, tile, head_dim] float32
        ids = jax.lax.dynamic_slice_in_dim(page_table, index * pages, pages)
        there = index * tile + jnp.arange(tile) < length  # free pages may hold NaN
        read = pool.at[:, ids].get(mode="clip").reshape(kv_heads, tile, head_dim)
        return jnp.where(there[:, None], read, 0).astype(jnp.float32)[None]

    return _attend_in_tiles(
        q, lambda index: (tokens(k_pages, index), tokens(v_pages, index)), kv_heads, tile, start // tile
    )


def _tiled(x: jax.Array, tile: int) -> jax.Array:
    """`[batch, time, heads, head_dim]` → `[tiles, batch, heads, tile, head_dim]` float32, padded with zeros."""
    batch, time, heads, head_dim = x.shape
    x = jnp.pad(x, ((0, 0), (0, -time % tile), (0, 0), (0, 0))).astype(jnp.float32)
    return x.reshape(batch, -1, tile, heads, head_dim).transpose(1, 0, 3, 2, 4)


def _attend_in_tiles(
    q: jax.Array,
    keys_and_values: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    kv_heads: int,
    tile: int,
    first: jax.Array | int = 0,
) -> jax.Array:
    """Causal attention of `q [batch, time, heads, head_dim]`, whose tile i stands at place `first + i` of the sequence.

    `keys_and_values(index)` gives those of a tile of it, `[batch, kv_heads, tile, head_dim]` float32 each.
    """
    batch, time, heads, head_dim = q.shape
    group = heads // kv_heads
    queries = _tiled(q, tile)  # [tiles, batch, heads, tile, head_dim]
    queries = queries.reshape(-1, batch, kv_heads, group, tile, head_dim) * head_dim**-0.5
    row, column = jnp.arange(tile)[:, None], jnp.arange(tile)[None, :]

    def query_tile(index: jax.Array, tiles: jax.Array) -> jax.Array:
        place = first + index

        def key_tile(other: jax.Array, carry):
            top, total, out = carry
            keys, values = keys_and_values(other)
            scores = jnp.einsum("bhgqd,bhkd->bhgqk", tiles[index], keys, precision=EXACT)
            scores = jnp.where((other < place) | (column <= row), scores, -jnp.inf)
            new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
            weights = jnp.exp(scores - new_top[..., None])
            shrink = jnp.exp(top - new_top)
            total = total * shrink + jnp.sum(weights, axis=-1)
            out = out * shrink[..., None] + jnp.einsum("bhgqk,bhkd->bhgqd", weights, values, precision=EXACT)
            return new_top, total, out

        rows = (batch, kv_heads, group, tile)
        start = (jnp.full(rows, -jnp.inf), jnp.zeros(rows), jnp.zeros((*rows, head_dim)))
        _, total, out = jax.lax.fori_loop(0, place + 1, key_tile, start)
        return jax.lax.dynamic_update_index_in_dim(tiles, out / total[..., None], index, 0)

    # What attends takes its queries' place: a buffer of zeros for it would be made, for all layers, before the first.
    out = jax.lax.fori_loop(0, queries.shape[0], query_tile, queries)
    out = out.transpose(1, 0, 4, 2, 3, 5).reshape(batch, -1, heads, head_dim)
    return out[:, :time].astype(q.dtype)


@dataclasses.dataclass(frozen=True)
class Heads:
    """A device's part of the heads: `first`, the number of its first KV head; the query `group` of its KV heads, which
    copies of a head share, `[batch, time, heads, head_dim]`; and its own queries' place `within` that.
    """

    first: jax.Array | int
    group: jax.Array
    within: jax.Array | int = 0


def on_mesh(
    mesh: Mesh | None,
    body: Callable[..., tuple[jax.Array, Any]],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    pools: Any,
    *rows: jax.Array | None,
) -> tuple[jax.Array, Any]:
    """`body(heads, q, k, v, pools, *rows) -> (out, pools)` for the sequences, heads and pages of each device.

    `q, k, v [batch, time, heads, head_dim]` and `rows [batch, …]` are those of all devices; q and k have as many heads
    as the model, whatever copies of KV heads the pools hold.
    """
    if mesh is None:
        return body(Heads(0, q), q, k, v, pools, *rows)
    kv_heads = k.shape[2]
    copies, size = kv_copies(kv_heads, mesh), q.shape[2] // kv_heads
    batch = rows_spec(mesh, q.shape[0])
    whole, split = PartitionSpec(batch), PartitionSpec(batch, None, "tensor")

    def local(q, everyone, k, v, pools, *rows):
        index = jax.lax.axis_index("tensor")
        if copies == 1:
            return body(Heads(index * k.shape[2], q), q, k, v, pools, *rows)
        first = index // copies

        def own(x: jax.Array, count: int) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, first * count, count, axis=2)

        heads = Heads(first, own(everyone, size), index * q.shape[2] - first * size)
        return body(heads, q, own(k, 1), own(v, 1), pools, *rows)

    kv = split if copies == 1 else whole
    specs = (split, whole if copies > 1 else split, kv, kv, pool_spec(), *[whole] * len(rows))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(split, pool_spec()), check_vma=False)(
        q, q, k, v, pools, *rows
    )


def full_attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, state: None) -> tuple[jax.Array, None]:
    """Causal attention over the tokens given, without a cache."""
    del layer
    return causal_attention(q, k, v), state


def full_attend_on(mesh: Mesh | None) -> Attend:
    """`full_attend` of a model that lies on a mesh."""

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, state: None):
        return on_mesh(mesh, lambda heads, q, k, v, state: full_attend(layer, q, k, v, state), q, k, v, state)

    return attend


def prefill_attend(pages: Int[Array, "*shards prompt_pages"], length: Int[Array, "*shards"]) -> Attend:
    """Causal attention over one prompt (batch 1), whose K and V are stored in the pages given.

    On a mesh over one prompt for each shard of the sequences, with a row of pages and a length for each.
    """

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, cache: PagedCache):
        def body(heads: Heads, q: jax.Array, k: jax.Array, v: jax.Array, pools: Pools, pages, length):
            pools = write_prompt(pools, k[0], v[0], pages[0], length[0], cache.summary)
            return causal_attention(q, k, v), pools

        rows = pages.reshape(q.shape[0], -1), length.reshape(-1)
        out, pools = on_mesh(cache.mesh, body, q, k, v, cache.pools(layer), *rows)
        # The barrier makes each layer store before the next one starts; else K and V of all layers wait for the end.
        return jax.lax.optimization_barrier((out, cache.with_layer(layer, *pools)))

    return attend


def prefill_chunk_attend(
    page_table: Int[Array, "*shards pages"], start: Int[Array, ""], length: Int[Array, "*shards"]
) -> Attend:
    """Causal attention of a chunk of one prompt (batch 1) over the prompt's pages, after storing the chunk's K and V.

    See `paged_causal_attention`; `page_table` covers the whole prompt. On a mesh as `prefill_attend`.
    """

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, cache: PagedCache):
        def body(heads: Heads, q: jax.Array, k: jax.Array, v: jax.Array, pools: Pools, table, length, start):
            page_size, table, start = pools[0].shape[2], table[0], start[0]
            chunk = jax.lax.dynamic_slice_in_dim(table, start // page_size, k.shape[1] // page_size)
            pools = write_prompt(pools, k[0], v[0], chunk, length[0] - start, cache.summary)
            return paged_causal_attention(q, pools[0], pools[1], table, start, length[0]), pools

        rows = page_table.reshape(q.shape[0], -1), length.reshape(-1), jnp.broadcast_to(start, q.shape[:1])
        out, pools = on_mesh(cache.mesh, body, q, k, v, cache.pools(layer), *rows)
        return jax.lax.optimization_barrier((out, cache.with_layer(layer, *pools)))

    return attend


@dataclasses.dataclass(frozen=True)
class DecodeOps:
    """The kernels of a decode step, jitted: traced and lowered once for all layers, not once for each."""

    append_kv: Callable[..., Any]
    select_pages: Callable[..., Any]
    paged_decode: Callable[..., Any]

    @classmethod
    def on(cls, backend: str | None) -> DecodeOps:
        def jitted(op: Callable[..., Any], *static: str) -> Callable[..., Any]:
            return jax.jit(functools.partial(op, backend=backend), static_argnames=static)

        choice = ("page_size", "pages", "sink_pages", "recent_pages", "summary")
        return cls(
            append_kv=jitted(kernels.append_kv, "summary"),
            select_pages=jitted(kernels.select_pages, *choice),
            paged_decode=jitted(kernels.paged_decode),
        )


def decode_attend(
    policy: Policy,
    page_table: Int[Array, "batch max_pages"],
    lengths: Int[Array, " batch"],
    keys: Key[Array, " batch"] | None = None,
    *,
    shared: SharedPrefix | None = None,
    backend: str | None = None,
) -> Attend:
    """One decode step (time 1): append the token to the cache, then attend as the policy says.

    `lengths` counts the new token; rows of length 0 are idle. `keys` holds the key of the token that each row is about
    to draw, `fold_in(sample's key, output position)`; only RandomBlocks needs it, and folds it further. `shared`
    has dense layers read the pages that rows share once, on one device. `backend` forces the kernels' (None: what suits
    the device); rules over tokens run on the reference path whatever it says. Raises ValueError when the keys lack,
    when the cache was made for another policy, or lies on a mesh and `shared` is given; NotImplementedError for what
    the backend cannot do.
    """
    draws = isinstance(policy, RandomBlocks)
    if draws and keys is None:
        raise ValueError(f"{policy} draws pages at random: give decode_attend the keys of its rows")
    ops = DecodeOps.on(backend)

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, cache: PagedCache):
        if shared is not None and cache.mesh is not None:
            raise ValueError("shared prefixes are for one device: the cache lies on a mesh")

        def body(heads: Heads, q: jax.Array, k: jax.Array, v: jax.Array, pools: Pools, table, lengths, keys=None):
            pools = ops.append_kv(*pools, k[:, 0], v[:, 0], table, lengths, summary=cache.summary)
            if shared is not None and _is_dense(policy, layer):
                out = shared_prefix_decode(q[:, 0], *pools[:2], lengths, shared, backend=backend)
            else:
                out = _decode_layer(policy, layer, heads, q[:, 0], pools, table, lengths, keys, cache.summary, ops)
            return out[:, None], pools

        rows = (page_table, lengths, *([keys] if draws else []))
        out, pools = on_mesh(cache.mesh, body, q, k, v, cache.pools(layer), *rows)
        return out, cache.with_layer(layer, *pools)

    return attend


def _is_dense(policy: Policy, layer: int) -> bool:
    return isinstance(policy, Dense) or layer in policy.dense_layers


def _decode_layer(
    policy: Policy,
    layer: int,
    heads: Heads,
    query: jax.Array,
    pools: Pools,
    page_table: jax.Array,
    lengths: jax.Array,
    keys: jax.Array | None,
    summary: str,
    ops: DecodeOps,
) -> jax.Array:
    """Attention `[batch, heads, head_dim]` of one device's queries over the pages that a policy chooses."""
    k_pages, v_pages, summaries = pools
    group = heads.group[:, 0]  # what a KV head's pages are chosen by
    if _is_dense(policy, layer):
        return ops.paged_decode(query, k_pages, v_pages, page_table, lengths)[0]
    assert not isinstance(policy, Dense)
    if isinstance(policy, BlockTopK):
        if summaries is None or summary != policy.summary:
            raise ValueError(
                f"layer {layer} of the cache has no {policy.summary} summaries; make it with empty_cache(policy, …)"
            )
        chosen = ops.select_pages(
            group,
            summaries,
            page_table,
            lengths,
            page_size=k_pages.shape[2],
            pages=_pages_within(policy, page_table),
            sink_pages=policy.sink_pages,
            recent_pages=policy.recent_pages,
            summary=policy.summary,
        )
        return ops.paged_decode(query, k_pages, v_pages, *chosen)[0]
    if isinstance(policy, RandomBlocks):
        assert keys is not None
        scores = random_scores(keys, layer, k_pages.shape[0], page_table.shape[1], heads.first)
        chosen = kernels.choose_pages(
            scores,
            page_table,
            lengths,
            page_size=k_pages.shape[2],
            pages=_pages_within(policy, page_table),
            sink_pages=policy.sink_pages,
            recent_pages=policy.recent_pages,
        )
        return ops.paged_decode(query, k_pages, v_pages, *chosen)[0]
    logits = kernels.token_logits(group, k_pages, page_table, lengths)
    mask = token_mask(policy, logits, lengths, k_pages.shape[0])
    logits, mask = (jax.lax.dynamic_slice_in_dim(x, heads.within, query.shape[1], axis=1) for x in (logits, mask))
    return kernels.masked_decode(logits, mask, v_pages, page_table, lengths)[0].astype(query.dtype)


def _pages_within(policy: BlockPolicy, page_table: jax.Array) -> int:
    """A policy's pages, or as many as a sequence can have where that is fewer."""
    least = policy.sink_pages + policy.recent_pages + 1
    return min(policy.pages, max(page_table.shape[1], least))


def random_scores(
    keys: Key[Array, " batch"], layer: int, kv_heads: int, max_pages: int, first_head: Int[Array, ""] | int = 0
) -> Float[Array, "batch kv_heads max_pages"]:
    """What RandomBlocks ranks pages by: uniform draws, one for each row, KV head (from `first_head` on) and page.

    That of a page has the key fold_in(fold_in(fold_in(fold_in(row's key, RANDOM_BLOCKS), layer), KV head), page).
    Neither the slot nor the width of the page table has a part in it, nor where the pages lie.
    """

    def of_page(key: jax.Array, head: jax.Array, page: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.fold_in(key, RANDOM_BLOCKS), layer)
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, head), page))

    over_pages = jax.vmap(of_page, (None, None, 0))
    over_heads = jax.vmap(over_pages, (None, 0, None))
    return jax.vmap(over_heads, (0, None, None))(keys, first_head + jnp.arange(kv_heads), jnp.arange(max_pages))


def token_mask(
    policy: TokenTopK | SlidingWindow | LiteSysBlockTopK,
    logits: Float[Array, "batch heads time"],
    lengths: Int[Array, " batch"],
    kv_heads: int,
) -> Bool[Array, "batch heads time"]:
    """The tokens that a policy attends to, true = attended; logits as `kernels.token_logits` gives them."""
    if isinstance(policy, TokenTopK):
        return kernels.token_topk_mask(logits, lengths, num_kv_heads=kv_heads, tokens=policy.budget)
    if isinstance(policy, SlidingWindow):
        window = kernels.sliding_window_mask(lengths, logits.shape[2], tokens=policy.budget, sink=policy.sink_tokens)
        return jnp.broadcast_to(window[:, None], logits.shape)
    return kernels.litesys_mask(
        logits,
        lengths,
        num_kv_heads=kv_heads,
        kind="block_topk",
        pages=policy.pages,
        page_size=policy.page_size,
        local=policy.local,
        sink=policy.sink_tokens,
    )


def summary_layers(policy: Policy, num_layers: int) -> frozenset[int]:
    """The layers whose pages need summaries under a policy."""
    if isinstance(policy, BlockTopK):
        return frozenset(range(num_layers)) - set(policy.dense_layers)
    return frozenset()


def empty_cache(
    policy: Policy, config: ModelConfig, *, num_pages: int, dtype: DTypeLike, mesh: Mesh | None = None
) -> PagedCache:
    """A cache as a policy needs it: pages of its size, and summaries of its kind in the layers that search.

    On a mesh `num_pages` are those of all shards of the sequences (`sharding.row_shards`).
    """
    return PagedCache.create(
        config,
        num_pages=num_pages,
        page_size=policy.page_size,
        dtype=dtype,
        summary_layers=summary_layers(policy, config.num_layers),
        summary=policy.summary if isinstance(policy, BlockTopK) else "mean",
        mesh=mesh,
    )
