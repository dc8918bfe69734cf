"""Dense attention of the next few tokens of every sequence at once, over its pages: K and V in the cache are read once
for all of them.

The tokens' own K and V are not in the cache while they are computed: they attend to one another beside it, and only
those that are kept are stored behind. So a token that is not kept never was in a page, nor in a page's summary.

The byte floor of a layer, for a sequence of n tokens in the cache and t new ones, E bytes of K and V a token: n · E,
against t · n · E for t decode steps; products are those of t steps.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
from jaxtyping import Array, Float, Int
from kinetics_kernels.backends import Backend

from kinetics_jax.attention.cache import PagedCache
from kinetics_jax.attention.decode_step import DecodeOps
from kinetics_jax.attention.shared_prefix import GROUP_ROWS, resolved_backend
from kinetics_jax.models.qwen3 import Attend

EXACT = jax.lax.Precision.HIGHEST
NewKV = tuple[jax.Array, jax.Array]  # K and V of new tokens in one layer, each [batch, time, kv_heads, head_dim]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Beside:
    """A cache, and beside it K and V of the tokens of a pass that is under way, by layer."""

    cache: PagedCache
    new: tuple[NewKV, ...] = ()


def verify_attend(
    page_table: Int[Array, "batch max_pages"], stored: Int[Array, " batch"], *, backend: Backend | None = None
) -> Attend:
    """The `attend` of tokens that follow each sequence's `stored` ones: to those in the cache, to those before, itself.

    Its state is a `Beside`; it stores nothing (`store_tokens` does). `stored` of 0 marks an idle row, whose output
    nobody may use. On one device. `backend` forces the kernels'.
    """

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, state: Beside) -> tuple[jax.Array, Beside]:
        k_pages, v_pages, _ = state.cache.pools(layer)
        k, v = k.astype(k_pages.dtype), v.astype(v_pages.dtype)  # as a later step reads them from the cache
        cached = _attend_cached(q, k_pages, v_pages, page_table, stored, backend)
        out = _merged(cached, _attend_new(q, k, v))
        return out.astype(q.dtype), Beside(state.cache, (*state.new, (k, v)))

    return attend


def store_tokens(
    state: Beside,
    page_table: Int[Array, "batch max_pages"],
    stored: Int[Array, " batch"],
    count: Int[Array, " batch"],
    *,
    backend: Backend | None = None,
) -> PagedCache:
    """The cache with the first `count` new tokens of every row stored behind its `stored` ones; pages that this fills
    get their summaries. `page_table` must name pages for them.
    """
    ops, cache, summary = DecodeOps.on(backend), state.cache, state.cache.summary
    for layer, (k, v) in enumerate(state.new):

        def append(place: jax.Array, pools: tuple, k: jax.Array = k, v: jax.Array = v) -> tuple:
            lengths = jnp.where(place < count, stored + place + 1, 0)
            new = (jax.lax.dynamic_index_in_dim(x, place, axis=1, keepdims=False) for x in (k, v))
            return ops.append_kv(*pools, *new, page_table, lengths, summary=summary)

        pools = jax.lax.fori_loop(np.int32(0), jnp.max(count, initial=0), append, cache.pools(layer))
        cache = cache.with_layer(layer, *pools)
    return cache


def _attend_cached(
    q: jax.Array,
    k_pages: jax.Array,
    v_pages: jax.Array,
    page_table: jax.Array,
    stored: jax.Array,
    backend: Backend | None,
) -> tuple[jax.Array, jax.Array]:
    """Attention of `q [batch, time, heads, head_dim]` to the cache: out, float32, and log-sum-exp `[batch, time,
    heads]`. The tokens' queries stand side by side as one larger query group, as many as a kernel takes.
    """
    batch, time, heads, head_dim = q.shape
    kv_heads = k_pages.shape[0]
    group = heads // kv_heads
    width = max(1, GROUP_ROWS[resolved_backend(backend)] // group)
    parts = []
    for first in range(0, time, width):
        some = q[:, first : first + width]
        packed = some.reshape(batch, -1, kv_heads, group, head_dim).transpose(0, 2, 1, 3, 4)
        out, lse = kernels.paged_decode(
            packed.reshape(batch, -1, head_dim), k_pages, v_pages, page_table, stored, backend=backend
        )
        unpacked = (x.reshape(batch, kv_heads, -1, group, *x.shape[2:]) for x in (out.astype(jnp.float32), lse))
        parts.append([jnp.swapaxes(x, 1, 2).reshape(batch, -1, heads, *x.shape[4:]) for x in unpacked])
    out, lse = (jnp.concatenate(pieces, axis=1) for pieces in zip(*parts, strict=True))
    return out, lse


def _attend_new(
    q: Float[Array, "batch time heads head_dim"],
    k: Float[Array, "batch time kv_heads head_dim"],
    v: Float[Array, "batch time kv_heads head_dim"],
) -> tuple[jax.Array, jax.Array]:
    """Causal attention of a few tokens among themselves: out, float32, and log-sum-exp `[batch, time, heads]`."""
    batch, time, heads, head_dim = q.shape
    kv_heads = k.shape[2]
    query = q.astype(jnp.float32).reshape(batch, time, kv_heads, heads // kv_heads, head_dim) * head_dim**-0.5
    scores = jnp.einsum("bthgd,bshd->bthgs", query, k.astype(jnp.float32), precision=EXACT)
    # A later token may hold NaN (beyond a row's own tokens), which a weight of 0 would not undo.
    seen = jnp.tri(time, dtype=bool)
    scores = jnp.where(seen[None, :, None, None], scores, -jnp.inf)
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - top)
    total = jnp.sum(weights, axis=-1, keepdims=True)
    values = jnp.where(seen[None, :, :, None, None], v.astype(jnp.float32)[:, None], 0)
    out = jnp.einsum("bthgs,btshd->bthgd", weights / total, values, precision=EXACT)
    return out.reshape(q.shape), (top + jnp.log(total)).reshape(batch, time, heads)


def _merged(*parts: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Attention to several sets of tokens, merged by log-sum-exp: `[batch, time, heads, head_dim]` float32."""
    batch, time, heads, head_dim = parts[0][0].shape
    outs = jnp.stack([out.reshape(batch * time, heads, head_dim) for out, _ in parts])
    lses = jnp.stack([lse.reshape(batch * time, heads) for _, lse in parts])
    return kernels.merge_partials(outs, lses)[0].reshape(batch, time, heads, head_dim)
