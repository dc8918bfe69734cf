"""Published architectures to price, by hub id: the shape fields of their `config.json`, and where those were read."""

from __future__ import annotations

import dataclasses
import difflib
import functools
from typing import Any

from kinetics_jax.config_fields import ConfigError
from kinetics_jax.costs.architectures.architecture import Architecture
from kinetics_jax.costs.architectures.readers import read_architecture


def _gpt_oss(layers: int, experts: int) -> dict[str, Any]:
    return {
        "model_type": "gpt_oss",
        "hidden_size": 2880,
        "num_hidden_layers": layers,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 2880,
        "num_local_experts": experts,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "vocab_size": 201_088,
        "max_position_embeddings": 131_072,
    }


def _gemma3(layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int, width: int) -> dict[str, Any]:
    return {
        "model_type": "gemma3_text",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "intermediate_size": width,
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
    }


_DEEPSEEK_V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "intermediate_size": 18_432,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "vocab_size": 129_280,
    "max_position_embeddings": 163_840,
}
_QWEN_HYBRID: dict[str, Any] = {
    "num_hidden_layers": 48,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "full_attention_interval": 4,
    "linear_num_key_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "num_experts": 512,
    "num_experts_per_tok": 10,
    "max_position_embeddings": 262_144,
}

# Fields of config.json, and the source they were read from.
PUBLISHED: dict[str, tuple[dict[str, Any], str]] = {
    "openai/gpt-oss-20b": (_gpt_oss(24, 32), "its config.json; OpenAI, gpt-oss model card (arXiv 2508.10925), table 1"),
    "openai/gpt-oss-120b": (_gpt_oss(36, 128), "its config.json; transformers GptOssConfig, whose defaults it is"),
    "google/gemma-3-12b-it": (
        _gemma3(48, 3840, 16, 8, 256, 15_360),
        "text_config of its config.json; Gemma 3 technical report (arXiv 2503.19786)",
    ),
    "google/gemma-3-27b-it": (
        _gemma3(62, 5376, 32, 16, 128, 21_504),
        "text_config of its config.json; Gemma 3 technical report (arXiv 2503.19786)",
    ),
    "deepseek-ai/DeepSeek-V2-Lite": (
        _DEEPSEEK_V3
        | {
            "model_type": "deepseek_v2",
            "hidden_size": 2048,
            "num_hidden_layers": 27,
            "num_attention_heads": 16,
            "q_lora_rank": None,
            "intermediate_size": 10_944,
            "moe_intermediate_size": 1408,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "first_k_dense_replace": 1,
            "vocab_size": 102_400,
        },
        "its config.json; inference/configs/config_16B.json of deepseek-ai/DeepSeek-V3",
    ),
    "deepseek-ai/DeepSeek-V3": (_DEEPSEEK_V3, "its config.json (DeepSeek-R1 has the same shape); arXiv 2412.19437"),
    "deepseek-ai/DeepSeek-V3.2": (
        _DEEPSEEK_V3 | {"model_type": "deepseek_v32", "index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048},
        "inference/config_671B_v3.2.json of its repository; transformers DeepseekV32Config",
    ),
    "Qwen/Qwen3-Next-80B-A3B-Thinking": (
        _QWEN_HYBRID
        | {
            "model_type": "qwen3_next",
            "hidden_size": 2048,
            "num_attention_heads": 16,
            "linear_num_value_heads": 32,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "intermediate_size": 5120,
            "vocab_size": 151_936,
        },
        "its config.json; transformers Qwen3NextConfig",
    ),
    "Qwen/Qwen3.5-27B": (
        {
            "model_type": "qwen3_5_text",
            "hidden_size": 5120,
            "num_hidden_layers": 64,
            "num_attention_heads": 24,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "full_attention_interval": 4,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 48,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "intermediate_size": 17_408,
            "vocab_size": 248_320,
            "max_position_embeddings": 262_144,
        },
        "text_config of its config.json, as THUDM/slime (scripts/models/qwen3.5-27B.sh) and Modular's MAX carry it",
    ),
    "Qwen/Qwen3.8-Flash-Next": (
        _QWEN_HYBRID
        | {
            "model_type": "qwen4_exp_text",
            "hidden_size": 2560,
            "num_attention_heads": 24,
            "linear_num_value_heads": 48,
            "moe_intermediate_size": 640,
            "shared_expert_intermediate_size": 640,
            "vocab_size": 248_320,
            "hc_count": 4,
            "hc_lowrank": 320,
            "ple_layer_ids": [2],
            "indexer_n_heads": 4,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 128,
            "indexer_budget": 2048,
            "indexer_compress_ratio": 4,
        },
        "text_config of its config.json as GGUF conversions carry it (qwen4exp.*); transformers Qwen4ExpTextConfig",
    ),
}


def published_names() -> dict[str, str]:
    """What every published architecture may be called, and its hub id: the id, or the part after the slash."""
    return {name: full for full in PUBLISHED for name in (full, full.partition("/")[2])}


@functools.cache
def architecture_named(name: str) -> Architecture:
    """A published architecture by its hub id or the part after the slash. Raises ConfigError for any other."""
    ids = published_names()
    if name not in ids:
        near = difflib.get_close_matches(name, ids, n=1)
        hint = f"; did you mean {ids[near[0]]}?" if near else ""
        raise ConfigError(f"no published architecture named {name!r}{hint} (known: {', '.join(PUBLISHED)})")
    fields, source = PUBLISHED[ids[name]]
    architecture = read_architecture(fields, name=ids[name])
    return dataclasses.replace(architecture, source=source)
