"""Causal attention of a full forward and of prefill, tile by tile: the `attend` functions that a model is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int
from kinetics_kernels.numerics import varying_as

from kinetics_jax.attention.cache import PagedCache, Pools, write_prompt
from kinetics_jax.attention.heads import Heads, on_mesh
from kinetics_jax.models.qwen3 import Attend
from kinetics_jax.padding import TILE, paged_tile

EXACT = jax.lax.Precision.HIGHEST  # float32 products stay float32 on TPU and GPU too


@jax.custom_jvp
def causal_attention(
    q: Float[Array, "batch time heads head_dim"],
    k: Float[Array, "batch time kv_heads head_dim"],
    v: Float[Array, "batch time kv_heads head_dim"],
) -> Float[Array, "batch time heads head_dim"]:
    """Causal grouped-query attention, scaled by head_dim ** -0.5, tile by tile with a running softmax in float32.

    Tiles above the diagonal are skipped: the work is half of time², and scratch memory is linear in time. Where it is
    differentiated, `causal_attention_by_rows` takes its place.
    """
    tile = min(TILE, q.shape[1])
    keys, values = _tiled(k, tile), _tiled(v, tile)
    return _attend_in_tiles(q, lambda index: (keys[index], values[index]), k.shape[2], tile)


def causal_attention_by_rows(
    q: Float[Array, "batch time heads head_dim"],
    k: Float[Array, "batch time kv_heads head_dim"],
    v: Float[Array, "batch time kv_heads head_dim"],
) -> Float[Array, "batch time heads head_dim"]:
    """`causal_attention` within rounding, in both modes of differentiation: its only loop has a length known to jit.

    A tile of queries meets all keys, those above the diagonal too; the backward pass computes its scores anew, so that
    memory is linear in time.
    """
    batch, time, heads, head_dim = q.shape
    kv_heads, tile = k.shape[2], min(TILE, q.shape[1])
    keys, values = (jnp.swapaxes(x, 1, 2).astype(jnp.float32) for x in (k, v))  # [batch, kv_heads, time, head_dim]
    queries = _tiled(q, tile).reshape(-1, batch, kv_heads, heads // kv_heads, tile, head_dim) * head_dim**-0.5
    place = jnp.arange(queries.shape[0] * tile, dtype=jnp.int32).reshape(-1, tile)

    @jax.checkpoint
    def one_tile(rows: tuple[jax.Array, jax.Array]) -> jax.Array:
        tokens, places = rows
        scores = jnp.einsum("bhgqd,bhkd->bhgqk", tokens, keys, precision=EXACT)
        seen = jnp.arange(time, dtype=jnp.int32)[None] <= places[:, None]
        weights = jax.nn.softmax(jnp.where(seen[None, None, None], scores, -jnp.inf))
        return jnp.einsum("bhgqk,bhkd->bhgqd", weights, values, precision=EXACT)

    out = jax.lax.map(one_tile, (queries, place))
    return _untiled(out, time).astype(q.dtype)


@causal_attention.defjvp
def _causal_attention_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(causal_attention_by_rows, primals, tangents)


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
        stored = index * tile + jnp.arange(tile, dtype=jnp.int32) < length  # free pages may hold NaN
        read = pool.at[:, ids].get(mode="clip").reshape(kv_heads, tile, head_dim)
        return jnp.where(stored[None, :, None], read, 0).astype(jnp.float32)[None]

    return _attend_in_tiles(
        q, lambda index: (tokens(k_pages, index), tokens(v_pages, index)), kv_heads, tile, start // tile
    )


def _tiled(x: jax.Array, tile: int) -> jax.Array:
    """`[batch, time, heads, head_dim]` → `[tiles, batch, heads, tile, head_dim]` float32, padded with zeros."""
    batch, time, heads, head_dim = x.shape
    x = jnp.pad(x, ((0, 0), (0, -time % tile), (0, 0), (0, 0))).astype(jnp.float32)
    return x.reshape(batch, -1, tile, heads, head_dim).transpose(1, 0, 3, 2, 4)


def _untiled(x: jax.Array, time: int) -> jax.Array:
    """`[tiles, batch, kv_heads, group, tile, head_dim]` → `[batch, time, heads, head_dim]`, without the padding."""
    tiles, batch, kv_heads, group, tile, head_dim = x.shape
    x = x.transpose(1, 0, 4, 2, 3, 5).reshape(batch, tiles * tile, kv_heads * group, head_dim)
    return x[:, :time]


def _attend_in_tiles(
    q: jax.Array,
    keys_and_values: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    kv_heads: int,
    tile: int,
    first: jax.Array | int = 0,
) -> jax.Array:
    """Causal attention of `q [batch, time, heads, head_dim]`, whose tile i is tile `first + i` of the sequence.

    `keys_and_values(index)` returns those of a tile, `[batch, kv_heads, tile, head_dim]` float32 each.
    """
    batch, time, heads, head_dim = q.shape
    group = heads // kv_heads
    queries = _tiled(q, tile)  # [tiles, batch, heads, tile, head_dim]
    queries = queries.reshape(-1, batch, kv_heads, group, tile, head_dim) * head_dim**-0.5
    row = jnp.arange(tile, dtype=jnp.int32)
    lower = (row[None, :] <= row[:, None])[None, None, None]

    def query_tile(index: jax.Array, tiles: jax.Array) -> jax.Array:
        place = first + index

        def key_tile(other: jax.Array, carry):
            top, total, out = carry
            keys, values = keys_and_values(other)
            scores = jnp.einsum("bhgqd,bhkd->bhgqk", tiles[index], keys, precision=EXACT)
            scores = jnp.where((other < place) | lower, scores, -jnp.inf)
            new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
            weights = jnp.exp(scores - new_top[..., None])
            shrink = jnp.exp(top - new_top)
            total = total * shrink + jnp.sum(weights, axis=-1)
            out = out * shrink[..., None] + jnp.einsum("bhgqk,bhkd->bhgqd", weights, values, precision=EXACT)
            return new_top, total, out

        rows = (batch, kv_heads, group, tile)
        start = (jnp.full(rows, -jnp.inf, jnp.float32), jnp.zeros(rows, jnp.float32), jnp.zeros_like(tiles[index]))
        start = varying_as(start, tiles, place)
        _, total, out = jax.lax.fori_loop(jnp.zeros_like(place), place + 1, key_tile, start)
        return jax.lax.dynamic_update_index_in_dim(tiles, out / total[..., None], index, 0)

    # Each tile's output overwrites its queries: XLA would allocate a separate zeros buffer for every layer up front.
    out = jax.lax.fori_loop(np.int32(0), np.int32(queries.shape[0]), query_tile, queries)
    return _untiled(out, time).astype(q.dtype)


def full_attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, state: None) -> tuple[jax.Array, None]:
    """Causal attention over all tokens, without a cache: the `attend` of a full forward."""
    del layer
    return causal_attention(q, k, v), state


def full_attend_on(mesh: Mesh | None) -> Attend:
    """`full_attend` for a model on a mesh, or on one device."""

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, state: None):
        return on_mesh(mesh, lambda heads, q, k, v, state: full_attend(layer, q, k, v, state), q, k, v, state)

    return attend


def prefill_attend(pages: Int[Array, "*shards prompt_pages"], length: Int[Array, "*shards"]) -> Attend:
    """Causal attention over one prompt (batch 1), whose K and V are written to `pages` (physical ids, -1 unused).

    On a mesh, one prompt for each shard of the sequences, with a row of pages and a length for each.
    """

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, cache: PagedCache):
        def body(heads: Heads, q: jax.Array, k: jax.Array, v: jax.Array, pools: Pools, pages, length):
            pools = write_prompt(pools, k[0], v[0], pages[0], length[0], cache.summary)
            # Padding may hold NaN (a token that is never used), which a weight of 0 does not undo.
            prompt = jnp.arange(v.shape[1], dtype=jnp.int32) < length[0]
            return causal_attention(q, k, jnp.where(prompt[None, :, None, None], v, 0)), pools

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
