"""Qwen3 dense decoder in Flax NNX, after transformers' `models/qwen3/modeling_qwen3.py`.

The model knows no cache. Its forward takes `attend(layer, q, k, v, state) -> (out, state)` with q and k after norm and
RoPE; the full forward, prefill and decode differ only in the `attend` they pass. Parameter paths are the names of a
Hugging Face checkpoint without its leading `model.`, and every matrix keeps that layout, [out, in].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from kinetics_jax.config import ConfigError, ModelConfig

# attend(layer, q [batch, time, heads, head_dim], k, v [batch, time, kv_heads, head_dim], state)
#   -> (out [batch, time, heads, head_dim], state)
Attend = Callable[[int, jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def rope_table(
    positions: Int[Array, "batch time"], head_dim: int, theta: float
) -> tuple[Float[Array, "batch time half"], Float[Array, "batch time half"]]:
    """Cosine and sine of RoPE's angles, float32: angle = position * theta ** (-2 i / head_dim)."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def apply_rope(
    x: Float[Array, "batch time heads head_dim"],
    cos: Float[Array, "batch time half"],
    sin: Float[Array, "batch time half"],
) -> Float[Array, "batch time heads head_dim"]:
    """Rotates dimension i with dimension i + head_dim / 2 (Hugging Face's half-split pairs), in float32."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[:, :, None], sin[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Linear(nnx.Module):
    """y = x W^T with W [out, in], no bias."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        scale = inputs**-0.5
        self.weight = nnx.Param((jax.random.normal(rngs.params(), (outputs, inputs)) * scale).astype(dtype))

    def __call__(self, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows outputs"]:
        return jnp.einsum("...i,oi->...o", x, self.weight[...])


class RMSNorm(nnx.Module):
    """x / rms(x) * weight over the last axis, in float32."""

    def __init__(self, size: int, eps: float, *, dtype: DTypeLike):
        self.eps = eps
        self.weight = nnx.Param(jnp.ones(size, dtype))

    def __call__(self, x: Float[Array, "*rows size"]) -> Float[Array, "*rows size"]:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return self.weight[...] * wide.astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention with RMSNorm on each head's q and k; what is attended to is the caller's `attend`."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.head_dim = config.head_dim
        query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query, rngs=rngs, dtype=dtype)
        self.k_proj = Linear(config.hidden_size, kv, rngs=rngs, dtype=dtype)
        self.v_proj = Linear(config.hidden_size, kv, rngs=rngs, dtype=dtype)
        self.o_proj = Linear(query, config.hidden_size, rngs=rngs, dtype=dtype)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype=dtype)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype=dtype)

    def __call__(self, x: jax.Array, cos: jax.Array, sin: jax.Array, layer: int, attend: Attend, state: Any):
        batch, time, _ = x.shape
        heads = (batch, time, -1, self.head_dim)
        q = apply_rope(self.q_norm(self.q_proj(x).reshape(heads)), cos, sin)
        k = apply_rope(self.k_norm(self.k_proj(x).reshape(heads)), cos, sin)
        v = self.v_proj(x).reshape(heads)
        out, state = attend(layer, q, k, v, state)
        return self.o_proj(out.reshape(batch, time, -1)), state


class FeedForward(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, rngs=rngs, dtype=dtype)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, rngs=rngs, dtype=dtype)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time hidden"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nnx.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.self_attn = Attention(config, rngs=rngs, dtype=dtype)
        self.mlp = FeedForward(config, rngs=rngs, dtype=dtype)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)

    def __call__(self, x: jax.Array, cos: jax.Array, sin: jax.Array, layer: int, attend: Attend, state: Any):
        mixed, state = self.self_attn(self.input_layernorm(x), cos, sin, layer, attend, state)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), state


class Embedding(nnx.Module):
    """Token embeddings [vocab, hidden]; the same matrix gives the logits when embeddings are tied."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        shape = (config.vocab_size, config.hidden_size)
        self.weight = nnx.Param((jax.random.normal(rngs.params(), shape) * 0.02).astype(dtype))

    def __call__(self, tokens: Int[Array, "batch time"]) -> Float[Array, "batch time hidden"]:
        return self.weight[...][tokens]


class Qwen3(nnx.Module):
    """The decoder: tokens → hidden states → logits. Weights are random until a checkpoint is loaded into them.

    Raises ConfigError for a mixture-of-experts configuration, which only the cost model understands so far.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32):
        if config.num_experts:
            raise ConfigError(
                f"{config.name or 'config'}: mixture-of-experts models are not implemented; use a dense one"
            )
        self.config = config
        self.embed_tokens = Embedding(config, rngs=rngs, dtype=dtype)
        self.layers = nnx.List([DecoderLayer(config, rngs=rngs, dtype=dtype) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        positions: Int[Array, "batch time"],
        attend: Attend,
        state: Any = None,
    ) -> tuple[Float[Array, "batch time hidden"], Any]:
        """Hidden states after the last norm, and the state that `attend` threaded through the layers."""
        x = self.embed_tokens(tokens)
        cos, sin = rope_table(positions, self.config.head_dim, self.config.rope_theta)
        for index, layer in enumerate(self.layers):
            x, state = layer(x, cos, sin, index, attend, state)
        return self.norm(x), state

    def logits(self, hidden: Float[Array, "*rows hidden"]) -> Float[Array, "*rows vocab"]:
        """Next-token logits, float32."""
        head = self.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return jnp.einsum("...h,vh->...v", hidden, head.weight[...], preferred_element_type=jnp.float32)
