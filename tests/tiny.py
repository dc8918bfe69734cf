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
}


def tiny_config(**changes: Any) -> dict[str, Any]:
    """config.json of a tiny model; a field changed to None is left out."""
    return {name: value for name, value in {**BASE, **changes}.items() if value is not None}


def tiny_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 weights by their Hugging Face names, large enough that every layer matters."""
    rng = np.random.default_rng(seed)
    hidden, ffn, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 2.5 / np.sqrt(shape[-1])).astype(np.float32)

    def gains(size: int) -> np.ndarray:
        return rng.uniform(0.5, 1.5, size).astype(np.float32)

    tensors = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden), "model.norm.weight": gains(hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors |= {
            prefix + "self_attn.q_proj.weight": matrix(heads * head, hidden),
            prefix + "self_attn.k_proj.weight": matrix(kv_heads * head, hidden),
            prefix + "self_attn.v_proj.weight": matrix(kv_heads * head, hidden),
            prefix + "self_attn.o_proj.weight": matrix(hidden, heads * head),
            prefix + "self_attn.q_norm.weight": gains(head),
            prefix + "self_attn.k_norm.weight": gains(head),
            prefix + "mlp.gate_proj.weight": matrix(ffn, hidden),
            prefix + "mlp.up_proj.weight": matrix(ffn, hidden),
            prefix + "mlp.down_proj.weight": matrix(hidden, ffn),
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
