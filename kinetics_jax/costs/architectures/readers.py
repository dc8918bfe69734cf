"""Architectures from Hugging Face's `config.json`, by `model_type`.

Fields that published files leave out have the defaults of transformers' classes; others are needed.

Parameter counts equal those of transformers' models, term by term (tests hold them to it).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kinetics_jax.config import ModelConfig
from kinetics_jax.config_fields import ConfigError, flag, read_fields, whole_number
from kinetics_jax.costs.architectures.architecture import Architecture, Layer, PricedModel
from kinetics_jax.costs.architectures.feed_forward import Experts, FeedForward
from kinetics_jax.costs.architectures.mixers import (
    FullAttention,
    IndexedAttention,
    LatentAttention,
    LinearAttention,
    Mixer,
    WindowAttention,
)
from kinetics_jax.errors import spelled
from kinetics_jax.files import read_json

MOST = 2**31
# The most that a count can be, where it is not 2**24: beyond any model.
MOSTS = {"vocab_size": 2**27, "num_hidden_layers": 2**16, "heads_per_ngram": 2**10, "ngram_size": 2**6}
MOSTS |= dict.fromkeys(("max_position_embeddings", "ngram_vocab_size_base"), MOST)
FULL, SLIDING, LINEAR, INDEXED = "full_attention", "sliding_attention", "linear_attention", "indexed_attention"


class Fields:
    """The fields of a config.json, checked as they are read: whole numbers, flags, lists of layer types."""

    def __init__(self, fields: Mapping[str, Any], where: str) -> None:
        self.given = {name: value for name, value in fields.items() if value is not None}
        self.where = where

    def count(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        """A whole number. Raises ConfigError naming the field if it is missing, or is none."""
        if name not in self.given and default is not None:
            return default
        if name not in self.given:
            raise ConfigError(f"{self.where}: missing {name}")
        return whole_number(self.given[name], name, least, MOSTS.get(name, 2**24), where=self.where)

    def heads(self, heads: int | None = None, kv_heads: int | None = None) -> tuple[int, int]:
        """Query heads and KV heads. Raises ConfigError if the first are no multiple of the second."""
        found = self.count("num_attention_heads", heads), self.count("num_key_value_heads", kv_heads)
        if found[0] % found[1]:
            raise ConfigError(
                f"{self.where}: num_attention_heads ({found[0]}) must be a multiple of num_key_value_heads ({found[1]})"
            )
        return found

    def experts(self, count: str, *per_token: str) -> tuple[int, int]:
        """Experts, and how many a token uses, by the first of the names that is there; those that are must agree.

        Raises ConfigError where they do not, and for more experts per token than there are.
        """
        said = {name: self.count(name) for name in per_token if name in self.given}
        if len(set(said.values())) > 1:
            both = ", ".join(f"{name} = {value}" for name, value in said.items())
            raise ConfigError(f"{self.where}: contradicts itself: {both}; keep the right one")
        there, used = self.count(count), next(iter(said.values())) if said else self.count(per_token[0])
        if used > there:
            raise ConfigError(f"{self.where}: {per_token[0]} must be at most {count} ({there}), got {used}")
        return there, used

    def layers(self, name: str) -> list[int]:
        """A list of layers, by default empty. Raises ConfigError for anything else."""
        value = self.given.get(name, [])
        if not isinstance(value, list) or not all(type(layer) is int for layer in value):
            raise ConfigError(f"{self.where}: {name} must be a list of layers, got {spelled(value)}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        return flag(self.given[name], name, where=self.where) if name in self.given else default

    def kinds(self, default: Callable[[int], str], known: tuple[str, ...]) -> list[str]:
        """The kind of every layer: `layer_types`, or what `default` says of a layer's index."""
        layers = self.count("num_hidden_layers")
        kinds = self.given.get("layer_types", [default(layer) for layer in range(layers)])
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise ConfigError(f"{self.where}: layer_types must name the kind of each of {layers} layers")
        if odd := sorted({spelled(kind, 40) for kind in kinds if kind not in known}):
            raise ConfigError(f"{self.where}: layer_types holds {', '.join(odd)}; known here are {', '.join(known)}")
        return kinds


