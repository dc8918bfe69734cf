"""Model configurations: read from Hugging Face's `config.json`, or by published name. Imports no jax."""

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
# values (or be absent); any other value is refused, because ignoring it would give wrong logits without a word.
NEUTRAL_FIELDS: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False, None),
    "attn_logit_softcapping": (None,),
    "clip_qkv": (None,),
    "embedding_multiplier": (None, 1, 1.0),
    "final_logit_softcapping": (None,),
    "hidden_act": ("silu", "swish"),
    "logit_scale": (None, 1, 1.0),
    "mlp_bias": (False, None),
    "partial_rotary_factor": (None, 1, 1.0),
    "quantization_config": (None,),
    "query_pre_attn_scalar": (None,),
    "residual_multiplier": (None, 1, 1.0),
    "rope_scaling": (None,),
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
DTYPES = ("float32", "bfloat16", "float16")


class ConfigError(UserError):
    """A model configuration that cannot be used; the message names the field and the cure."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Shape of a Qwen3 decoder. Sizes are counts; `rope_theta` is the RoPE base; `dtype` is the checkpoint's own.

    `num_experts = 0` is a dense feed-forward; otherwise `experts_per_token` experts of `moe_intermediate_size` are
    used per token (costs only: the model itself is dense).
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
    name: str = ""

    def __post_init__(self) -> None:
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
        """Parameters one token is multiplied with, lm_head included, norms and the embedding look-up not."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        if self.num_experts:
            expert = 3 * self.hidden_size * self.moe_intermediate_size
            feed_forward = self.experts_per_token * expert + self.hidden_size * self.num_experts
        else:
            feed_forward = 3 * self.hidden_size * self.intermediate_size
        return self.num_layers * (attention + feed_forward) + self.vocab_size * self.hidden_size

    @property
    def active_parameters(self) -> int:
        """All parameters used per token, the embedding table included; tied embeddings counted once."""
        norms = self.num_layers * 2 * (self.hidden_size + self.head_dim) + self.hidden_size
        embedding = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        return self.matmul_parameters + norms + embedding

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
        fields = dict(source)
        _check_supported(fields, where)
        is_moe = fields["model_type"] == "qwen3_moe"
        theta = (fields.get("rope_parameters") or {}).get("rope_theta", fields.get("rope_theta"))
        required = {**{name: fields.get(name) for name in REQUIRED_FIELDS}, "rope_theta": theta}
        required |= {name: fields.get(name) for name in MOE_FIELDS} if is_moe else {}
        if missing := [name for name, value in required.items() if value is None]:
            raise ConfigError(f"{where}: missing {', '.join(missing)}")

        def whole(name: str, default: int | None = None) -> int:
            value = default if fields.get(name) is None else fields[name]
            if type(value) is not int:
                raise ConfigError(f"{where}: {name} must be a whole number, got {value!r}")
            return value

        def positive(name: str, value: Any) -> float:
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ConfigError(f"{where}: {name} must be a positive number, got {value!r}")
            return float(value)

        tied = fields.get("tie_word_embeddings", False)
        if type(tied) is not bool:
            raise ConfigError(f"{where}: tie_word_embeddings must be true or false, got {tied!r}")
        return cls(
            vocab_size=whole("vocab_size"),
            hidden_size=whole("hidden_size"),
            intermediate_size=whole("intermediate_size"),
            num_layers=whole("num_hidden_layers"),
            num_heads=whole("num_attention_heads"),
            num_kv_heads=whole("num_key_value_heads"),
            head_dim=whole("head_dim", 128),
            rope_theta=positive("rope_theta", theta),
            rms_norm_eps=positive("rms_norm_eps", fields.get("rms_norm_eps", 1e-6)),
            tie_word_embeddings=tied,
            max_position_embeddings=whole("max_position_embeddings", 40_960),
            eos_token_ids=end_tokens(fields.get("eos_token_id"), where),
            dtype=str(fields.get("dtype") or fields.get("torch_dtype") or "float32").removeprefix("torch."),
            num_experts=whole("num_experts") if is_moe else 0,
            experts_per_token=whole("num_experts_per_tok") if is_moe else 0,
            moe_intermediate_size=whole("moe_intermediate_size") if is_moe else 0,
            name=name,
        )

    def to_hf(self) -> dict[str, Any]:
        """The fields of a Hugging Face `config.json`, for `from_hf` and transformers to read; it has no name."""
        eos = list(self.eos_token_ids)
        fields = {
            "architectures": ["Qwen3MoeForCausalLM" if self.num_experts else "Qwen3ForCausalLM"],
            "model_type": "qwen3_moe" if self.num_experts else "qwen3",
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
        if self.num_experts:
            fields |= {
                "num_experts": self.num_experts,
                "num_experts_per_tok": self.experts_per_token,
                "moe_intermediate_size": self.moe_intermediate_size,
                "norm_topk_prob": True,
            }
        return fields

    @classmethod
    def named(cls, name: str) -> ModelConfig:
        """A published Qwen3 size by its hub id (`Qwen/Qwen3-8B`) or short name (`Qwen3-8B`, `8B`)."""
        short = name.removeprefix("Qwen/").removeprefix("Qwen3-")
        if short not in PUBLISHED:
            near = difflib.get_close_matches(short, PUBLISHED, n=1)
            hint = f"; did you mean Qwen/Qwen3-{near[0]}?" if near else ""
            raise ConfigError(f"no published model named {name!r}{hint} (known: {', '.join(PUBLISHED)})")
        return dataclasses.replace(PUBLISHED[short], name=f"Qwen/Qwen3-{short}")


def end_tokens(value: Any, where: str) -> tuple[int, ...]:
    """`eos_token_id` of a JSON file: nothing, one id, or a list of them. Raises ConfigError for anything else."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(token) is not int or not 0 <= token < 2**31 for token in ids):
        raise ConfigError(f"{where}: eos_token_id must be token ids, got {value!r}")
    return tuple(ids)


def _check_supported(fields: Mapping[str, Any], where: str) -> None:
    model_type = fields.get("model_type")
    if model_type not in ("qwen3", "qwen3_moe"):
        raise ConfigError(f"{where}: model_type {model_type!r} is not supported (supported: qwen3)")
    wrong = [
        f"{field} = {fields[field]!r}"
        for field, neutral in NEUTRAL_FIELDS.items()
        if field in fields and fields[field] not in neutral
    ]
    rope = fields.get("rope_parameters") or {}
    layer_types = fields.get("layer_types") or []
    if not isinstance(rope, Mapping) or not isinstance(layer_types, list):
        raise ConfigError(f"{where}: rope_parameters must be an object and layer_types a list")
    wrong += [
        f"rope_parameters.{field} = {value!r}"
        for field, value in rope.items()
        if not (field == "rope_theta" or (field == "rope_type" and value == "default"))
        and not (field == "partial_rotary_factor" and value in NEUTRAL_FIELDS[field])
    ]
    odd_layers = sorted({repr(kind) for kind in layer_types if kind != "full_attention"})
    wrong += [f"layer_types holds {', '.join(odd_layers)}"] if odd_layers else []
    if wrong:
        raise ConfigError(f"{where}: not implemented: {'; '.join(wrong)}")


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
