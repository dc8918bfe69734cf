"""What a layer attends to: the `attend` functions of a full forward, of prefill and of a decode step."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
from jaxtyping import Array, Bool, Float, Int, Key

from kinetics_jax.attention.cache import PagedCache, Pools
from kinetics_jax.attention.heads import Heads, on_mesh
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.blocks import BlockPolicy
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.litesys_block_topk import LiteSysBlockTopK
from kinetics_jax.attention.policies.random_blocks import RandomBlocks
from kinetics_jax.attention.policies.sliding_window import SlidingWindow
from kinetics_jax.attention.policies.token_topk import TokenTopK
from kinetics_jax.attention.shared_prefix import SharedPrefix, shared_prefix_decode
from kinetics_jax.models.qwen3 import Attend

# Folded into a token's key for RandomBlocks: beyond any vocabulary, whose draws count up from 0 under the same key.
RANDOM_BLOCKS = 0x52424C4B


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
    policy: AttentionPolicy,
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


def _is_dense(policy: AttentionPolicy, layer: int) -> bool:
    return isinstance(policy, Dense) or layer in policy.dense_layers


def _decode_layer(
    policy: AttentionPolicy,
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
