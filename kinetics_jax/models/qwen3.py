"""Qwen3 decoder in Flax NNX, after transformers' `models/qwen3/modeling_qwen3.py`; Qwen2 and Llama types by config.

The model knows no cache. Its forward takes `attend(layer, q, k, v, state) -> (out, state)` with q and k after norm and
RoPE; the full forward, prefill and decode differ only in the `attend` they pass. Parameter paths are the names of a
Hugging Face checkpoint without its leading `model.`, and every matrix keeps that layout, [out, in]; the experts of a
layer are stacked, [experts, in, out], as a grouped product reads them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
from kinetics_kernels import grouped_matmul

from kinetics_jax.config import Llama3Scaling, ModelConfig
from kinetics_jax.sharding.mesh import constrained, rows_spec

# attend(layer, q [batch, time, heads, head_dim], k, v [batch, time, kv_heads, head_dim], state)
#   -> (out [batch, time, heads, head_dim], state)
Attend = Callable[[int, jax.Array, jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


def llama3_frequencies(frequencies: Float[Array, " half"], scaling: Llama3Scaling) -> Float[Array, " half"]:
    """RoPE's frequencies, in radians per position, as Llama 3.1 scales them: see Llama3Scaling."""
    turns = frequencies * scaling.original_max_position_embeddings / (2 * jnp.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = jnp.clip((turns - low) / (high - low), 0, 1)
    return frequencies * (kept + (1 - kept) / scaling.factor)


def rope_table(
    positions: Int[Array, "batch time"], head_dim: int, theta: float, scaling: Llama3Scaling | None = None
) -> tuple[Float[Array, "batch time half"], Float[Array, "batch time half"]]:
    """Cosine and sine of RoPE's angles, float32: angle = position * theta ** (-2 i / head_dim), scaled if asked."""
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling:
        frequencies = llama3_frequencies(frequencies, scaling)
    angles = positions[..., None].astype(jnp.float32) * frequencies[None, None]
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
    """y = x W^T (+ b) with W [out, in]."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: DTypeLike, bias: bool = False):
        scale = inputs**-0.5
        self.weight = nnx.Param((jax.random.normal(rngs.params(), (outputs, inputs)) * scale).astype(dtype))
        self.bias = nnx.Param(jnp.zeros(outputs, dtype)) if bias else None

    def __call__(self, x: Float[Array, "*rows inputs"]) -> Float[Array, "*rows outputs"]:
        y = jnp.einsum("...i,oi->...o", x, self.weight[...])
        return y if self.bias is None else y + jnp.expand_dims(self.bias[...], range(y.ndim - 1))


class RMSNorm(nnx.Module):
    """x / rms(x) * weight over the last axis, in float32."""

    def __init__(self, size: int, eps: float, *, dtype: DTypeLike):
        self.eps = eps
        self.weight = nnx.Param(jnp.ones(size, dtype))

    def __call__(self, x: Float[Array, "*rows size"]) -> Float[Array, "*rows size"]:
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return jnp.expand_dims(self.weight[...], range(x.ndim - 1)) * wide.astype(x.dtype)


class Attention(nnx.Module):
    """Grouped-query attention by the caller's `attend`, with RMSNorm on each head's q and k or with biases."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.head_dim = config.head_dim
        query, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        bias = config.qkv_bias
        self.q_proj = Linear(config.hidden_size, query, rngs=rngs, dtype=dtype, bias=bias)
        self.k_proj = Linear(config.hidden_size, kv, rngs=rngs, dtype=dtype, bias=bias)
        self.v_proj = Linear(config.hidden_size, kv, rngs=rngs, dtype=dtype, bias=bias)
        self.o_proj = Linear(query, config.hidden_size, rngs=rngs, dtype=dtype)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype=dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps, dtype=dtype) if config.qk_norm else None

    def __call__(
        self,
        x: Float[Array, "batch time hidden"],
        cos: Float[Array, "batch time half"],
        sin: Float[Array, "batch time half"],
        layer: int,
        attend: Attend,
        state: Any,
    ) -> tuple[Float[Array, "batch time hidden"], Any]:
        batch, time, _ = x.shape
        heads = (batch, time, -1, self.head_dim)
        q, k, v = (project(x).reshape(heads) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        out, state = attend(layer, apply_rope(q, cos, sin), apply_rope(k, cos, sin), v, state)
        return self.o_proj(out.reshape(batch, time, -1)), state


class FeedForward(nnx.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, rngs=rngs, dtype=dtype)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, rngs=rngs, dtype=dtype)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time hidden"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))


