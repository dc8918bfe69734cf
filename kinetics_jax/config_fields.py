"""What a `config.json` may hold beside the sizes of a model: fields that must be neutral, fields that change nothing,
RoPE and sliding windows in all their spellings; and checks of types and ranges.

A field that is in no list here is named in a warning: it may belong to a computation that is not this one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kinetics_jax.errors import UserError, shown, spelled
from kinetics_jax.files import read_json


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MAX_NAMED = 8  # fields in one message
FULL, SLIDING = "full_attention", "sliding_attention"
LLAMA3_FIELDS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
ROPE_FIELDS = ("rope_parameters", "rope_scaling")  # transformers 5, and before

# What is read, by whom: all types, and mixtures of experts.
READ = frozenset(
    _names(
        """
            architectures dtype eos_token_id head_dim hidden_size intermediate_size layer_types max_position_embeddings
            max_window_layers model_type num_attention_heads num_hidden_layers num_key_value_heads rms_norm_eps
            rope_parameters rope_scaling rope_theta sliding_window tie_word_embeddings torch_dtype use_sliding_window
            vocab_size
            """
    )
)
READ_MOE = frozenset(
    _names(
        """
            decoder_sparse_step mlp_only_layers moe_intermediate_size norm_topk_prob num_experts num_experts_per_tok
            num_local_experts
            """
    )
)
# What changes nothing of the logits: training, generation, book-keeping.
HARMLESS = frozenset(
    _names(
        """
            _attn_implementation _attn_implementation_autoset _commit_hash _flash_attn_2_enabled _name_or_path
            attention_dropout attention_probs_dropout_prob attn_implementation attn_pdrop bad_words_ids
            begin_suppress_tokens bos_token_id chunk_size_feed_forward classifier_dropout decoder_start_token_id
            diversity_penalty do_sample early_stopping embd_pdrop encoder_no_repeat_ngram_size
            exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
            gradient_checkpointing gradient_checkpointing_kwargs hidden_dropout hidden_dropout_prob id2label
            initializer_range is_decoder is_llama_config
            keys_to_ignore_at_inference label2id length_penalty mask_token_id max_length
            max_sequence_length min_length model_max_length name_or_path neftune_noise_alpha no_repeat_ngram_size
            num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states output_router_logits
            output_scores pad_token_id prefix pretraining_tp problem_type remove_invalid_values repetition_penalty
            resid_pdrop return_dict return_dict_in_generate router_aux_loss_coef router_jitter_noise sep_token_id
            suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k
            top_p torchscript transformers.js_config transformers_version trust_remote_code typical_p unk_token_id
            unsloth_fixed unsloth_version use_bfloat16 use_cache use_flash_attn use_return_dict
            """
    )
)
OFF = (None, False)
ONE = (None, 1)
# Fields that change what a model computes, here or in a relative of it, and the values with which they do not.
NEUTRAL_FIELDS: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(
        _names(
            """
            add_cross_attention alibi attention_bias attention_out_bias attention_output_bias attention_sink
            attention_sinks attn_output_gate bidirectional dual_chunk_attention_config is_encoder_decoder
            layernorm_zero_centered lm_head_bias mlp_bias normalize_embedding normalize_embeddings o_proj_bias
            parallel_attn parallel_residual rms_norm_add_unit_offset rope_interleave rope_interleaved scale_embedding
            use_alibi use_attention_sinks use_bias use_bidirectional_attention use_gated_attention use_mrope
            use_parallel_residual zero_centered_gamma
            """
        ),
        OFF,
    ),
    **dict.fromkeys(
        _names(
            """
            attention_multiplier embedding_multiplier embedding_scale logit_scale logits_scaling partial_rotary_factor
            residual_multiplier rope_factor rope_ratio rotary_pct routed_scaling_factor scale_emb
            """
        ),
        ONE,
    ),
    **dict.fromkeys(
        _names(
            """
            attention_scale attention_scaling attention_window_size attn_logit_softcapping attn_scale audio_config
            clip_qkv compression_config cross_attention_hidden_size dim_model_base final_logit_softcapping
            first_k_dense_replace local_attention_window n_shared_experts no_rope_layer_interval no_rope_layers
            nope_layer_interval num_shared_experts pruned_heads quantization quantization_config query_pre_attn_scalar
            rotary_dim rotary_emb_base scale_depth shared_expert_intermediate_size sliding_window_pattern softmax_scale
            text_config vision_config
            """
        ),
        (None, False, 0, {}, []),
    ),
    **dict.fromkeys(("causal", "is_causal"), (None, True)),
    **dict.fromkeys(
        ("activation_function", "hidden_act", "hidden_activation", "mlp_hidden_act"), (None, "silu", "swish")
    ),
    "position_embedding_type": (None, "rope", "rotary"),
    "qk_layernorm": OFF,
    "qk_norm": OFF,
    "qkv_bias": OFF,
    "scoring_func": (None, "softmax"),
    "use_qk_norm": OFF,
}
# Of one type, where a field may say what is so.
NORMED: dict[str, tuple[Any, ...]] = dict.fromkeys(_names("qk_layernorm qk_norm use_qk_norm"), (None, True))
NEUTRAL_BY_KIND: dict[str, dict[str, tuple[Any, ...]]] = {
    "qwen3": NORMED,
    "qwen3_moe": NORMED,
    "qwen2": dict.fromkeys(_names("attention_bias qkv_bias"), (None, True, False)),  # false: as written by this package
    "llama": {},
}


class ConfigError(UserError):
    """A model configuration that cannot be used; the message names the field and the cure."""


def read_fields(source: str | Path | Mapping[str, Any]) -> tuple[Mapping[str, Any], str]:
    """The fields of a `config.json` (a path, its directory, or the parsed mapping), and where they stand, for messages.

    Raises ConfigError if there is no such file, or if it cannot be read.
    """
    if isinstance(source, Mapping):
        return source, "config"
    path = Path(source)
    path = path / "config.json" if path.is_dir() else path
    where = shown(str(path), 400)
    try:
        return read_json(path, error=ConfigError), where
    except FileNotFoundError as error:
        raise ConfigError(f"{where}: no such file; a checkpoint directory holds config.json") from error


def whole_number(value: Any, name: str, low: int, high: int, *, where: str = "config") -> int:
    """`value`, if it is a whole number from `low` to `high`. Raises ConfigError naming the field if not."""
    if type(value) is not int:
        raise ConfigError(f"{where}: {name} must be a whole number, got {spelled(value)}")
    if value < low:
        raise ConfigError(f"{where}: {name} must be at least {low}, got {spelled(value)}")
    if value > high:
        raise ConfigError(f"{where}: {name} must be at most {high:,}, got {spelled(value)}")
    return value


def positive_number(value: Any, name: str, high: float, *, where: str = "config") -> float:
    """`value`, if it is a number above 0 and at most `high`. Raises ConfigError naming the field if not."""
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ConfigError(f"{where}: {name} must be a positive number, got {spelled(value)}")
    if value > high:
        raise ConfigError(f"{where}: {name} must be at most {high:g}, got {spelled(value)}")
    return float(value)


def flag(value: Any, name: str, *, where: str = "config") -> bool:
    """`value`, if it is true or false. Raises ConfigError naming the field if not."""
    if type(value) is not bool:
        raise ConfigError(f"{where}: {name} must be true or false, got {spelled(value)}")
    return value


def check_fields(fields: Mapping[str, Any], kind: str, where: str) -> None:
    """Holds a config.json of type `kind` against the lists above. Raises ConfigError for what is not implemented.

    Warns, once, of fields that stand in no list and are not null, false or empty.
    """
    wrong = [
        f"{name} = {_brief(name, fields[name])}"
        for name, neutral in (NEUTRAL_FIELDS | NEUTRAL_BY_KIND[kind]).items()
        if name in fields and fields[name] not in neutral
    ]
    wrong += window_faults(fields, kind, where)
    if wrong:
        raise ConfigError(f"{where}: not implemented: {'; '.join(wrong)}")
    read = READ | (READ_MOE if kind == "qwen3_moe" else frozenset())
    unknown = [
        f"{shown(name)} = {spelled(value, 40)}"
        for name, value in fields.items()
        if name not in read | HARMLESS and name not in NEUTRAL_FIELDS and value not in (None, False, "", [], {})
    ]
    warn_of_unknown(where, f"fields that are not known for {kind}", unknown)


def warn_of_unknown(where: str, what: str, unknown: Sequence[str]) -> None:
    """Warns, once, of what stands beside a checkpoint's known fields; of nothing where there is none."""
    if unknown:
        more = f" and {len(unknown) - MAX_NAMED} more" if len(unknown) > MAX_NAMED else ""
        warnings.warn(
            f"{where}: {what} are ignored: {', '.join(unknown[:MAX_NAMED])}{more}; "
            f"if one of them changes what the model computes, this is another model",
            stacklevel=4,
        )


