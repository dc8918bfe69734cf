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

from kinetics_jax.checkpoints.files import MAX_LISTED, fault_line
from kinetics_jax.checkpoints.generation_config import NAME as GENERATION
from kinetics_jax.checkpoints.generation_config import gguf_recommendation
from kinetics_jax.checkpoints.gguf_header import GGUFHeader, TensorInfo, read_header, tensor_bytes
from kinetics_jax.checkpoints.gguf_tokenizer import CONTROL, write_tokenizer
from kinetics_jax.checkpoints.resolve import gguf_name
from kinetics_jax.checkpoints.tensors import (
    Placement,
    check_declared,
    empty_aligned,
    expected_parameters,
    first_faults,
    sharding_for,
)
from kinetics_jax.config import MOE_FIELDS, ConfigError, Llama3Scaling, ModelConfig
from kinetics_jax.config_fields import warn_of_unknown
from kinetics_jax.errors import CheckpointError, shown, spelled
from kinetics_jax.models.qwen3 import llama3_frequencies

SLICE_BYTES = 16 << 20  # of float32, dequantised at a time
MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3moe": "qwen3_moe"}
PLAIN = {
    0: np.dtype(np.float32),
    1: np.dtype(np.float16),
    28: np.dtype(np.float64),
    30: np.dtype(ml_dtypes.bfloat16),
}  # by ggml's type
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
# Metadata that change what a model computes, and the values with which they do not; any other value is refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0.0,),
    "attention.group_norm_groups": (0,),
    "attention.max_alibi_bias": (0.0,),
    "attention.scale": (0.0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),  # softmax
    "expert_group_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_weights_scale": (0.0, 1.0),
    "final_logit_softcapping": (0.0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0.0, 1.0),
    "pooling_type": (0,),
    "residual_scale": (0.0, 1.0),
    "rope.scale_linear": (1.0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.factor": (0.0, 1.0),  # without a type llama.cpp takes it for a linear one
    "rope.scaling.type": ("none",),
    "use_parallel_residual": (False,),
}
# Metadata that change nothing here: the model's own sizes that are read elsewhere, and how its file came to be.
HARMLESS = (
    "vocab_size",
    "attention.value_length",
    "rope.dimension_count",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "tensor_data_layout",
    "expert_weights_norm",
    "expert_shared_feed_forward_length",
)
END_TOKENS = ("eos", "eot", "eom")
# Control tokens that end a turn or a text by their names, as llama.cpp takes them.
END_NAMES = (
    "<|endoftext|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|eot|>",
    "<|EOT|>",
    "<end_of_turn>",
    "<EOT>",
    "[EOT]",
    "[EOS]",
    "<eos>",
    "<end_of_utterance>",
    "_<EOT>",
    "</s>",
    "<|end▁of▁sentence|>",
    "<｜end▁of▁sentence｜>",
)
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
    if not isinstance(architecture, str) or architecture not in MODEL_TYPES:
        known = ", ".join(MODEL_TYPES)
        raise ConfigError(f"{path}: architecture {spelled(architecture)} is not implemented (implemented: {known})")
    if metadata.get("general.type", "model") != "model":
        raise ConfigError(f"{path}: holds {spelled(metadata['general.type'])}, not a whole model")
    fields = {field: metadata.get(f"{architecture}.{key}") for field, key in FIELDS.items()}
    wrong = [f"missing {architecture}.{FIELDS[field]}" for field in REQUIRED if fields[field] is None]
    embedding = header.tensors.get(_gguf_name("embed_tokens.weight"))
    wrong += [] if embedding and len(embedding.shape) == 2 else ["missing the tensor token_embd.weight"]
    wrong += _not_implemented(header, architecture)
    if wrong or embedding is None:
        raise ConfigError(f"{path}: " + "; ".join(wrong[:MAX_LISTED]))
    rows = metadata.get(f"{architecture}.vocab_size", embedding.shape[0])
    if rows != embedding.shape[0]:
        raise ConfigError(
            f"{path}: contradicts itself: {architecture}.vocab_size is {spelled(rows)}, and token_embd.weight has "
            f"{embedding.shape[0]} rows"
        )
    rotated = metadata.get(f"{architecture}.rope.dimension_count")
    fields["head_dim"] = fields["head_dim"] or rotated  # if both are missing, from_hf's default
    if fields["head_dim"] is None and MODEL_TYPES[architecture].startswith("qwen3"):
        raise ConfigError(f"{path}: missing {architecture}.{FIELDS['head_dim']}")
    if rotated not in (None, fields["head_dim"]):
        raise ConfigError(f"{path}: RoPE of {rotated} of {fields['head_dim']} dimensions is not implemented")
    kinds = {info.kind for info in header.tensors.values() if len(info.shape) > 1}
    fields |= {
        "model_type": MODEL_TYPES[architecture],
        "vocab_size": embedding.shape[0],
        "tie_word_embeddings": _gguf_name("lm_head.weight") not in header.tensors,
        "eos_token_id": list(_end_tokens(header)),
        "torch_dtype": PLAIN[kinds.pop()].name if len(kinds) == 1 and kinds <= PLAIN.keys() else "float32",
    }
    if MODEL_TYPES[architecture] == "qwen3_moe":
        fields["norm_topk_prob"] = metadata.get(f"{architecture}.expert_weights_norm", True)
    else:  # a dense model's metadata may say 0 experts
        experts = {name: fields.pop(name) for name in MOE_FIELDS}
        if experts["num_experts"] not in (None, 0):
            raise ConfigError(
                f"{path}: {architecture}.expert_count = {spelled(experts['num_experts'])}: not implemented"
            )
    try:
        config = ModelConfig.from_hf(fields, name=gguf_name(path))
        return dataclasses.replace(config, rope_scaling=_rope_scaling(header, config))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _not_implemented(header: GGUFHeader, architecture: str) -> list[str]:
    """Which metadata ask for another computation, or are no single values. Warns of those that are not known."""
    wrong, unknown = [], []
    prefix = f"{architecture}."
    for key, value in header.metadata.items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        plain = not isinstance(value, list | np.ndarray)
        if name in NEUTRAL:
            if not plain or value not in NEUTRAL[name]:
                wrong.append(f"{key} = {spelled(value)} is not implemented")
        elif name in FIELDS.values() or name in HARMLESS:
            if not plain:
                wrong.append(f"{key} is a list ({spelled(value, 40)}), expected one value")
        elif not plain or value not in (0, "", False):
            unknown.append(f"{shown(key)} = {spelled(value, 40)}")
    warn_of_unknown(str(header.path), "metadata that are not known", unknown)
    return wrong


