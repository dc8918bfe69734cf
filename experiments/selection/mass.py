"""The share of dense attention's weight on the tokens that a policy keeps."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np

from kinetics_jax.attention.policies.base import PAGE_SIZE, AttentionPolicy
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.random_blocks import RandomBlocks
from selection.forward import Prefix, kept_tokens, masked_attention, page_mask, token_logits

# Bounds, not policies: the tokens, and the pages beside the forced ones, that weigh most, averaged over a KV group.
TOKENS_BY_MASS, PAGES_BY_MASS = "tokens_by_mass", "pages_by_mass"
FORCED = "forced_pages"  # what every policy of pages keeps, whatever it chooses: a sink page and the current one


@jax.jit
def _weights(q: jax.Array, k: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
    logits = token_logits(q, k, lengths)
    return logits, jax.nn.softmax(logits)


@functools.partial(jax.jit, static_argnames=("policy",))
def policy_mass(policy: AttentionPolicy, q, k, logits, weights, lengths, draws) -> jax.Array:
    """Mean over positions and heads of the kept weight; arguments as of `kept_tokens`, `weights` the softmax."""
    return jnp.mean(jnp.sum(jnp.where(kept_tokens(policy, q, k, logits, lengths, draws), weights, 0), axis=-1))


@functools.partial(jax.jit, static_argnames=("kv_heads", "budgets"))
def token_bound(weights: jax.Array, *, kv_heads: int, budgets: tuple[int, ...]) -> jax.Array:
    """The most that any `budget` tokens per KV head can hold, for each budget, `weights [time, heads, length]`."""
    time, heads, length = weights.shape
    group = weights.reshape(time, kv_heads, heads // kv_heads, length).mean(axis=2)
    held = jnp.cumsum(jnp.sort(group, axis=-1, descending=True), axis=-1)
    return held[..., jnp.minimum(jnp.array(budgets), length) - 1].mean(axis=(0, 1))


@functools.partial(jax.jit, static_argnames=("kv_heads", "policy"))
def page_bound(weights: jax.Array, lengths: jax.Array, *, kv_heads: int, policy: BlockTopK) -> jax.Array:
    """The most that a policy's number of pages can hold, its forced pages among them."""
    time, heads, length = weights.shape
    size = policy.page_size
    pages = -(-length // size)
    padded = jnp.pad(weights, ((0, 0), (0, 0), (0, pages * size - length)))
    of_page = padded.reshape(time, kv_heads, heads // kv_heads, pages, size).sum(-1).mean(axis=2)
    table = jnp.broadcast_to(jnp.arange(pages, dtype=jnp.int32), (time, pages))
    forced = {"sink_pages": policy.sink_pages, "recent_pages": policy.recent_pages}
    selected, _ = kernels.choose_pages(of_page, table, lengths, page_size=size, pages=policy.pages, **forced)
    return jnp.mean(jnp.sum(jnp.where(page_mask(selected, size, length, heads), weights, 0), axis=-1))


@functools.partial(jax.jit, static_argnames=("page_size",))
def forced_mass(weights: jax.Array, lengths: jax.Array, *, page_size: int) -> jax.Array:
    """What the first page and the current one hold, `weights [time, heads, length]`."""
    page = jnp.arange(weights.shape[-1]) // page_size
    kept = (page == 0) | (page == ((lengths - 1) // page_size)[:, None])
    return jnp.mean(jnp.sum(jnp.where(kept[:, None], weights, 0), axis=-1))


def attention_mass(
    model,
    prefix: Prefix,
    tokens: np.ndarray,
    policies: Sequence[AttentionPolicy],
    budgets: tuple[int, ...],
    *,
    every: int,
    draws: list[jax.Array],
    page_size: int = PAGE_SIZE,
) -> tuple[dict[str, list[float]], jax.Array]:
    """Per layer, the kept share of dense attention's weight, by policy and bound; and the hidden states of `go_on`.

    `tokens [1, time]` continue a prefix densely; every `every`-th of them is a query that counts. What `dense_layers`
    says is ignored: every layer reports what it would keep. Bounds are named like policies, `tokens_by_mass:budget=64`;
    that of pages has `page_size` and a sink and a recent page forced, which FORCED holds alone. `draws` as in `go_on`.
    """
    shares: dict[str, list[float]] = {}

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, state: None):
        before = prefix.keys[layer], prefix.values[layer]
        keys, rows = jnp.concatenate([before[0], k[0]]), slice(every - 1, None, every)
        lengths = (prefix.length + 1 + jnp.arange(q.shape[1]))[rows]
        logits, weights = _weights(q[0, rows], keys, lengths)
        held = {}
        for policy in policies:
            of_layer = draws[layer][0, rows] if isinstance(policy, RandomBlocks) else None
            held[str(policy)] = policy_mass(policy, q[0, rows], keys, logits, weights, lengths, of_layer)
        bounds = token_bound(weights, kv_heads=keys.shape[1], budgets=budgets)
        for budget, most in zip(budgets, bounds, strict=True):
            pages = BlockTopK(budget=budget, page_size=page_size)
            held[f"{TOKENS_BY_MASS}:budget={budget}"] = most
            held[f"{PAGES_BY_MASS}:budget={budget}"] = page_bound(
                weights, lengths, kv_heads=keys.shape[1], policy=pages
            )
        held[f"{FORCED}:budget={2 * page_size}"] = forced_mass(weights, lengths, page_size=page_size)
        for name, mass in held.items():
            shares.setdefault(name, []).append(float(mass))
        return masked_attention(Dense(), q, k, v, before, None), state

    positions = (prefix.length + jnp.arange(tokens.shape[1]))[None]
    hidden, _ = model(jnp.asarray(tokens), positions, attend)
    return shares, hidden