def _brief(name: str, value: Any) -> str:
    method = value.get("quant_method") if name == "quantization_config" and isinstance(value, Mapping) else None
    if method is not None:
        return f"{spelled(method)} (quantised weights; take the checkpoint in bfloat16, or a GGUF file)"
    return spelled(value)


def window_faults(fields: Mapping[str, Any], kind: str, where: str) -> list[str]:
    """Why attention would slide, or be of another kind, in some layer ([] where every layer sees all positions).

    A window that no token leaves, and one that no layer uses, are fine. Raises ConfigError for wrong types.
    """
    types = fields.get("layer_types")
    layers = fields.get("num_hidden_layers")
    if types is not None and not isinstance(types, list):
        raise ConfigError(f"{where}: layer_types must be a list, got {spelled(types)}")
    odd = sorted({spelled(each) for each in types or () if each not in (FULL, SLIDING)})
    if odd:
        return [f"layer_types holds {', '.join(odd[:MAX_NAMED])}"]
    if types and type(layers) is int and len(types) != layers:
        raise ConfigError(f"{where}: layer_types names {len(types)} layers, num_hidden_layers {spelled(layers)}")
    use = fields.get("use_sliding_window")
    use = flag(use, "use_sliding_window", where=where) if use is not None else False
    if not use:
        return (
            [f"layer_types holds '{SLIDING}' (and use_sliding_window is not true)"] if SLIDING in (types or ()) else []
        )
    window, first, positions = map(fields.get, ("sliding_window", "max_window_layers", "max_position_embeddings"))
    if window is None and "sliding_window" in fields:
        return []
    window = 0 if window is None else whole_number(window, "sliding_window", 0, 2**40, where=where)
    first = 0 if first is None else whole_number(first, "max_window_layers", 0, 2**31, where=where)
    if type(positions) is int and window >= positions:
        return []
    if kind in ("qwen2", "qwen3"):  # in a qwen3_moe every layer slides
        if types and SLIDING not in types:
            return []
        if not types and type(layers) is int and first >= layers:
            return []
    return [f"use_sliding_window = True (a window of {window or 'unknown size'} within {spelled(positions)} positions)"]