def read_architecture(source: str | Path | Mapping[str, Any], *, name: str = "") -> Architecture:
    """The architecture of a `config.json` (a path, its directory, or the parsed mapping), to be priced.

    Of a model of text and images the `text_config` counts. Raises ConfigError naming the field when one is missing or
    makes no sense, and for a `model_type` that is not known.
    """
    source, where = read_fields(source)
    inner = source.get("text_config")
    if isinstance(inner, Mapping):
        source = {"tie_word_embeddings": source.get("tie_word_embeddings"), **inner}
        where = f"{where}: text_config"
    kind = source.get("model_type")
    if not isinstance(kind, str) or kind not in READERS:
        raise ConfigError(
            f"{where}: model_type {spelled(kind)} is not one that can be priced (known: {', '.join(READERS)})"
        )
    return READERS[kind](Fields(source, where), name)


def read_priced(path: Path, *, name: str = "") -> PricedModel:
    """The model of a `config.json` (or its directory): one that runs here, or else one that can be priced.

    Raises ConfigError for a file that cannot be read, and for another `model_type`.
    """
    file = path / "config.json" if path.is_dir() else path
    kind = read_json(file, error=ConfigError).get("model_type") if file.exists() else None
    if isinstance(kind, str) and kind in READERS:
        return read_architecture(path, name=name)
    return ModelConfig.from_hf(path, name=name)


def architecture_of(config: ModelConfig) -> Architecture:
    """The architecture of a model that this package runs."""
    hidden, head_dim = config.hidden_size, config.head_dim
    mixer = FullAttention(config.num_heads, config.num_kv_heads, head_dim, head_dim)
    projections = 2 * hidden * head_dim * (config.num_heads + config.num_kv_heads)
    other = 2 * hidden + (2 * head_dim if config.qk_norm else 0)
    other += head_dim * (config.num_heads + 2 * config.num_kv_heads) if config.qkv_bias else 0
    dense = FeedForward(3 * hidden * config.intermediate_size)
    sparse = config.moe_layers
    experts = (
        _experts(hidden, config.num_experts, config.experts_per_token, config.moe_intermediate_size)
        if sparse
        else dense
    )
    return Architecture(
        name=config.name,
        hidden_size=hidden,
        vocab_size=config.vocab_size,
        tied=config.tie_word_embeddings,
        layers=tuple(
            Layer(mixer, projections, other, experts if layer in sparse else dense)
            for layer in range(config.num_layers)
        ),
        other=hidden,
        max_position_embeddings=config.max_position_embeddings,
    )


def _experts(hidden: int, count: int, per_token: int, width: int, *, shared: int = 0, gate: bool = False) -> Experts:
    """Gated experts of `width`, a router, and a shared expert of width `shared` with a scalar gate where it has one."""
    always = hidden * count + 3 * hidden * shared + (hidden if gate else 0)
    return Experts(count, per_token, 3 * hidden * width, always)


def _frame(
    fields: Fields, name: str, layers: list[Layer], *, tied: bool = False, vocab: int | None = None
) -> Architecture:
    return Architecture(
        name=name,
        hidden_size=fields.count("hidden_size"),
        vocab_size=fields.count("vocab_size", vocab),
        tied=fields.flag("tie_word_embeddings", tied),
        layers=tuple(layers),
        max_position_embeddings=fields.count("max_position_embeddings", 0, least=0),
        other=fields.count("hidden_size"),
    )


