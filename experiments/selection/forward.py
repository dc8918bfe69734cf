"""A text continued under a policy: by a masked forward of all its tokens at once, or token by token as engines do.

Both read the prefix densely, as prefill does, and both choose tokens by the package's own ops. The masked forward runs
matrix products over many tokens and compiles one attention instead of a model, which makes hundreds of configurations
affordable on a CPU; a test compares it with the decode path.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
from flax import nnx
from kinetics_kernels.reference import page_summary

from kinetics_jax.attention.cache import empty_cache
from kinetics_jax.attention.causal import causal_attention
from kinetics_jax.attention.decode import decode_attend
from kinetics_jax.attention.policies.base import AttentionPolicy, PolicyError
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.random_blocks import RandomBlocks, random_scores
from kinetics_jax.attention.policies.tokens import TokenPolicy
from kinetics_jax.config import ModelConfig
from kinetics_jax.engine.programs import prefill
from kinetics_jax.language_model import LanguageModel

EXACT = jax.lax.Precision.HIGHEST
_causal_attention = jax.jit(causal_attention)


class Prefix(NamedTuple):
    """What a prefilled text leaves behind: K (after RoPE) and V of each layer, `[length, kv_heads, head_dim]`."""

    keys: list[jax.Array]
    values: list[jax.Array]

    @property
    def length(self) -> int:
        return self.keys[0].shape[0]


def merged(lm: LanguageModel) -> nnx.Module:
    """The model as a callable; what follows runs it op by op, with attention compiled."""
    return nnx.merge(lm.graph, lm.weights)


def read_prefix(model, tokens: list[int]) -> Prefix:
    """Prefills a text densely."""

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, found: Prefix):
        del layer
        found.keys.append(k[0])
        found.values.append(v[0])
        return _causal_attention(q, k, v), found

    return model(jnp.asarray([tokens]), jnp.arange(len(tokens))[None], attend, Prefix([], []))[1]


def random_draws(config: ModelConfig, key: jax.Array, prefix: int, rows: int, time: int, page_size: int):
    """RandomBlocks' page scores of each layer, `[rows, time, kv_heads, pages]`, for `rows` samples with keys
    fold_in(key, row) whose prompt has `prefix` tokens; position prefix + t draws with the key of output position t + 1.
    """
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(rows))
    keys = jax.vmap(lambda each: jax.vmap(lambda t: jax.random.fold_in(each, t + 1))(jnp.arange(time)))(keys)
    pages = -(-(prefix + time) // page_size)
    for layer in range(config.num_layers):
        scores = random_scores(keys.reshape(-1), layer, config.num_kv_heads, pages)
        yield scores.reshape(rows, time, config.num_kv_heads, pages)


def token_logits(q: jax.Array, k: jax.Array, lengths: jax.Array) -> jax.Array:
    """Scaled logits `[time, heads, length]` float32, -inf from `lengths [time]` on.

    `q [time, heads, head_dim]`, `k [length, kv_heads, head_dim]`.
    """
    time, heads, head_dim = q.shape
    grouped = q.astype(jnp.float32).reshape(time, k.shape[1], -1, head_dim) * head_dim**-0.5
    # A matrix product for each KV head: as one einsum it takes XLA's CPU backend three times as long.
    logits = jnp.stack(
        [
            jnp.dot(grouped[:, head].reshape(-1, head_dim), k[:, head].astype(jnp.float32).T, precision=EXACT)
            for head in range(k.shape[1])
        ],
        axis=1,
    )
    logits = logits.reshape(time, heads // k.shape[1], k.shape[1], -1).swapaxes(1, 2)
    return jnp.where(jnp.arange(k.shape[0]) < lengths[:, None, None], logits.reshape(time, heads, -1), -jnp.inf)


def by_pages(k: jax.Array, page_size: int) -> jax.Array:
    """`[length, kv_heads, head_dim]` → `[kv_heads, pages, page_size, head_dim]`, padded with zeros."""
    k = jnp.pad(k, ((0, -k.shape[0] % page_size), (0, 0), (0, 0)))
    return k.reshape(-1, page_size, *k.shape[1:]).transpose(2, 0, 1, 3)


def page_mask(selected: jax.Array, page_size: int, length: int, heads: int) -> jax.Array:
    """Pages `selected [time, kv_heads, pages]` (-1: none) of consecutive memory → bool `[time, heads, length]`."""
    time, kv_heads, _ = selected.shape
    count = -(-length // page_size)
    rows = jnp.arange(time)[:, None, None], jnp.arange(kv_heads)[:, None]
    mask = jnp.zeros((time, kv_heads, count + 1), bool)
    mask = mask.at[(*rows, jnp.where(selected < 0, count, selected))].set(True)[..., :count]
    return jnp.repeat(jnp.repeat(mask, page_size, axis=2)[..., :length], heads // kv_heads, axis=1)


def kept_tokens(
    policy: AttentionPolicy, q: jax.Array, k: jax.Array, logits: jax.Array, lengths: jax.Array, draws: jax.Array | None
) -> jax.Array:
    """What a policy attends to at each position: bool `[time, heads, length]`.

    `q`, `k`, `logits` and `lengths` as in `token_logits`, lengths counting a position's own token; `draws [time,
    kv_heads, pages]` are the page scores of RandomBlocks. What has pages is chosen by the ops that decoding calls, a
    position being a row of their batch: a page that ends behind a position is the current one, or none of its own.
    """
    there = logits > -jnp.inf
    if isinstance(policy, Dense):
        return there
    if isinstance(policy, TokenPolicy):
        return policy.mask(logits, lengths, k.shape[1]) & there
    if not isinstance(policy, BlockTopK | RandomBlocks) or type(policy) not in (BlockTopK, RandomBlocks):
        raise PolicyError(f"{policy}: the masked forward does not know how {policy.kind} chooses")
    paged = by_pages(k, policy.page_size)
    table = jnp.broadcast_to(jnp.arange(paged.shape[1], dtype=jnp.int32), (q.shape[0], paged.shape[1]))
    budget: dict[str, Any] = {
        "pages": policy.pages,
        "sink_pages": policy.sink_pages,
        "recent_pages": policy.recent_pages,
    }
    budget |= {"page_size": policy.page_size}
    if isinstance(policy, BlockTopK):
        summaries = page_summary(paged, policy.summary)
        selected, _ = kernels.select_pages(q, summaries, table, lengths, summary=policy.summary, **budget)
    else:
        assert draws is not None
        selected, _ = kernels.choose_pages(draws, table, lengths, **budget)
    return page_mask(selected, policy.page_size, k.shape[0], q.shape[1]) & there


@functools.partial(jax.jit, static_argnames=("policy",))
def masked_attention(
    policy: AttentionPolicy,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    before: tuple[jax.Array, jax.Array],
    draws: jax.Array | None,
) -> jax.Array:
    """`q [rows, time, heads, head_dim]`, `k, v [rows, time, kv_heads, head_dim]`, behind the K and V of a prefix that
    the rows share, `[prefix, kv_heads, head_dim]` each → q's shape; `draws [rows, time, kv_heads, pages]`.
    """

    def one_row(row):
        q, k, v, draws = row
        k, v = (jnp.concatenate([old, new]) for old, new in zip(before, (k, v), strict=True))
        time, _, head_dim = q.shape
        lengths = before[0].shape[0] + 1 + jnp.arange(time)
        logits = token_logits(q, k, lengths)
        mask = kept_tokens(policy, q, k, logits, lengths, draws)
        weights = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf)).reshape(time, k.shape[1], -1, k.shape[0])
        of_heads = [
            jnp.dot(weights[:, head].reshape(-1, k.shape[0]), v[:, head], precision=EXACT) for head in range(k.shape[1])
        ]
        return jnp.concatenate([each.reshape(time, -1, head_dim) for each in of_heads], axis=1)

    return jax.lax.map(one_row, (q, k, v, draws))


def go_on(
    model, prefix: Prefix, tokens: np.ndarray, policy: AttentionPolicy, draws: list[jax.Array] | None = None
) -> jax.Array:
    """Hidden states `[rows, time, hidden]` of `tokens [rows, time]` that go on from a prefix under a policy.

    `draws` (of each layer) as `random_draws` gives them, for RandomBlocks alone.
    """

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, state: None):
        chosen = Dense() if policy.is_dense(layer) else policy
        layer_draws = draws[layer] if draws and isinstance(chosen, RandomBlocks) else None
        return masked_attention(chosen, q, k, v, (prefix.keys[layer], prefix.values[layer]), layer_draws), state

    positions = jnp.broadcast_to(prefix.length + jnp.arange(tokens.shape[1]), tokens.shape)
    return model(jnp.asarray(tokens), positions, attend)[0]


def log_likelihoods(logits: jax.Array, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of `targets [time]` by `logits [time, vocab]`, and the likeliest tokens."""
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.asarray(targets)[:, None], axis=1)
    return np.asarray(chosen[:, 0]), np.asarray(logits.argmax(-1))


@functools.partial(jax.jit, static_argnames=("graph", "policy"), donate_argnames=("cache",))
def _step(graph, weights, cache, token, lengths, table, keys, *, policy):
    model = nnx.merge(graph, weights)
    hidden, cache = model(token[:, None], (lengths - 1)[:, None], decode_attend(policy, table, lengths, keys), cache)
    return cache, model.logits(hidden[:, 0])


def decode(
    lm: LanguageModel, prompt: list[int], tokens: list[int], policy: AttentionPolicy, key: jax.Array
) -> np.ndarray:
    """Logits `[time, vocab]` after each of `tokens`, fed one by one behind a prompt by the engine's prefill and
    `decode_attend`: what `go_on` must equal.

    The sample's key is fold_in(key, 0), as that of row 0 there.
    """
    size, total = policy.page_size, len(prompt) + len(tokens)
    pages = -(-total // size)
    cache = empty_cache(policy, lm.config, num_pages=pages, dtype=lm.dtype, rows=1)
    padded = np.zeros((1, pages * size), np.int32)
    padded[0, : len(prompt)] = prompt
    of_prompt = np.where(np.arange(pages) * size < len(prompt), np.arange(pages), -1).astype(np.int32)
    cache, _ = prefill(lm.graph, lm.weights, cache, padded, jnp.int32(len(prompt)), of_prompt)
    table, found = np.arange(pages, dtype=np.int32)[None], []
    for step, token in enumerate(tokens):
        keys = jax.random.fold_in(jax.random.fold_in(key, 0), step + 1)[None]
        lengths = jnp.asarray([len(prompt) + step + 1], jnp.int32)
        cache, logits = _step(
            lm.graph, lm.weights, cache, jnp.asarray([token], jnp.int32), lengths, table, keys, policy=policy
        )
        found.append(np.asarray(logits[0]))
    return np.array(found)
