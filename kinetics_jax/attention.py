"""What a layer attends to: the `attend` functions of a full forward, of prefill and of a decode step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
from jaxtyping import Array, Float, Int

from kinetics_jax.cache import PagedCache
from kinetics_jax.models.qwen3 import Attend
from kinetics_jax.policies import BlockTopK, Policy

# Queries and keys of one tile of causal attention: no [time, time] score matrix is ever held.
TILE = 256
EXACT = jax.lax.Precision.HIGHEST  # float32 products stay float32 on TPU and GPU too


def causal_attention(
    q: Float[Array, "batch time heads head_dim"],
    k: Float[Array, "batch time kv_heads head_dim"],
    v: Float[Array, "batch time kv_heads head_dim"],
) -> Float[Array, "batch time heads head_dim"]:
    """Causal grouped-query attention, scaled by head_dim ** -0.5, tile by tile with a running softmax in float32.

    Tiles above the diagonal are skipped, so the work is half of time², and memory grows with time alone.
    """
    batch, time, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    group = heads // kv_heads
    tile = min(TILE, time)
    padding = ((0, 0), (0, -time % tile), (0, 0), (0, 0))
    tiles = -(-time // tile)

    def tiled(x: jax.Array, *split: int) -> jax.Array:  # → [tiles, batch, kv_heads, (group,) tile, head_dim] float32
        x = jnp.pad(x, padding).astype(jnp.float32).reshape(batch, tiles, tile, *split, head_dim)
        return jnp.moveaxis(jnp.moveaxis(x, 1, 0), 2, -2)

    queries = tiled(q, kv_heads, group) * head_dim**-0.5
    keys, values = tiled(k, kv_heads), tiled(v, kv_heads)
    row, column = jnp.arange(tile)[:, None], jnp.arange(tile)[None, :]

    def query_tile(index: jax.Array) -> jax.Array:
        def key_tile(other: jax.Array, carry):
            top, total, out = carry
            scores = jnp.einsum("bhgqd,bhkd->bhgqk", queries[index], keys[other], precision=EXACT)
            scores = jnp.where((other < index) | (column <= row), scores, -jnp.inf)
            new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
            weights = jnp.exp(scores - new_top[..., None])
            shrink = jnp.exp(top - new_top)
            total = total * shrink + jnp.sum(weights, axis=-1)
            out = out * shrink[..., None] + jnp.einsum("bhgqk,bhkd->bhgqd", weights, values[other], precision=EXACT)
            return new_top, total, out

        rows = (batch, kv_heads, group, tile)
        start = (jnp.full(rows, -jnp.inf), jnp.zeros(rows), jnp.zeros((*rows, head_dim)))
        _, total, out = jax.lax.fori_loop(0, index + 1, key_tile, start)
        return out / total[..., None]

    out = jax.lax.map(query_tile, jnp.arange(tiles))  # [tiles, batch, kv_heads, group, tile, head_dim]
    out = out.transpose(1, 0, 4, 2, 3, 5).reshape(batch, tiles * tile, heads, head_dim)
    return out[:, :time].astype(q.dtype)


def full_attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, state: None) -> tuple[jax.Array, None]:
    """Causal attention over the tokens given, without a cache."""
    del layer
    return causal_attention(q, k, v), state


def prefill_attend(pages: Int[Array, " prompt_pages"], length: Int[Array, ""]) -> Attend:
    """Causal attention over one prompt (batch 1), whose K and V are stored in the pages given."""

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, cache: PagedCache):
        cache = cache.write_prompt(layer, k[0], v[0], pages, length)
        # The barrier makes each layer store before the next one starts; else K and V of all layers wait for the end.
        return jax.lax.optimization_barrier((causal_attention(q, k, v), cache))

    return attend


def decode_attend(policy: Policy, page_table: Int[Array, "batch max_pages"], lengths: Int[Array, " batch"]) -> Attend:
    """One decode step (time 1): append the token to the cache, then attend as the policy says.

    `lengths` counts the new token; rows of length 0 are idle.
    """

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, cache: PagedCache):
        pools = cache.k[layer], cache.v[layer], cache.summaries[layer]
        k_pages, v_pages, summaries = kernels.append_kv(*pools, k[:, 0], v[:, 0], page_table, lengths)
        if isinstance(policy, BlockTopK) and layer not in policy.dense_layers:
            if summaries is None:
                raise ValueError(f"layer {layer} of the cache has no summaries; create it with summary_layers(policy)")
            out, _ = kernels.block_topk_decode(
                q[:, 0],
                k_pages,
                v_pages,
                summaries,
                page_table,
                lengths,
                pages=policy.pages,
                sink_pages=policy.sink_pages,
                recent_pages=policy.recent_pages,
                summary=policy.summary,
            )
        else:
            out, _ = kernels.paged_decode(q[:, 0], k_pages, v_pages, page_table, lengths)
        return out[:, None], cache.with_layer(layer, k_pages, v_pages, summaries)

    return attend


def summary_layers(policy: Policy, num_layers: int) -> frozenset[int]:
    """The layers whose pages need summaries under a policy."""
    if isinstance(policy, BlockTopK):
        return frozenset(range(num_layers)) - set(policy.dense_layers)
    return frozenset()