def _end_tokens(header: GGUFHeader) -> dict[int, None]:
    """The end tokens that the metadata name, and the control tokens that are called like one."""
    fields = header.metadata
    named = [fields.get(f"tokenizer.ggml.{kind}_token_id") for kind in END_TOKENS]
    ids = [token for token in named if token is not None]
    if any(type(token) is not int for token in ids):
        raise ConfigError(f"{header.path}: its end tokens are {spelled(ids)}, no token ids")
    ends = dict.fromkeys(ids)
    tokens, kinds = fields.get("tokenizer.ggml.tokens"), fields.get("tokenizer.ggml.token_type")
    if isinstance(tokens, list) and isinstance(kinds, np.ndarray) and len(tokens) == len(kinds):
        ends |= dict.fromkeys(
            index for index in np.flatnonzero(kinds == CONTROL).tolist() if tokens[index] in END_NAMES
        )
    return ends


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
    check_declared(path, config, len(header.tensors), max(max(i.shape, default=0) for i in header.tensors.values()))
    graph, wanted = expected_parameters(config, mesh)
    names = {name: _gguf_name(name) for name in wanted}
    problems = fault_line("missing", [key for key in names.values() if key not in header.tensors])
    known = {*names.values(), ROPE_FACTORS}
    problems += fault_line("not part of this model", [shown(k) for k in header.tensors if k not in known])

    loaded: list[tuple[tuple, nnx.Param]] = []
    misfits: list[str] = []
    for done, (name, (place, shape)) in enumerate(wanted.items(), start=1):
        info = header.tensors.get(names[name])
        if info is not None:
            wide = (shape[0], shape[2], shape[1]) if len(shape) == 3 else shape  # experts are [out, in] there
            kept, fault = _stored_dtype(info, wide, dtype)
            spot, unfit = sharding_for(name, shape, sharding)
            if kept is not None and not fault and not unfit and not problems and not misfits:
                tensor = empty_aligned(shape, kept)
                fault = _fill(tensor, info, _row_order(config, name))
                if not fault:
                    loaded.append((place, nnx.Param(jax.device_put(tensor, spot))))
            misfits += [f"{names[name]} {fault or unfit}"] if fault or unfit else []
        on_tensor(done, len(wanted))
    problems += first_faults(misfits)
    if problems:
        raise CheckpointError(f"{path}: cannot load this checkpoint\n  " + "\n  ".join(problems))
    return graph, nnx.from_flat_state(loaded)


