"""Random tiny Qwen3 checkpoints in Hugging Face layout, the same bits on every machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

BASE = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 131,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "hidden_act": "silu",
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1_000_000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "eos_token_id": 3,
}

MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
}
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "head_dim": None, "attention_bias": None}
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "head_dim": None}
# Angles of all three kinds, kept, interpolated and divided, within tiny sequences.
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}

# What parity with transformers is checked on: name → changed fields.
PARITY_CASES: dict[str, dict[str, Any]] = {
    "group1_untied": {"num_key_value_heads": 4},
    "group2_tied": {"tie_word_embeddings": True},
    "group4_theta5e6": {"num_key_value_heads": 1, "rope_theta": 5_000_000.0},
    "group8_wide_heads": {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 16},
    "rope_parameters": {
        "rope_theta": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "layer_types": ["full_attention"] * 2,
        "torch_dtype": None,
        "dtype": "float32",
    },
    "qwen2": {**QWEN2, "use_sliding_window": False, "sliding_window": 16, "max_window_layers": 1},
    "qwen2_tied": {**QWEN2, "tie_word_embeddings": True, "rope_theta": 10_000.0, "num_key_value_heads": 1},
    "llama": {**LLAMA, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0},
    "llama_wide_heads": {**LLAMA, "head_dim": 16, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "llama3_rope_scaling": {**LLAMA, "rope_theta": 500.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "llama3_rope_parameters": {
        **LLAMA,
        "head_dim": 16,
        "rope_theta": None,
        "rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3},
    },
    "moe": MOE,
    "moe_not_normalised": {**MOE, "norm_topk_prob": False, "num_experts": 5, "num_experts_per_tok": 1},
    "moe_every_other_layer": {**MOE, "num_hidden_layers": 3, "decoder_sparse_step": 2, "tie_word_embeddings": True},
    "moe_mlp_only_layers": {**MOE, "num_hidden_layers": 3, "mlp_only_layers": [1]},
}


def tiny_config(**changes: Any) -> dict[str, Any]:
    """config.json of a tiny model; a field changed to None is left out."""
    return {name: value for name, value in {**BASE, **changes}.items() if value is not None}


def tiny_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights by their Hugging Face names, large enough that every layer matters."""
    rng = np.random.default_rng(seed)
    hidden, ffn, kind = config["hidden_size"], config["intermediate_size"], config["model_type"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or hidden // heads

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 2.5 / np.sqrt(shape[-1])).astype(np.float32)

    def gains(size: int) -> np.ndarray:
        return rng.uniform(0.5, 1.5, size).astype(np.float32)

    def feed_forward(prefix: str, inner: int) -> dict[str, np.ndarray]:
        return {
            prefix + "gate_proj.weight": matrix(inner, hidden),
            prefix + "up_proj.weight": matrix(inner, hidden),
            prefix + "down_proj.weight": matrix(hidden, inner),
        }

    tensors = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden), "model.norm.weight": gains(hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "self_attn.q_proj.weight": matrix(heads * head, hidden),
            prefix + "self_attn.k_proj.weight": matrix(kv_heads * head, hidden),
            prefix + "self_attn.v_proj.weight": matrix(kv_heads * head, hidden),
            prefix + "self_attn.o_proj.weight": matrix(hidden, heads * head),
        }
        if kind in ("qwen3", "qwen3_moe"):
            tensors |= {prefix + f"self_attn.{of}_norm.weight": gains(head) for of in "qk"}
        if kind == "qwen2":
            sizes = {"q": heads * head, "k": kv_heads * head, "v": kv_heads * head}
            tensors |= {prefix + f"self_attn.{of}_proj.bias": matrix(1, size)[0] for of, size in sizes.items()}
        sparse = kind == "qwen3_moe" and (layer + 1) % config["decoder_sparse_step"] == 0
        if sparse and layer not in config["mlp_only_layers"]:
            tensors[prefix + "mlp.gate.weight"] = matrix(config["num_experts"], hidden)
            for expert in range(config["num_experts"]):
                tensors |= feed_forward(f"{prefix}mlp.experts.{expert}.", config["moe_intermediate_size"])
        else:
            tensors |= feed_forward(prefix + "mlp.", ffn)
        tensors |= {
            prefix + "input_layernorm.weight": gains(hidden),
            prefix + "post_attention_layernorm.weight": gains(hidden),
        }
    if not config.get("tie_word_embeddings"):
        tensors["lm_head.weight"] = matrix(config["vocab_size"], hidden)
    return tensors


def write_checkpoint(
    folder: Path,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray] | None = None,
    *,
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """Writes config.json and the weights, in one file or in `shards` with their index."""
    tensors = tiny_tensors(config, seed) if tensors is None else tensors
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {key: tensors[key] for key in list(tensors)[shard::shards]}
        save_file(part, folder / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def tiny_prompts(count: int, *, seed: int = 0, vocab: int = 131, first: int = 1) -> list[list[int]]:
    """Prompts of every length from `first` up."""
    rng = np.random.default_rng(seed)
    return [rng.integers(4, vocab, length).tolist() for length in range(first, first + count)]