class StackedLinear(nnx.Module):
    """One matrix for each expert, W [experts, in, out], for rows that are sorted by expert."""

    def __init__(self, experts: int, inputs: int, outputs: int, *, rngs: nnx.Rngs, dtype: DTypeLike):
        shape = (experts, inputs, outputs)
        self.weight = nnx.Param((jax.random.normal(rngs.params(), shape) * inputs**-0.5).astype(dtype))

    def __call__(
        self, x: Float[Array, "rows inputs"], group_sizes: Int[Array, " experts"]
    ) -> Float[Array, "rows outputs"]:
        return grouped_matmul(x, self.weight[...], group_sizes)


class Experts(nnx.Module):
    """SwiGLU of every expert for its own rows: `x [rows, hidden]` sorted by expert, `group_sizes [experts]` int32."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike):
        experts, hidden, inner = config.num_experts, config.hidden_size, config.moe_intermediate_size
        self.gate_proj = StackedLinear(experts, hidden, inner, rngs=rngs, dtype=dtype)
        self.up_proj = StackedLinear(experts, hidden, inner, rngs=rngs, dtype=dtype)
        self.down_proj = StackedLinear(experts, inner, hidden, rngs=rngs, dtype=dtype)

    def __call__(
        self, x: Float[Array, "rows hidden"], group_sizes: Int[Array, " experts"]
    ) -> Float[Array, "rows hidden"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x, group_sizes)) * self.up_proj(x, group_sizes), group_sizes)


def sorted_places(groups: Int[Array, " rows"], count: int) -> tuple[Int[Array, " rows"], Int[Array, " count"]]:
    """Where each row goes in a stable sort by group, and how many rows each of the `count` groups has.

    Counted, not sorted: a sort of many rows can be compiled for a GPU only on a machine that has one.
    """
    seen = jnp.cumsum(groups[:, None] == jnp.arange(count, dtype=jnp.int32)[None], axis=0, dtype=jnp.int32)
    sizes = seen[-1]
    before = jnp.cumsum(sizes, dtype=jnp.int32) - sizes
    return before[groups] + jnp.take_along_axis(seen, groups[:, None], axis=1)[:, 0] - 1, sizes


class MixtureOfExperts(nnx.Module):
    """Each token through the experts that its router scores highest, weighted by the router's softmax, in float32.

    No expert has a capacity: no token is dropped, and what a token gets depends on no other. On a mesh each device
    takes the tokens of its data shard through its part of its experts, and the parts are summed.
    """

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike, mesh: Mesh | None = None):
        self.chosen, self.normalise, self.mesh = config.experts_per_token, config.norm_topk_prob, mesh
        self.gate = Linear(config.hidden_size, config.num_experts, rngs=rngs, dtype=dtype)
        self.experts = Experts(config, rngs=rngs, dtype=dtype)

    def __call__(self, x: Float[Array, "batch time hidden"]) -> Float[Array, "batch time hidden"]:
        tokens = x.reshape(-1, x.shape[-1])
        exact = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
        router = jnp.einsum("th,eh->te", tokens, self.gate.weight[...], **exact)
        weights, experts = jax.lax.top_k(jax.nn.softmax(router), self.chosen)
        if self.normalise:
            weights = weights / jnp.sum(weights, axis=-1, keepdims=True)
        if self.mesh is None:
            mixed = self._mixed(tokens, weights, experts)
        else:
            mixed = self._on_mesh(self.mesh, tokens, weights, experts)
        return mixed.astype(x.dtype).reshape(x.shape)

    def _mixed(
        self,
        tokens: Float[Array, "tokens hidden"],
        weights: Float[Array, "tokens chosen"],
        experts: Int[Array, "tokens chosen"],
    ) -> Float[Array, "tokens hidden"]:
        """Each token's weighted sum over its experts, float32."""
        count = self.experts.gate_proj.weight.shape[0]
        place, group_sizes = sorted_places(experts.reshape(-1), count)
        return self._summed(self.experts, tokens, weights, place, group_sizes)

    def _summed(
        self,
        through: Callable[[jax.Array, jax.Array], jax.Array],
        tokens: Float[Array, "tokens hidden"],
        weights: Float[Array, "tokens chosen"],
        place: Int[Array, " pairs"],
        group_sizes: Int[Array, " experts"],
    ) -> Float[Array, "tokens hidden"]:
        """The same for pairs of token and expert that go to `place` when sorted by expert, through these experts."""
        # Pairs of token and choice, by expert.
        pairs = jnp.zeros_like(place).at[place].set(jnp.arange(place.size, dtype=jnp.int32))
        rows = through(tokens[pairs // self.chosen], group_sizes)
        back = rows[place].reshape(-1, self.chosen, tokens.shape[1])
        return jnp.sum(weights[..., None] * back.astype(jnp.float32), axis=1)

    def _on_mesh(
        self,
        mesh: Mesh,
        tokens: Float[Array, "tokens hidden"],
        weights: Float[Array, "tokens chosen"],
        experts: Int[Array, "tokens chosen"],
    ) -> Float[Array, "tokens hidden"]:
        """`_mixed`, each device for its own tokens and experts."""
        rows = PartitionSpec(rows_spec(mesh, tokens.shape[0], ("data",)))
        wide, tall = PartitionSpec("expert", None, "tensor"), PartitionSpec("expert", "tensor")

        def local(tokens, weights, experts, gate, up, down):
            count = gate.shape[0]
            mine = experts - jax.lax.axis_index("expert") * count
            here = (mine >= 0) & (mine < count)
            # Pairs of experts elsewhere come last, in no group: what the product leaves in their rows is not read.
            place, group_sizes = sorted_places(jnp.where(here, mine, count).reshape(-1), count + 1)
            group_sizes = group_sizes[:count]

            def through(x: jax.Array, group_sizes: jax.Array) -> jax.Array:
                inner = jax.nn.silu(grouped_matmul(x, gate, group_sizes)) * grouped_matmul(x, up, group_sizes)
                out = grouped_matmul(inner, down, group_sizes)
                grouped = jnp.arange(out.shape[0], dtype=jnp.int32) < jnp.sum(group_sizes, dtype=jnp.int32)
                return jnp.where(grouped[:, None], out, 0)

            return jax.lax.psum(self._summed(through, tokens, weights, place, group_sizes), ("expert", "tensor"))

        matrices = (getattr(self.experts, name).weight[...] for name in ("gate_proj", "up_proj", "down_proj"))
        return jax.shard_map(
            local, mesh=mesh, in_specs=(rows, rows, rows, wide, wide, tall), out_specs=rows, check_vma=False
        )(tokens, weights, experts, *matrices)


class DecoderLayer(nnx.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig, layer: int, *, rngs: nnx.Rngs, dtype: DTypeLike, mesh: Mesh | None = None):
        self.self_attn = Attention(config, rngs=rngs, dtype=dtype)
        if layer in config.moe_layers:
            self.mlp = MixtureOfExperts(config, rngs=rngs, dtype=dtype, mesh=mesh)
        else:
            self.mlp = FeedForward(config, rngs=rngs, dtype=dtype)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)

    def __call__(
        self,
        x: Float[Array, "batch time hidden"],
        cos: Float[Array, "batch time half"],
        sin: Float[Array, "batch time half"],
        layer: int,
        attend: Attend,
        state: Any,
    ) -> tuple[Float[Array, "batch time hidden"], Any]:
        mixed, state = self.self_attn(self.input_layernorm(x), cos, sin, layer, attend, state)
        x = x + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), state


