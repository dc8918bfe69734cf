"""Model configurations: read from Hugging Face's `config.json`, or by published name."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinetics_jax.errors import UserError

# Fields of config.json that change what a model computes and that we do not implement. Each must hold one of these
# values (or be absent); any other value is refused, because ignoring it would silently give wrong logits.
NEUTRAL_FIELDS: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "attn_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "dual_chunk_attention_config": (None,),
    "embedding_multiplier": (None, 1, 1.0),
    "final_logit_softcapping": (None,),
    "hidden_act": ("silu", "swish"),
    "logit_scale": (None, 1, 1.0),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (None, 1, 1.0),
    "quantization_config": (None,),
    "query_pre_attn_scalar": (None,),
    "residual_multiplier": (None, 1, 1.0),
    "use_sliding_window": (False, None),
}
REQUIRED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
MOE_FIELDS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DTYPES = tuple(DTYPE_BYTES)  # what weights and cache are stored in
# model_type → what sets it apart, and what an absent field of its config.json means.
KINDS: dict[str, dict[str, Any]] = {
    "qwen3": {"qk_norm": True, "qkv_bias": False},
    "qwen3_moe": {"qk_norm": True, "qkv_bias": False},
    "qwen2": {"qk_norm": False, "qkv_bias": True},
    "llama": {"qk_norm": False, "qkv_bias": False},
}
FIELD_DEFAULTS: dict[str, dict[str, Any]] = {
    "qwen3": {"head_dim": 128, "max_position_embeddings": 40_960},
    "qwen3_moe": {"head_dim": 128, "max_position_embeddings": 40_960},
    "qwen2": {"rope_theta": 10_000.0, "max_position_embeddings": 32_768},
    "llama": {"rope_theta": 10_000.0, "max_position_embeddings": 2048},
}
ARCHITECTURES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
}


class ConfigError(UserError):
    """A model configuration that cannot be used; the message names the field and the cure."""


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """RoPE scaled as Llama 3.1 does: `rope_type` llama3 of config.json, whose names these are.

    Angles that turn fewer than `low_freq_factor` times in `original_max_position_embeddings` positions are divided by
    `factor`, those that turn more than `high_freq_factor` times are kept, and those between are interpolated
    (transformers' `_compute_llama3_parameters`).
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int

    def __post_init__(self) -> None:
        for field, value in dataclasses.asdict(self).items():
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ConfigError(f"config: rope_scaling.{field} must be a positive number, got {value!r}")
        if self.low_freq_factor >= self.high_freq_factor:
            raise ConfigError(
                f"config: rope_scaling.low_freq_factor ({self.low_freq_factor}) must be below "
                f"high_freq_factor ({self.high_freq_factor})"
            )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a decoder. Sizes are counts; `rope_theta` is the RoPE base; `dtype` is the checkpoint's own.

    Qwen3 norms each head's q and k (`qk_norm`); Qwen2 does not, and adds a bias to q, k and v (`qkv_bias`); Llama types
    have neither.

    `num_experts = 0` is a dense feed-forward of `intermediate_size`. Otherwise `experts_per_token` experts of
    `moe_intermediate_size` are used per token in `moe_layers`: every `decoder_sparse_step`-th layer but those in
    `mlp_only_layers`, which are dense; `norm_topk_prob` makes the weights of the experts chosen sum to 1.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int = 128
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 40_960
    eos_token_ids: tuple[int, ...] = ()
    dtype: str = "bfloat16"
    num_experts: int = 0
    experts_per_token: int = 0
    moe_intermediate_size: int = 0
    norm_topk_prob: bool = True
    decoder_sparse_step: int = 1
    mlp_only_layers: tuple[int, ...] = ()
    qk_norm: bool = True
    qkv_bias: bool = False
    rope_scaling: Llama3Scaling | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.rope_scaling, Mapping):  # as JSON keeps it
            object.__setattr__(self, "rope_scaling", Llama3Scaling(**self.rope_scaling))
        object.__setattr__(self, "mlp_only_layers", tuple(self.mlp_only_layers))
        for field in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads", "num_kv_heads"):
            if getattr(self, field) < 1:
                raise ConfigError(f"config: {field} must be at least 1, got {getattr(self, field)}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"config: num_attention_heads ({self.num_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_kv_heads})"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ConfigError(f"config: head_dim must be even (RoPE rotates pairs), got {self.head_dim}")
        if self.max_position_embeddings < 2:
            raise ConfigError(f"config: max_position_embeddings must be at least 2, got {self.max_position_embeddings}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"config: dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if not self.num_experts:
            return
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise ConfigError(
                f"config: num_experts_per_tok must be 1 to num_experts ({self.num_experts}), "
                f"got {self.experts_per_token}"
            )
        for field in ("moe_intermediate_size", "decoder_sparse_step"):
            if getattr(self, field) < 1:
                raise ConfigError(f"config: {field} must be at least 1, got {getattr(self, field)}")

    @property
    def model_type(self) -> str:
        """What config.json calls this kind of model."""
        if self.num_experts:
            return "qwen3_moe"
        return "qwen3" if self.qk_norm else "qwen2" if self.qkv_bias else "llama"

    @property
    def moe_layers(self) -> tuple[int, ...]:
        """The layers whose feed-forward is a mixture of experts."""
        if not self.num_experts:
            return ()
        return tuple(
            layer
            for layer in range(self.num_layers)
            if (layer + 1) % self.decoder_sparse_step == 0 and layer not in self.mlp_only_layers
        )

    @property
    def group(self) -> int:
        """Query heads per KV head: r in the paper."""
        return self.num_heads // self.num_kv_heads

    @property
    def kv_elements_per_token(self) -> int:
        """K and V elements of one token over all layers: D in the paper."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def matmul_parameters(self) -> int:
        """Parameters one token is multiplied with, lm_head included; norms, biases and embedding look-up excluded."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        dense = 3 * self.hidden_size * self.intermediate_size
        experts = self.experts_per_token * 3 * self.hidden_size * self.moe_intermediate_size
        router = self.hidden_size * self.num_experts
        sparse = len(self.moe_layers)
        feed_forward = (self.num_layers - sparse) * dense + sparse * (experts + router)
        return self.num_layers * attention + feed_forward + self.vocab_size * self.hidden_size

    @property
    def active_parameters(self) -> int:
        """All parameters used per token, the embedding table included; tied embeddings counted once."""
        per_layer = 2 * self.hidden_size + (2 * self.head_dim if self.qk_norm else 0)
        per_layer += self.head_dim * (self.num_heads + 2 * self.num_kv_heads) if self.qkv_bias else 0
        embedding = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        return self.matmul_parameters + self.num_layers * per_layer + self.hidden_size + embedding

    @classmethod
    def from_hf(cls, source: str | Path | Mapping[str, Any], *, name: str = "") -> ModelConfig:
        """Reads a Hugging Face `config.json` (a path, its directory, or the parsed mapping).

        Both spellings are read of the fields that transformers renamed: `rope_theta` and
        `rope_parameters.rope_theta`, `torch_dtype` and `dtype`. Raises ConfigError naming the field when one is
        missing, or holds a value this model does not implement.
        """
        where = "config"
        if not isinstance(source, Mapping):
            path = Path(source)
            path = path / "config.json" if path.is_dir() else path
            where = str(path)
            try:
                source = json.loads(path.read_text(encoding="utf-8"))
            except FileNotFoundError as error:
                raise ConfigError(f"{where}: no such file; a checkpoint directory holds config.json") from error
            except ValueError as error:
                raise ConfigError(f"{where}: not valid JSON ({error})") from error
            if not isinstance(source, Mapping):
                raise ConfigError(f"{where}: holds {type(source).__name__}, expected a JSON object")
        _check_supported(source, where)
        kind = str(source["model_type"])
        is_moe = kind == "qwen3_moe"
        fields = FIELD_DEFAULTS[kind] | {name: value for name, value in source.items() if value is not None}
        if kind in ("qwen2", "llama"):
            fields.setdefault("num_key_value_heads", fields.get("num_attention_heads"))
        if "num_local_experts" in fields:  # as newer transformers call it
            fields.setdefault("num_experts", fields["num_local_experts"])
        fields |= {"rope_theta": theta} if (theta := (fields.get("rope_parameters") or {}).get("rope_theta")) else {}
        required = (*REQUIRED_FIELDS, "rope_theta", *(MOE_FIELDS if is_moe else ()))
        if missing := [name for name in required if fields.get(name) is None]:
            raise ConfigError(f"{where}: missing {', '.join(missing)}")

        def whole(name: str, default: int | None = None) -> int:
            value = fields.get(name, default)
            if type(value) is not int:
                raise ConfigError(f"{where}: {name} must be a whole number, got {value!r}")
            return value

        def positive(name: str, default: float | None = None) -> float:
            value = fields.get(name, default)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ConfigError(f"{where}: {name} must be a positive number, got {value!r}")
            return float(value)

        def flag(name: str) -> bool:
            value = fields.get(name, False)
            if type(value) is not bool:
                raise ConfigError(f"{where}: {name} must be true or false, got {value!r}")
            return value

        only = fields.get("mlp_only_layers", [])
        if not isinstance(only, list) or any(type(layer) is not int for layer in only):
            raise ConfigError(f"{where}: mlp_only_layers must be a list of layers, got {only!r}")
        return cls(
            vocab_size=whole("vocab_size"),
            hidden_size=whole("hidden_size"),
            intermediate_size=whole("intermediate_size"),
            num_layers=whole("num_hidden_layers"),
            num_heads=whole("num_attention_heads"),
            num_kv_heads=whole("num_key_value_heads"),
            head_dim=whole("head_dim", whole("hidden_size") // max(1, whole("num_attention_heads"))),
            rope_theta=positive("rope_theta"),
            rms_norm_eps=positive("rms_norm_eps", 1e-6),
            tie_word_embeddings=flag("tie_word_embeddings"),
            max_position_embeddings=whole("max_position_embeddings"),
            eos_token_ids=end_tokens(fields.get("eos_token_id"), where),
            dtype=str(fields.get("dtype") or fields.get("torch_dtype") or "float32").removeprefix("torch."),
            num_experts=whole("num_experts") if is_moe else 0,
            experts_per_token=whole("num_experts_per_tok") if is_moe else 0,
            moe_intermediate_size=whole("moe_intermediate_size") if is_moe else 0,
            norm_topk_prob=flag("norm_topk_prob") if is_moe else True,
            decoder_sparse_step=whole("decoder_sparse_step", 1) if is_moe else 1,
            mlp_only_layers=tuple(only) if is_moe else (),
            rope_scaling=_rope_scaling(fields, where),
            name=name,
            **KINDS[kind],
        )

    def to_hf(self) -> dict[str, Any]:
        """The fields of a Hugging Face `config.json`, for `from_hf` and transformers to read; without `name`."""
        eos = list(self.eos_token_ids)
        fields = {
            "architectures": [ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tie_word_embeddings,
            "eos_token_id": eos if len(eos) > 1 else eos[0] if eos else None,
            "torch_dtype": self.dtype,
        }
        if self.rope_scaling:
            fields["rope_scaling"] = {"rope_type": "llama3", **dataclasses.asdict(self.rope_scaling)}
        if self.num_experts:
            fields |= {
                "num_experts": self.num_experts,
                "num_experts_per_tok": self.experts_per_token,
                "moe_intermediate_size": self.moe_intermediate_size,
                "norm_topk_prob": self.norm_topk_prob,
                "decoder_sparse_step": self.decoder_sparse_step,
                "mlp_only_layers": list(self.mlp_only_layers),
            }
        return fields

    @classmethod
    def named(cls, name: str) -> ModelConfig:
        """A published size by its hub id (`Qwen/Qwen3-8B`, `deepseek-ai/DeepSeek-R1-Distill-Qwen-7B`) or short name
        (`Qwen3-8B`, `8B`, `Qwen2.5-7B-Instruct`, `DeepSeek-R1-Distill-Qwen-7B`). Raises ConfigError for any other.
        """
        known = {f"Qwen/Qwen3-{size}": config for size, config in PUBLISHED.items()} | PUBLISHED_OTHERS
        ids = {alias: full for full in known for alias in (full, full.partition("/")[2])}
        ids |= {size: f"Qwen/Qwen3-{size}" for size in PUBLISHED}
        if name not in ids:
            near = difflib.get_close_matches(name, ids, n=1)
            hint = f"; did you mean {ids[near[0]]}?" if near else ""
            raise ConfigError(f"no published model named {name!r}{hint} (known: {', '.join(known)})")
        return dataclasses.replace(known[ids[name]], name=ids[name])


def end_tokens(value: Any, where: str) -> tuple[int, ...]:
    """`eos_token_id` of a JSON file: nothing, one id, or a list of them. Raises ConfigError for anything else."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(token) is not int or not 0 <= token < 2**31 for token in ids):
        raise ConfigError(f"{where}: eos_token_id must be token ids, got {value!r}")
    return tuple(ids)


def _check_supported(fields: Mapping[str, Any], where: str) -> None:
    model_type = fields.get("model_type")
    if model_type not in KINDS:
        raise ConfigError(f"{where}: model_type {model_type!r} is not supported (supported: {', '.join(KINDS)})")
    wrong = [
        f"{field} = {fields[field]!r}"
        for field, neutral in NEUTRAL_FIELDS.items()
        if field in fields and fields[field] not in neutral
    ]
    layer_types = fields.get("layer_types") or []
    if not isinstance(layer_types, list):
        raise ConfigError(f"{where}: layer_types must be a list")
    for spelling in ("rope_parameters", "rope_scaling"):
        rope = fields.get(spelling) or {}
        if not isinstance(rope, Mapping):
            raise ConfigError(f"{where}: {spelling} must be an object")
        kind = _rope_type(rope)
        if kind not in ("default", "llama3"):
            wrong.append(f"{spelling}.rope_type = {kind!r}")
            continue
        known = {"rope_type", "type", "rope_theta"}
        known |= {field.name for field in dataclasses.fields(Llama3Scaling)} if kind == "llama3" else set()
        wrong += [
            f"{spelling}.{field} = {value!r}"
            for field, value in rope.items()
            if field not in known and not (field == "partial_rotary_factor" and value in NEUTRAL_FIELDS[field])
        ]
    odd_layers = sorted({repr(kind) for kind in layer_types if kind != "full_attention"})
    wrong += [f"layer_types holds {', '.join(odd_layers)}"] if odd_layers else []
    if wrong:
        raise ConfigError(f"{where}: not implemented: {'; '.join(wrong)}")


def _rope_type(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))


def _rope_scaling(fields: Mapping[str, Any], where: str) -> Llama3Scaling | None:
    """The scaling of `rope_parameters` (transformers 5) or `rope_scaling` (before), which have been checked."""
    for spelling in ("rope_parameters", "rope_scaling"):
        rope = fields.get(spelling) or {}
        if _rope_type(rope) == "llama3":
            names = [field.name for field in dataclasses.fields(Llama3Scaling)]
            if missing := [name for name in names if rope.get(name) is None]:
                raise ConfigError(f"{where}: missing {', '.join(f'{spelling}.{name}' for name in missing)}")
            return Llama3Scaling(**{name: rope[name] for name in names})
    return None


def _qwen3(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    *,
    tied: bool = False,
    num_experts: int = 0,
    experts_per_token: int = 0,
    moe_intermediate_size: int = 0,
) -> ModelConfig:
    return ModelConfig(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        tie_word_embeddings=tied,
        eos_token_ids=(151_645, 151_643),
        num_experts=num_experts,
        experts_per_token=experts_per_token,
        moe_intermediate_size=moe_intermediate_size,
    )


# The published Qwen3 family (config.json of Qwen/Qwen3-*); its generation_config.json names both end tokens.
PUBLISHED: dict[str, ModelConfig] = {
    "0.6B": _qwen3(28, 1024, 16, 8, 3072, tied=True),
    "1.7B": _qwen3(28, 2048, 16, 8, 6144, tied=True),
    "4B": _qwen3(36, 2560, 32, 8, 9728, tied=True),
    "8B": _qwen3(36, 4096, 32, 8, 12_288),
    "14B": _qwen3(40, 5120, 40, 8, 17_408),
    "32B": _qwen3(64, 5120, 64, 8, 25_600),
    "30B-A3B": _qwen3(48, 2048, 32, 4, 6144, num_experts=128, experts_per_token=8, moe_intermediate_size=768),
    "235B-A22B": _qwen3(94, 4096, 64, 4, 12_288, num_experts=128, experts_per_token=8, moe_intermediate_size=1536),
}


def _qwen2(
    layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, *, vocab: int = 152_064, **changes: Any
) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        qk_norm=False,
        qkv_bias=True,
        **changes,
    )


_INSTRUCT: dict[str, Any] = {"max_position_embeddings": 32_768, "eos_token_ids": (151_645, 151_643)}
_SMALL: dict[str, Any] = {"vocab": 151_936, "tie_word_embeddings": True}
_DISTILLED: dict[str, Any] = {"max_position_embeddings": 131_072, "eos_token_ids": (151_643,)}

# Published models of other families by hub id (their config.json; end tokens as in generation_config.json too).
PUBLISHED_OTHERS: dict[str, ModelConfig] = {
    "Qwen/Qwen2.5-0.5B-Instruct": _qwen2(24, 896, 14, 2, 4864, **_SMALL, **_INSTRUCT),
    "Qwen/Qwen2.5-1.5B-Instruct": _qwen2(28, 1536, 12, 2, 8960, **_SMALL, **_INSTRUCT),
    "Qwen/Qwen2.5-3B-Instruct": _qwen2(36, 2048, 16, 2, 11_008, **_SMALL, **_INSTRUCT),
    "Qwen/Qwen2.5-7B-Instruct": _qwen2(28, 3584, 28, 4, 18_944, **_INSTRUCT),
    "Qwen/Qwen2.5-14B-Instruct": _qwen2(48, 5120, 40, 8, 13_824, **_INSTRUCT),
    "Qwen/Qwen2.5-32B-Instruct": _qwen2(64, 5120, 40, 8, 27_648, **_INSTRUCT),
    "Qwen/Qwen2.5-72B-Instruct": _qwen2(80, 8192, 64, 8, 29_568, **_INSTRUCT),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": _qwen2(
        28, 1536, 12, 2, 8960, vocab=151_936, rope_theta=10_000.0, **_DISTILLED
    ),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": _qwen2(28, 3584, 28, 4, 18_944, rope_theta=10_000.0, **_DISTILLED),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": _qwen2(48, 5120, 40, 8, 13_824, rms_norm_eps=1e-5, **_DISTILLED),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B": _qwen2(64, 5120, 40, 8, 27_648, rms_norm_eps=1e-5, **_DISTILLED),
}
