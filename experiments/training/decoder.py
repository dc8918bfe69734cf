"""Parameters to train, and the decoder that they make.

Training keeps the embedding E of the plain Qwen3 as E / sqrt(hidden) and its last norm's gain g as sqrt(hidden) g:
tokens enter at unit size and the logits start at it. `plain` undoes both, in the loss and for the exported file alike.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kinetics_jax.config import ModelConfig
from kinetics_jax.models.qwen3 import Qwen3

Params = dict[str, jax.Array]  # by the names of a Hugging Face checkpoint, without `model.`


def random_arrays(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """The parameters of a new decoder as writable arrays."""
    state = nnx.state(Qwen3(config, rngs=nnx.Rngs(seed)))
    return {".".join(map(str, path)): np.array(leaf[...]) for path, leaf in nnx.to_flat_state(state)}


def plain(params: Params) -> Params:
    """The plain Qwen3 parameters of trained ones."""
    scale = math.sqrt(params["norm.weight"].shape[0])
    return params | {
        "embed_tokens.weight": params["embed_tokens.weight"] * scale,
        "norm.weight": params["norm.weight"] / scale,
    }


def merge(config: ModelConfig, params: Params) -> Qwen3:
    """The decoder with these plain parameters."""
    graph, state = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0))))
    flat = [(path, nnx.Param(params[".".join(map(str, path))])) for path, _ in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))


def attend_in_blocks(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    """Dense causal attention of whole sequences, q [batch, time, heads, head_dim], k and v [batch, time, kv_heads,
    head_dim] float32, by blocks of queries that each read the keys up to their own: half the arithmetic of a mask.
    """
    batch, time, _, head_dim = q.shape
    grouped = q.reshape(batch, time, k.shape[2], -1, head_dim) * head_dim**-0.5
    parts = []
    for start in range(0, time, 128):
        end = min(start + 128, time)
        scores = jnp.einsum("btkgd,bskd->bkgts", grouped[:, start:end], k[:, :end])
        seen = jnp.arange(end)[None] <= jnp.arange(start, end)[:, None]
        weights = jax.nn.softmax(jnp.where(seen, scores, -1e30), axis=-1)
        parts.append(jnp.einsum("bkgts,bskd->btkgd", weights, v[:, :end]))
    return jnp.concatenate(parts, axis=1).reshape(q.shape), state


def attend_to_pages(
    layer: int, q: jax.Array, k: jax.Array, v: jax.Array, state: Any, *, page_size: int, pages: int
) -> tuple[jax.Array, Any]:
    """`attend_in_blocks` as block top-k decodes, for training: every query attends to its own page, the one before, the
    first, and those whose mean key meets the mean query of its GQA group best, `pages` in all. The choice has no
    gradient; what is attended to has.
    """
    batch, time, _, head_dim = q.shape
    spare = -time % page_size
    keys = jnp.pad(k, ((0, 0), (0, spare), (0, 0), (0, 0)))
    means = keys.reshape(batch, -1, page_size, *k.shape[2:]).mean(axis=2)  # [batch, page, kv_head, head_dim]
    grouped = q.reshape(batch, time, k.shape[2], -1, head_dim) * head_dim**-0.5
    parts = []
    for start in range(0, time, 128):
        end = min(start + 128, time)
        held = -(-end // page_size)
        own = jnp.arange(start, end)[:, None] // page_size
        page = jnp.arange(held)[None]
        forced = (page <= own) & ((page == 0) | (page >= own - 1))
        ranked = jnp.einsum("btkd,bpkd->bktp", grouped[:, start:end].mean(axis=3), means[:, :held])
        ranked = jax.lax.stop_gradient(jnp.where(forced, jnp.inf, jnp.where(page <= own, ranked, -jnp.inf)))
        least = jax.lax.top_k(ranked, min(pages, held))[0][..., -1:]
        kept = jnp.repeat((ranked >= least) & (page <= own), page_size, axis=-1)[..., :end]
        seen = kept & (jnp.arange(end)[None] <= jnp.arange(start, end)[:, None])
        scores = jnp.einsum("btkgd,bskd->bkgts", grouped[:, start:end], k[:, :end])
        weights = jax.nn.softmax(jnp.where(seen[:, :, None], scores, -1e30), axis=-1)
        parts.append(jnp.einsum("bkgts,bskd->btkgd", weights, v[:, :end]))
    return jnp.concatenate(parts, axis=1).reshape(q.shape), state