def rope(fields: Mapping[str, Any], where: str) -> tuple[float | None, dict[str, Any] | None]:
    """RoPE's base and Llama 3's scaling (None: neither is given), of `rope_theta` and both spellings of the rest.

    Raises ConfigError for another scaling, for what cannot be read, and where two of the places disagree.
    """
    thetas: dict[str, Any] = {}
    if fields.get("rope_theta") is not None:
        thetas["rope_theta"] = fields["rope_theta"]
    scalings: dict[str, dict[str, Any]] = {}
    for spelling in ROPE_FIELDS:
        given = fields.get(spelling)
        if given is None or given == {}:
            continue
        if not isinstance(given, Mapping):
            raise ConfigError(f"{where}: {spelling} must be an object, got {spelled(given)}")
        if given.get("rope_theta") is not None:
            thetas[f"{spelling}.rope_theta"] = given["rope_theta"]
        kinds = {name: given[name] for name in ("rope_type", "type") if given.get(name) is not None}
        if len({spelled(each) for each in kinds.values()}) > 1:
            raise ConfigError(
                f"{where}: {spelling} says both {' and '.join(f'{k} = {spelled(v)}' for k, v in kinds.items())}"
            )
        if kinds or set(given) - {"rope_theta"}:
            scalings[spelling] = _scaling(given, next(iter(kinds.values()), "default"), spelling, where)
    for name, theta in thetas.items():
        positive_number(theta, name, 1e30, where=where)
    if len({float(theta) for theta in thetas.values()}) > 1:
        said = ", ".join(f"{name} = {spelled(theta)}" for name, theta in thetas.items())
        raise ConfigError(f"{where}: contradicts itself: {said}; keep the right one")
    if len(scalings) == 2 and scalings[ROPE_FIELDS[0]] != scalings[ROPE_FIELDS[1]]:
        raise ConfigError(f"{where}: rope_parameters and rope_scaling contradict each other; keep the right one")
    scaling = next(iter(scalings.values()), None)
    return (float(next(iter(thetas.values()))) if thetas else None), scaling or None


def _scaling(given: Mapping[str, Any], kind: Any, spelling: str, where: str) -> dict[str, Any]:
    """The fields of Llama 3's scaling; empty where nothing is scaled."""
    known = {"rope_type", "type", "rope_theta"} | (set(LLAMA3_FIELDS) if kind == "llama3" else set())
    if kind == "linear" and given.get("factor") == 1:
        kind, known = "default", known | {"factor"}
    if kind not in ("default", "llama3"):
        raise ConfigError(f"{where}: not implemented: {spelling}.rope_type = {spelled(kind)}")
    wrong = [
        f"{spelling}.{shown(name)} = {spelled(value)}"
        for name, value in given.items()
        if name not in known and not (name == "partial_rotary_factor" and value in ONE)
    ]
    if wrong:
        raise ConfigError(f"{where}: not implemented: {'; '.join(wrong[:MAX_NAMED])}")
    if kind == "default":
        return {}
    if missing := [name for name in LLAMA3_FIELDS if given.get(name) is None]:
        raise ConfigError(f"{where}: missing {', '.join(f'{spelling}.{name}' for name in missing)}")
    return {name: given[name] for name in LLAMA3_FIELDS}
