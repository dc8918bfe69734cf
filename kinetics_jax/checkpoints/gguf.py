"""llama.cpp's GGUF files: configuration from the metadata, weights dequantised as they are read."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import ml_dtypes
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from kinetics_jax.checkpoints.files import fault_line
from kinetics_jax.checkpoints.gguf_header import GGUFHeader, TensorInfo, read_header
from kinetics_jax.checkpoints.gguf_tokenizer import write_tokenizer
from kinetics_jax.checkpoints.tensors import Placement, empty_aligned, expected_parameters, first_faults, sharding_for
from kinetics_jax.config import ConfigError, Llama3Scaling, ModelConfig
from kinetics_jax.errors import CheckpointError
from kinetics_jax.models.qwen3 import llama3_frequencies

SLICE_BYTES = 16 << 20  # of float32, dequantised at a time
MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3moe": "qwen3_moe"}
PLAIN = {0: np.dtype(np.float32), 1: np.dtype(np.float16), 30: np.dtype(ml_dtypes.bfloat16)}  # by ggml's type
# config.json's field: the key of the metadata, behind the architecture's name.
FIELDS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
    "num_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
REQUIRED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "rms_norm_eps")
# Metadata that change what a model computes; any other value is refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "rope.scaling.type": ("none",),
    "attention.sliding_window": (0,),
    "expert_shared_count": (0,),
    "expert_gating_func": (0, 1),  # softmax
    "expert_weights_scale": (0.0, 1.0),
    "leading_dense_block_count": (0,),
}
END_TOKENS = ("eos", "eot", "eom")
OUTER = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
INNER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
ROPE_FACTORS = "rope_freqs.weight"  # what Llama 3.1's scaling divides RoPE's frequencies by


def gguf_config(header: GGUFHeader) -> ModelConfig:
    """The configuration in a file's metadata; its dtype is that of the weights, float32 where they are quantised.

    Raises ConfigError naming what is missing or not implemented.
    """
    metadata, path = header.metadata, header.path
    architecture = metadata.get("general.architecture")
    if architecture not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise ConfigError(f"{path}: architecture {architecture!r} is not implemented (implemented: {known})")
    fields = {field: metadata.get(f"{architecture}.{key}") for field, key in FIELDS.items()}
    wrong = [f"missing {architecture}.{FIELDS[field]}" for field in REQUIRED if fields[field] is None]
    embedding = header.tensors.get(_gguf_name("embed_tokens.weight"))
    wrong += [] if embedding else [f"missing the tensor {_gguf_name('embed_tokens.weight')}"]
    wrong += [
        f"{architecture}.{key} = {metadata[f'{architecture}.{key}']!r} is not implemented"
        for key, neutral in NEUTRAL.items()
        if metadata.get(f"{architecture}.{key}", neutral[0]) not in neutral
    ]
    if wrong or embedding is None:
        raise ConfigError(f"{path}: " + "; ".join(wrong))
    rotated = metadata.get(f"{architecture}.rope.dimension_count")
    fields["head_dim"] = fields["head_dim"] or rotated  # if both are missing, from_hf's default
    if fields["head_dim"] is None and MODEL_TYPES[architecture].startswith("qwen3"):
        raise ConfigError(f"{path}: missing {architecture}.{FIELDS['head_dim']}")
    if rotated not in (None, fields["head_dim"]):
        raise ConfigError(f"{path}: RoPE of {rotated} of {fields['head_dim']} dimensions is not implemented")
    ends = (metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in END_TOKENS)
    kinds = {info.kind for info in header.tensors.values() if len(info.shape) > 1}
    fields |= {
        "model_type": MODEL_TYPES[architecture],
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": _gguf_name("lm_head.weight") not in header.tensors,
        "eos_token_id": list(dict.fromkeys(token for token in ends if token is not None)),
        "norm_topk_prob": bool(metadata.get(f"{architecture}.expert_weights_norm", True)),
        "torch_dtype": PLAIN[kinds.pop()].name if len(kinds) == 1 and kinds <= PLAIN.keys() else "float32",
    }
    try:
        config = ModelConfig.from_hf(fields, name=path.stem)
        return dataclasses.replace(config, rope_scaling=_rope_scaling(header, config))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def load_gguf(
    path: str | Path,
    config: ModelConfig,
    *,
    dtype: DTypeLike | None,
    sharding: Placement = None,
    mesh: Mesh | None = None,
    on_tensor: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[nnx.GraphDef, nnx.State]:
    """Loads a file's tensors into the model's parameters, cast to `dtype`: `nnx.split` of the loaded model.

    None keeps float32, float16 and bfloat16, and gives quantised tensors in float32. Arrays go straight to `sharding`,
    and the model computes on `mesh`.
    Beside the weights the host holds one tensor and a slice of it. `on_tensor(done, total)` is called after each
    tensor. Raises CheckpointError naming every missing, extra, misshapen, cut or unreadable tensor at once.
    """
    header = read_header(path)
    graph, wanted = expected_parameters(config, mesh)
    names = {name: _gguf_name(name) for name in wanted}
    problems = fault_line("missing", [key for key in names.values() if key not in header.tensors])
    known = {*names.values(), ROPE_FACTORS}
    problems += fault_line("not part of this model", [key for key in header.tensors if key not in known])

    loaded: list[tuple[tuple, nnx.Param]] = []
    misfits: list[str] = []
    for done, (name, (place, shape)) in enumerate(wanted.items(), start=1):
        info = header.tensors.get(names[name])
        if info is not None:
            wide = (shape[0], shape[2], shape[1]) if len(shape) == 3 else shape  # experts are [out, in] there
            kept, fault = _stored_dtype(header, info, wide, dtype)
            spot, unfit = sharding_for(name, shape, sharding)
            if kept is not None and not fault and not unfit and not problems and not misfits:
                tensor = empty_aligned(shape, kept)
                fault = _fill(tensor, header, info, _row_order(config, name))
                if not fault:
                    loaded.append((place, nnx.Param(jax.device_put(tensor, spot))))
            misfits += [f"{names[name]} {fault or unfit}"] if fault or unfit else []
        on_tensor(done, len(wanted))
    problems += first_faults(misfits)
    if problems:
        raise CheckpointError(f"{path}: cannot load this checkpoint\n  " + "\n  ".join(problems))
    return graph, nnx.from_flat_state(loaded)


def unpack_gguf(path: str | Path, target: Path) -> ModelConfig:
    """Writes config.json and the tokenizer's files, made from a file's metadata; returns the configuration."""
    header = read_header(path)
    config = gguf_config(header)
    (target / "config.json").write_text(json.dumps(config.to_hf(), indent=2) + "\n", encoding="utf-8")
    write_tokenizer(header, target)
    return config


def _gguf_name(name: str) -> str:
    """What llama.cpp calls a parameter."""
    module, _, kind = name.rpartition(".")
    if match := re.fullmatch(r"layers\.(\d+)\.(.+)", module):
        return f"blk.{match[1]}.{INNER[match[2]]}.{kind}"
    return f"{OUTER[module]}.{kind}"


def _row_order(config: ModelConfig, name: str) -> np.ndarray | None:
    """Where each of the file's rows goes, or None if it stays. For Llama types the file keeps Q and K in RoPE's
    neighbouring pairs, a head at a time: row 2 i + j of a head is dimension i + j * head_dim / 2.
    """
    if config.model_type != "llama" or not re.search(r"\.[qk]_proj\.", name):
        return None
    heads = config.num_heads if ".q_proj." in name else config.num_kv_heads
    rows = np.arange(heads * config.head_dim).reshape(heads, 2, config.head_dim // 2)
    return rows.swapaxes(1, 2).reshape(-1)


def _stored_dtype(
    header: GGUFHeader, info: TensorInfo, shape: tuple[int, ...], dtype: DTypeLike | None
) -> tuple[np.dtype | None, str]:
    """The dtype to give a tensor, or why it cannot be read."""
    if info.shape != tuple(shape):
        return None, f"has shape {list(info.shape)}, expected {list(shape)}"
    if (fault := quantisation_fault(info.kind)) or info.shape[-1] % _block(info.kind)[0]:
        return None, fault or f"has rows of {info.shape[-1]}, which are no whole blocks of {_block(info.kind)[0]}"
    if (end := info.offset + math.prod(info.shape) // _block(info.kind)[0] * _block(info.kind)[1]) > header.size:
        return None, f"is cut short: it ends at byte {end}, the file at {header.size}"
    return np.dtype(PLAIN.get(info.kind, np.float32) if dtype is None else dtype), ""


@functools.cache
def quantisation_fault(kind: int) -> str:
    """Why tensors of ggml's type `kind` cannot be read ("" if they can)."""
    if kind not in gguf.GGML_QUANT_SIZES:
        return f"is stored as ggml type {kind}, which is not known"
    quantised = gguf.GGMLQuantizationType(kind)
    try:
        values, size = gguf.GGML_QUANT_SIZES[quantised]
        if kind not in PLAIN and gguf.quants.dequantize(np.zeros((1, size), np.uint8), quantised).size != values:
            return f"is stored as {quantised.name}, which does not unpack to {values} values"
    except NotImplementedError:
        return f"is stored as {quantised.name}, which cannot be dequantised"
    return ""