class Embedding(nnx.Module):
    """Token embeddings [vocab, hidden]; the same matrix gives the logits when embeddings are tied."""

    def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike, mesh: Mesh | None = None):
        self.mesh = mesh
        shape = (config.vocab_size, config.hidden_size)
        self.weight = nnx.Param((jax.random.normal(rngs.params(), shape) * 0.02).astype(dtype))

    def __call__(self, tokens: Int[Array, "batch time"]) -> Float[Array, "batch time hidden"]:
        if self.mesh is None:
            return self.weight[...][tokens]
        rows = rows_spec(self.mesh, tokens.shape[0])
        if self.weight.shape[0] % self.mesh.shape["tensor"]:
            return constrained(self.weight[...][tokens], self.mesh, rows)

        def local(tokens: jax.Array, weight: jax.Array) -> jax.Array:
            mine = tokens - jax.lax.axis_index("tensor") * weight.shape[0]
            here = (mine >= 0) & (mine < weight.shape[0])
            return jax.lax.psum(jnp.where(here[..., None], weight.at[mine].get(mode="clip"), 0), "tensor")

        specs = PartitionSpec(rows), PartitionSpec("tensor")
        return jax.shard_map(local, mesh=self.mesh, in_specs=specs, out_specs=specs[0], check_vma=False)(
            tokens, self.weight[...]
        )


