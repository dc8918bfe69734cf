"""Model configurations: read from Hugging Face's `config.json`, or by published name."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kinetics_jax.config_fields import ConfigError as ConfigError
from kinetics_jax.config_fields import check_fields, flag, positive_number, read_fields, rope, whole_number
from kinetics_jax.errors import shown, spelled

REQUIRED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
)
MOE_FIELDS = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
MOE_ONLY = (*MOE_FIELDS, "decoder_sparse_step")
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
    "qwen3_moe": {
        "max_position_embeddings": 40_960
    },  # head_dim: hidden_size / num_attention_heads, as in the two below
    "qwen2": {"rope_theta": 10_000.0, "max_position_embeddings": 32_768},
    "llama": {"rope_theta": 10_000.0, "max_position_embeddings": 2048},
}
ARCHITECTURES = {
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "llama": "LlamaForCausalLM",
}


# Of every size, its name in config.json, the least it can be and the most: beyond any model, and within int32.
SIZES: dict[str, tuple[str, int, int]] = {
    "vocab_size": ("vocab_size", 1, 2**27),
    "hidden_size": ("hidden_size", 1, 2**20),
    "intermediate_size": ("intermediate_size", 1, 2**24),
    "num_layers": ("num_hidden_layers", 1, 2**16),
    "num_heads": ("num_attention_heads", 1, 2**16),
    "num_kv_heads": ("num_key_value_heads", 1, 2**16),
    "head_dim": ("head_dim", 0, 2**16),
    "max_position_embeddings": ("max_position_embeddings", 2, 2**31 - 1),
    "num_experts": ("num_experts", 0, 2**16),
    "experts_per_token": ("num_experts_per_tok", 0, 2**16),
    "moe_intermediate_size": ("moe_intermediate_size", 0, 2**24),
    "decoder_sparse_step": ("decoder_sparse_step", 0, 2**16),
}
MAX_END_TOKENS = 1000
FLAGS = ("tie_word_embeddings", "norm_topk_prob", "qk_norm", "qkv_bias")
MAX_THETA, MAX_EPS, MAX_FACTOR = 1e30, 1.0, 1e9


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
            positive_number(value, f"rope_scaling.{field}", MAX_FACTOR)
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
        for field, (name, low, high) in SIZES.items():
            whole_number(getattr(self, field), name, low, high)
        for field in FLAGS:
            flag(getattr(self, field), field)
        positive_number(self.rope_theta, "rope_theta", MAX_THETA)
        positive_number(self.rms_norm_eps, "rms_norm_eps", MAX_EPS)
        object.__setattr__(self, "mlp_only_layers", _layers(self.mlp_only_layers))
        object.__setattr__(self, "eos_token_ids", end_tokens(list(self.eos_token_ids), "config"))
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"config: num_attention_heads ({self.num_heads}) must be a multiple of "
                f"num_key_value_heads ({self.num_kv_heads})"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ConfigError(f"config: head_dim must be even (RoPE rotates pairs), got {self.head_dim}")
        if self.dtype not in DTYPES:
            raise ConfigError(f"config: dtype {spelled(self.dtype)} is not one of {', '.join(DTYPES)}")
        if not self.num_experts:
            return
        if not 1 <= self.experts_per_token <= self.num_experts:
            raise ConfigError(
                f"config: num_experts_per_tok must be 1 to num_experts ({self.num_experts}), "
                f"got {self.experts_per_token}"
            )
        for field in ("moe_intermediate_size", "decoder_sparse_step"):
            whole_number(getattr(self, field), field, 1, SIZES[field][2])

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
        source, where = read_fields(source)
        kind = source.get("model_type")
        if not isinstance(kind, str) or kind not in KINDS:
            raise ConfigError(f"{where}: model_type {spelled(kind)} is not supported (supported: {', '.join(KINDS)})")
        is_moe = kind == "qwen3_moe"
        fields = FIELD_DEFAULTS[kind] | {name: value for name, value in source.items() if value is not None}
        theta, scaling = rope({**source, "rope_theta": source.get("rope_theta")}, where)
        fields["rope_theta"] = theta or FIELD_DEFAULTS[kind].get("rope_theta")
        if kind in ("qwen2", "llama"):
            fields.setdefault("num_key_value_heads", fields.get("num_attention_heads"))
        if is_moe and "num_local_experts" in fields:  # as newer transformers call it
            _agree(fields, "num_experts", "num_local_experts", where)
            fields["num_experts"] = fields["num_local_experts"]
        required = (*REQUIRED_FIELDS, "rope_theta", *(MOE_FIELDS if is_moe else ()))
        if missing := [name for name in required if fields.get(name) is None]:
            raise ConfigError(f"{where}: missing {', '.join(missing)}")
        _check_architecture(source, kind, where)
        check_fields(source, kind, where)
        if "head_dim" not in fields:
            hidden, heads = (whole_number(fields[n], n, 1, 2**20, where=where) for n in REQUIRED_FIELDS[1:5:3])
            fields["head_dim"] = hidden // heads
        values = {
            field: fields[name] for field, (name, _, _) in SIZES.items() if name in fields and name not in MOE_ONLY
        }
        if is_moe:
            values |= {
                **{field: fields[name] for field, (name, _, _) in SIZES.items() if name in MOE_ONLY and name in fields},
                "norm_topk_prob": fields.get("norm_topk_prob", False),
                "mlp_only_layers": fields.get("mlp_only_layers", []),
            }
        try:
            return cls(
                **values,
                rope_theta=float(fields["rope_theta"] or 0),
                rms_norm_eps=fields.get("rms_norm_eps", 1e-6),
                tie_word_embeddings=fields.get("tie_word_embeddings", False),
                eos_token_ids=end_tokens(fields.get("eos_token_id"), where),
                dtype=_stored_dtype(fields, where),
                rope_scaling=Llama3Scaling(**scaling) if scaling else None,
                name=name,
                **KINDS[kind],
            )
        except ConfigError as error:
            raise ConfigError(f"{where}: {str(error).partition(': ')[2]}") from error

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
        (`Qwen3-8B`, `8B`, `Qwen2.5-7B-Instruct`, `DeepSeek-R1-Distill-Qwen-7B`, `R1-Distill-Llama-8B`), in any case.
        Raises ConfigError for any other.
        """
        known = {f"Qwen/Qwen3-{size}": config for size, config in PUBLISHED.items()} | PUBLISHED_OTHERS
        ids = {alias.lower(): full for alias, full in published_names().items()}
        if name.lower() not in ids:
            near = difflib.get_close_matches(name.lower(), ids, n=1)
            hint = f"; did you mean {ids[near[0]]}?" if near else ""
            raise ConfigError(f"no published model named {name!r:.80}{hint} (known: {', '.join(known)})")
        full = ids[name.lower()]
        return dataclasses.replace(known[full], name=full)