def _block(kind: int) -> tuple[int, int]:
    """Values and bytes of a block."""
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]


def _rows(header: GGUFHeader, info: TensorInfo, start: int, stop: int) -> np.ndarray:
    """Rows of a tensor, [rows, length] float32. The file is mapped anew, so that its pages leave memory."""
    values, size = _block(info.kind)
    row_bytes = info.shape[-1] // values * size
    raw = np.memmap(header.path, np.uint8, "r", info.offset + start * row_bytes, (stop - start, row_bytes))
    if info.kind in PLAIN:
        return raw.view(PLAIN[info.kind]).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # broken scales show as values that are not finite
        return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(info.kind))


def _fill(out: np.ndarray, header: GGUFHeader, info: TensorInfo, order: np.ndarray | None) -> str:
    """Dequantises a tensor into `out` slice by slice; says what is wrong with its values ("" if nothing).

    `order` is where each row goes. For experts, `out [experts, in, out]` is filled from [out, in] of each.
    """
    rows, length = math.prod(info.shape[:-1]), info.shape[-1]
    per_matrix = info.shape[-2] if len(info.shape) > 1 else 1
    step = max(1, SLICE_BYTES // (4 * length))
    bad = 0
    for first in range(0, rows, per_matrix):
        matrix = out[first // per_matrix].T if len(info.shape) == 3 else out.reshape(rows, length)
        for start in range(first, first + per_matrix, step):
            stop = min(start + step, first + per_matrix)
            with np.errstate(over="ignore"):  # an overflow shows as an infinity
                part = _rows(header, info, start, stop).astype(out.dtype)
            bad += part.size - int(np.count_nonzero(np.isfinite(part)))
            where = slice(start - first, stop - first) if order is None else order[start - first : stop - first]
            matrix[where] = part
    return f"holds {bad} values that are NaN or infinite in {out.dtype.name}" if bad else ""


def _rope_scaling(header: GGUFHeader, config: ModelConfig) -> Llama3Scaling | None:
    """Llama 3.1's scaling from the factors that the file holds; its other numbers are the same in all of Llama 3."""
    info = header.tensors.get(ROPE_FACTORS)
    if info is None:
        return None
    half = config.head_dim // 2
    if info.kind != 0 or math.prod(info.shape) != half or info.offset + 4 * half > header.size:
        raise ConfigError(f"{ROPE_FACTORS} does not hold {half} numbers in float32")
    factors = np.memmap(header.path, np.float32, "r", info.offset, (half,))
    scaling = Llama3Scaling(float(factors.max()), 1.0, 4.0, 8192)
    plain = config.rope_theta ** -(np.arange(half, dtype=np.float32) / half)
    if not np.allclose(plain / factors, llama3_frequencies(jax.numpy.asarray(plain), scaling), rtol=1e-3):
        raise ConfigError(f"{ROPE_FACTORS} is not Llama 3's scaling of RoPE, the only one that is implemented")
    return scaling