class Qwen3(nnx.Module):
    """The decoder: tokens → hidden states → logits. Weights are random until a checkpoint is loaded into them.

    With a mesh its weights lie as `sharding.mesh.param_sharding` says, and it computes there.
    """

    def __init__(
        self, config: ModelConfig, *, rngs: nnx.Rngs, dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None
    ):
        self.config, self.mesh = config, mesh
        self.embed_tokens = Embedding(config, rngs=rngs, dtype=dtype, mesh=mesh)
        self.layers = nnx.List(
            [DecoderLayer(config, layer, rngs=rngs, dtype=dtype, mesh=mesh) for layer in range(config.num_layers)]
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps, dtype=dtype)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, rngs=rngs, dtype=dtype)

    def __call__(
        self,
        tokens: Int[Array, "batch time"],
        positions: Int[Array, "batch time"],
        attend: Attend,
        state: Any = None,
        watch: Callable[[jax.Array], None] = lambda x: None,
    ) -> tuple[Float[Array, "batch time hidden"], Any]:
        """Hidden states after the last norm, and the state that `attend` threaded through the layers.

        `watch` is called, while tracing, with the residual stream after the embedding and after each layer.
        """
        x = self.embed_tokens(tokens)
        watch(x)
        cos, sin = rope_table(positions, self.config.head_dim, self.config.rope_theta, self.config.rope_scaling)
        rows = None if self.mesh is None else rows_spec(self.mesh, tokens.shape[0])
        for index, layer in enumerate(self.layers):
            x, state = layer(x, cos, sin, index, attend, state)
            x = constrained(x, self.mesh, rows)  # else a layer may be laid out to suit a later one
            watch(x)
        return self.norm(x), state

    def logits(self, hidden: Float[Array, "*rows hidden"]) -> Float[Array, "*rows vocab"]:
        """Next-token logits, float32."""
        head = self.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        logits = jnp.einsum("...h,vh->...v", hidden, head.weight[...], preferred_element_type=jnp.float32)
        if self.mesh is None:
            return logits
        vocab = "tensor" if logits.shape[-1] % self.mesh.shape["tensor"] == 0 else None
        between = (None,) * (logits.ndim - 2)
        return constrained(logits, self.mesh, rows_spec(self.mesh, logits.shape[0]), *between, vocab)