def end_tokens(value: Any, where: str) -> tuple[int, ...]:
    """`eos_token_id` of a JSON file: nothing, one id, or a list of them. Raises ConfigError for anything else."""
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(type(token) is not int or not 0 <= token < 2**31 for token in ids) or len(ids) > MAX_END_TOKENS:
        raise ConfigError(f"{where}: eos_token_id must be token ids, got {spelled(value)}")
    return tuple(dict.fromkeys(ids))


def _layers(value: Any) -> tuple[int, ...]:
    """`mlp_only_layers`: numbers of layers. Raises ConfigError for anything else."""
    if not isinstance(value, list | tuple) or any(type(layer) is not int for layer in value):
        raise ConfigError(f"config: mlp_only_layers must be a list of layers, got {spelled(value)}")
    return tuple(value)


def _agree(fields: Mapping[str, Any], one: str, other: str, where: str) -> None:
    """Raises ConfigError where two spellings of a field hold different values."""
    if one in fields and other in fields and fields[one] != fields[other]:
        raise ConfigError(
            f"{where}: contradicts itself: {one} = {spelled(fields[one])}, {other} = {spelled(fields[other])}; "
            f"keep the right one"
        )


def _stored_dtype(fields: Mapping[str, Any], where: str) -> str:
    """The dtype that config.json says weights are stored in; float64, which jax does not hold, is read as float32."""
    spelled = {
        name: fields[name].removeprefix("torch.") if isinstance(fields[name], str) else fields[name]
        for name in ("dtype", "torch_dtype")
        if name in fields
    }
    _agree(spelled, "dtype", "torch_dtype", where)
    dtype = next(iter(spelled.values()), "float32")
    return "float32" if dtype == "float64" else dtype


def _check_architecture(fields: Mapping[str, Any], kind: str, where: str) -> None:
    """Raises ConfigError where `architectures` names only classes that are not the one of `model_type`."""
    named = fields.get("architectures")
    if named is None or named == []:
        return
    if not isinstance(named, list) or not all(isinstance(each, str) for each in named):
        raise ConfigError(f"{where}: architectures must be a list of names, got {spelled(named)}")
    if ARCHITECTURES[kind].lower() not in map(str.lower, named):
        raise ConfigError(
            f"{where}: contradicts itself: model_type is {kind}, whose architecture is {ARCHITECTURES[kind]}, and "
            f"architectures names {shown(', '.join(named))}"
        )


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


def _llama3(
    layers: int, hidden: int, heads: int, ffn: int, *, eos: tuple[int, ...] = (128_001, 128_008, 128_009)
) -> ModelConfig:
    return ModelConfig(
        vocab_size=128_256,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=8,
        rope_theta=500_000.0,
        rms_norm_eps=1e-5,
        max_position_embeddings=131_072,
        eos_token_ids=eos,
        qk_norm=False,
        rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192),
    )


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
    # Table 3 of The Llama 3 Herd of Models, arXiv 2407.21783.
    "meta-llama/Llama-3.1-8B-Instruct": _llama3(32, 4096, 32, 14_336),
    "meta-llama/Llama-3.1-70B-Instruct": _llama3(80, 8192, 64, 28_672),
    "meta-llama/Llama-3.1-405B-Instruct": _llama3(126, 16_384, 128, 53_248),
    "meta-llama/Llama-3.3-70B-Instruct": _llama3(80, 8192, 64, 28_672),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": _llama3(32, 4096, 32, 14_336, eos=(128_001,)),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": _llama3(80, 8192, 64, 28_672, eos=(128_001,)),
}


def published_names() -> dict[str, str]:
    """What every published model may be called, and its hub id: the id, the id without its organisation, `8B` for the
    sizes of Qwen3, and `R1-Distill-Qwen-7B` for the distilled models.
    """
    full = [*(f"Qwen/Qwen3-{size}" for size in PUBLISHED), *PUBLISHED_OTHERS]
    names = {name: hub_id for hub_id in full for name in (hub_id, hub_id.partition("/")[2])}
    names |= {size: f"Qwen/Qwen3-{size}" for size in PUBLISHED}
    short = {name.removeprefix("DeepSeek-"): hub_id for name, hub_id in names.items() if name.startswith("DeepSeek-")}
    return names | short