def _gpt_oss(fields: Fields, name: str) -> Architecture:
    """Alternating windows and full attention with sinks and biases, and experts with biases (gpt-oss)."""
    hidden, (heads, kv_heads) = fields.count("hidden_size"), fields.heads()
    head_dim, width = fields.count("head_dim", hidden // heads), fields.count("intermediate_size")
    full = FullAttention(heads, kv_heads, head_dim, head_dim)
    window = WindowAttention(heads, kv_heads, head_dim, head_dim, window=fields.count("sliding_window", 128))
    projections = 2 * hidden * head_dim * (heads + kv_heads)
    bias = head_dim * (heads + 2 * kv_heads) + hidden if fields.flag("attention_bias", True) else 0
    count, used = fields.experts("num_local_experts", "num_experts_per_tok", "experts_per_token")
    experts = Experts(
        count,
        used,
        expert=3 * hidden * width,
        shared=hidden * count,
        bias=2 * width + hidden,
        other=count,
    )
    kinds = fields.kinds(lambda layer: FULL if layer % 2 else SLIDING, (FULL, SLIDING))
    return _frame(
        fields,
        name,
        [Layer(full if kind == FULL else window, projections, 2 * hidden + bias + heads, experts) for kind in kinds],
    )


def _gemma(pattern: int, norms: bool, vocab: int) -> Callable[[Fields, str], Architecture]:
    """Windows with full attention in every `pattern`-th layer; `norms`: of q and k (Gemma 3 has them, 2 has not).

    Published files leave out what transformers' classes have by default: 8 heads, 4 KV heads, `vocab`.
    """

    def read(fields: Fields, name: str) -> Architecture:
        hidden, (heads, kv_heads) = fields.count("hidden_size"), fields.heads(8, 4)
        head_dim = fields.count("head_dim", 256)
        full = FullAttention(heads, kv_heads, head_dim, head_dim)
        window = WindowAttention(heads, kv_heads, head_dim, head_dim, window=fields.count("sliding_window", 4096))
        period = fields.count("sliding_window_pattern", fields.count("_sliding_window_pattern", pattern))
        kinds = fields.kinds(lambda layer: SLIDING if (layer + 1) % period else FULL, (FULL, SLIDING))
        other = 4 * hidden + (2 * head_dim if norms else 0)
        feed_forward = FeedForward(3 * hidden * fields.count("intermediate_size"))
        projections = 2 * hidden * head_dim * (heads + kv_heads)
        layers = [Layer(full if kind == FULL else window, projections, other, feed_forward) for kind in kinds]
        return _frame(fields, name, layers, tied=True, vocab=vocab)

    return read


def _deepseek(fields: Fields, name: str) -> Architecture:
    """Latent attention, a few dense layers, then experts with shared ones; with an indexer in V3.2."""
    hidden, heads, rank = fields.count("hidden_size"), fields.count("num_attention_heads"), fields.count("kv_lora_rank")
    nope, rotary, value = map(fields.count, ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    query_rank = fields.count("q_lora_rank", 0, least=0)
    query = heads * (nope + rotary)
    projections = (query_rank * (hidden + query) if query_rank else hidden * query) + hidden * (rank + rotary)
    projections += rank * heads * (nope + value) + heads * value * hidden
    other = 2 * hidden + rank + query_rank
    mixer: Mixer = LatentAttention(heads, 1, rank + rotary, rank, prompt_dims=(nope + rotary, value))
    if "index_topk" in fields.given:
        index_heads, index_dim = fields.count("index_n_heads"), fields.count("index_head_dim")
        projections += query_rank * index_heads * index_dim + hidden * (index_dim + index_heads)
        other += 2 * index_dim
        mixer = IndexedAttention(mixer, fields.count("index_topk"), 1, index_heads, index_dim)
    width = fields.count("moe_intermediate_size")
    experts = _experts(
        hidden,
        *fields.experts("n_routed_experts", "num_experts_per_tok"),
        width,
        shared=width * fields.count("n_shared_experts", 0, least=0),
    )
    dense = FeedForward(3 * hidden * fields.count("intermediate_size"))
    first, every = fields.count("first_k_dense_replace", 0, least=0), fields.count("moe_layer_freq", 1)
    layers = [
        Layer(mixer, projections, other, dense if layer < first or layer % every else experts)
        for layer in range(fields.count("num_hidden_layers"))
    ]
    return _frame(fields, name, layers)


def _qwen_hybrid(fields: Fields, name: str) -> Architecture:
    """Three gated delta nets, then full attention with an output gate (Qwen3-Next, Qwen3.5)."""
    return _frame(fields, name, _hybrid_layers(fields, FULL))


def _qwen4(fields: Fields, name: str) -> Architecture:
    """The same, with block-sparse attention by design, hyper-connections, and n-gram embeddings in some layers
    (Qwen3.8-Flash-Next).
    """
    hidden, streams = fields.count("hidden_size"), fields.count("hc_count", 4)
    wide, rank = streams * hidden, fields.count("hc_lowrank", 320)
    mixing = 2 * wide * rank  # of one residual mixer; in a layer there are two, which write back as well
    layers = []
    lookups = 0
    with_tables = fields.layers("ple_layer_ids")
    for index, layer in enumerate(_hybrid_layers(fields, INDEXED)):
        projections = layer.projections + 2 * (mixing + wide * streams)
        other = layer.other - 2 * hidden + 2 * wide
        if index + 1 in with_tables:
            width = fields.count("ple_embed_dim", hidden)
            projections += width * (wide + hidden)
            other += wide * (3 + fields.count("ple_conv_kernel_size", 4))
            lookups += _table_rows(fields, with_tables.index(index + 1)) * (width // _ngram_heads(fields))
        layers.append(Layer(layer.mixer, projections, other, layer.feed_forward))
    frame = _frame(fields, name, layers)
    return dataclasses.replace(frame, mixing=mixing, other=wide, lookups=lookups)


def _ngram_heads(fields: Fields) -> int:
    return (fields.count("ngram_size", 3) - 1) * fields.count("heads_per_ngram", 8)


def _table_rows(fields: Fields, table: int) -> int:
    """Rows of an n-gram table: a prime for each head, the next ones from a base on, padded."""
    heads = _ngram_heads(fields)
    rows, candidate = [], fields.count("ngram_vocab_size_base", 20_000_000) - 1
    while len(rows) < (table + 1) * heads:
        candidate += 1
        if _is_prime(candidate):
            rows.append(candidate)
    pad = fields.count("make_ngram_vocab_size_divisible_by", 128)
    return -(-sum(rows[-heads:]) // pad) * pad


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))


def _hybrid_layers(fields: Fields, attends: str) -> list[Layer]:
    """Layers of linear attention and, every so often, of the kind `attends`."""
    hidden, (heads, kv_heads) = fields.count("hidden_size"), fields.heads()
    head_dim, kernel = fields.count("head_dim", 256), fields.count("linear_conv_kernel_dim", 4)
    value_heads = fields.count("linear_num_value_heads", 32)
    key_dim, value_dim = fields.count("linear_key_head_dim", 128), fields.count("linear_value_head_dim", 128)
    keys, values = key_dim * fields.count("linear_num_key_heads", 16), value_dim * value_heads
    attention: Mixer = FullAttention(heads, kv_heads, head_dim, head_dim)
    projections = hidden * head_dim * (3 * heads + 2 * kv_heads)  # q and its gate, k, v, output
    other = 2 * hidden + 2 * head_dim
    if attends == INDEXED:
        index_heads, index_dim = fields.count("indexer_n_heads"), fields.count("indexer_head_dim")
        budget, block = fields.count("indexer_budget"), fields.count("indexer_compress_ratio")
        if budget % block:
            raise ConfigError(f"{fields.where}: indexer_budget {budget} must be a multiple of its block of {block}")
        attention = IndexedAttention(attention, budget, block, index_heads, index_dim)
        projections += hidden * (index_heads + 1) * index_dim
        other += 2 * index_dim
    linear = LinearAttention(value_heads, key_dim, value_dim, (kernel - 1) * (2 * keys + values))
    mixes = hidden * (2 * keys + 2 * values + 2 * value_heads) + values * hidden
    small = 2 * hidden + kernel * (2 * keys + values) + 2 * value_heads + value_dim
    interval = fields.count("full_attention_interval", 4)
    kinds = fields.kinds(lambda layer: LINEAR if (layer + 1) % interval else attends, (LINEAR, FULL, INDEXED))
    dense = FeedForward(3 * hidden * fields.count("intermediate_size")) if "intermediate_size" in fields.given else None
    experts = None
    if "num_experts" in fields.given:
        experts = _experts(
            hidden,
            *fields.experts("num_experts", "num_experts_per_tok"),
            fields.count("moe_intermediate_size"),
            shared=fields.count("shared_expert_intermediate_size"),
            gate=True,
        )
    only = fields.layers("mlp_only_layers")
    step = fields.count("decoder_sparse_step", 1)
    layers = []
    for index, kind in enumerate(kinds):
        sparse = experts is not None and index not in only and (index + 1) % step == 0
        feed_forward = experts if sparse else dense
        if feed_forward is None:
            raise ConfigError(f"{fields.where}: missing intermediate_size or num_experts")
        if kind == LINEAR:
            layers.append(Layer(linear, mixes, small, feed_forward))
        else:
            layers.append(Layer(attention, projections, other, feed_forward))
    return layers


READERS: dict[str, Callable[[Fields, str], Architecture]] = {
    "gpt_oss": _gpt_oss,
    "gemma2": _gemma(2, norms=False, vocab=256_000),
    "gemma3": _gemma(6, norms=True, vocab=262_208),
    "gemma3_text": _gemma(6, norms=True, vocab=262_208),
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "deepseek_v32": _deepseek,
    "kimi_k2": _deepseek,
    "qwen3_next": _qwen_hybrid,
    "qwen3_5": _qwen_hybrid,
    "qwen3_5_text": _qwen_hybrid,
    "qwen3_5_moe": _qwen_hybrid,
    "qwen3_5_moe_text": _qwen_hybrid,
    "qwen4_exp": _qwen4,
    "qwen4_exp_text": _qwen4,
}