def unpack_gguf(path: str | Path, target: Path) -> ModelConfig:
    """Writes config.json, the tokenizer's files and, where the file has it, how to sample, made from its metadata;
    returns the configuration.
    """
    header = read_header(path)
    config = gguf_config(header)
    (target / "config.json").write_text(json.dumps(config.to_hf(), indent=2) + "\n", encoding="utf-8")
    if recommended := gguf_recommendation(header.metadata):
        (target / GENERATION).write_text(json.dumps(recommended, indent=2) + "\n", encoding="utf-8")
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


def _stored_dtype(info: TensorInfo, shape: tuple[int, ...], dtype: DTypeLike | None) -> tuple[np.dtype | None, str]:
    """The dtype to give a tensor, or why it cannot be read."""
    squeezed = tuple(shape[1:]) if len(shape) == 3 and shape[0] == 1 else None  # of a single expert ggml drops the 1
    if info.shape not in (tuple(shape), squeezed):
        return None, f"has shape {list(info.shape)}, expected {list(shape)}"
    if fault := quantisation_fault(info.kind):
        return None, fault
    size = tensor_bytes(info)
    if size is None:
        return None, f"has rows of {info.shape[-1]}, which are no whole blocks of {_block(info.kind)[0]}"
    if info.offset + size > info.size:
        return None, f"is cut short: it ends at byte {info.offset + size}, the file at {info.size}"
    kept = PLAIN.get(info.kind, np.dtype(np.float32))
    kept = np.dtype(np.float32) if kept == np.float64 else kept  # which jax does not hold
    return kept if dtype is None else np.dtype(dtype), ""


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


def _rows(info: TensorInfo, start: int, stop: int) -> np.ndarray:
    """Rows of a tensor, [rows, length] float32. The file is mapped anew, so that its pages leave memory."""
    values, size = _block(info.kind)
    row_bytes = info.shape[-1] // values * size
    raw = np.memmap(info.path, np.uint8, "r", info.offset + start * row_bytes, (stop - start, row_bytes))
    if info.kind in PLAIN:
        return raw.view(PLAIN[info.kind]).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # broken scales show as values that are not finite
        return gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(info.kind))


def _fill(out: np.ndarray, info: TensorInfo, order: np.ndarray | None) -> str:
    """Dequantises a tensor into `out` slice by slice; says what is wrong with its values ("" if nothing).

    `order` is where each row goes. For experts, `out [experts, in, out]` is filled from [out, in] of each.
    """
    rows, length = math.prod(info.shape[:-1]), info.shape[-1]
    per_matrix = info.shape[-2] if len(info.shape) > 1 else 1
    step = max(1, SLICE_BYTES // (4 * length))
    bad = 0
    for first in range(0, rows, per_matrix):
        matrix = out[first // per_matrix].T if out.ndim == 3 else out.reshape(rows, length)
        for start in range(first, first + per_matrix, step):
            stop = min(start + step, first + per_matrix)
            with np.errstate(over="ignore"):  # an overflow shows as an infinity
                part = _rows(info, start, stop).astype(out.dtype)
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
    if info.kind != 0 or math.prod(info.shape) != half or info.offset + 4 * half > info.size:
        raise ConfigError(f"{ROPE_FACTORS} does not hold {half} numbers in float32")
    factors = np.memmap(info.path, np.float32, "r", info.offset, (half,))
    if not np.all(np.isfinite(factors) & (factors > 0)):
        raise ConfigError(f"{ROPE_FACTORS} holds numbers that are not positive")
    scaling = Llama3Scaling(float(factors.max()), 1.0, 4.0, 8192)
    plain = config.rope_theta ** -(np.arange(half, dtype=np.float32) / half)
    if not np.allclose(plain / factors, llama3_frequencies(jax.numpy.asarray(plain), scaling), rtol=1e-3):
        raise ConfigError(f"{ROPE_FACTORS} is not Llama 3's scaling of RoPE, the only one that is implemented")
    return scaling
