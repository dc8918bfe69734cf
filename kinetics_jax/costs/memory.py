"""What fits a chip: bytes of weights and of KV cache, and how many sequences of a length fit beside the weights."""

from __future__ import annotations

import dataclasses
import math

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.dense import DENSE
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.architectures.architecture import Architecture, PricedModel
from kinetics_jax.costs.architectures.memory import sequence_bytes, shared_bytes
from kinetics_jax.costs.conventions import CostError
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.costs.hardware import hardware as hardware_named
from kinetics_jax.costs.traffic import touched_parameters

RESERVE = 0.1  # of a chip's memory, for activations, logits, the runtime and fragmentation


@dataclasses.dataclass(frozen=True)
class Capacity:
    """What one chip of a group holds, in bytes, and how many sequences that leaves room for; 0: not one fits.

    `weights` and `sequence` (KV and summaries of one sequence beside the shared prompt) are of one chip, as are
    `shared` (the prompt's whole pages, kept once) and `free` (memory without the reserve and the weights; negative
    where the weights alone do not fit).
    """

    sequences: int
    weights: float
    sequence: float
    shared: float
    free: float
    chips: int


def total_parameters(config: ModelConfig) -> int:
    """All parameters of the model, every expert among them; tied embeddings counted once."""
    experts = round(touched_parameters(config, math.inf)) - config.matmul_parameters  # those that no token uses at once
    return config.active_parameters + experts


def kv_bytes_per_token(config: ModelConfig, attention: AttentionPolicy = DENSE, *, kv_bytes: float = 2) -> float:
    """Bytes of K and V of one token over all layers, with its share of the page summaries where the attention keeps
    some: a vector or two of `head_dim` per page and KV head in every sparse layer, of the cache's own type.
    """
    return (config.kv_elements_per_token + _summary_elements(config, attention) / attention.page_size) * kv_bytes


def fits(
    config: PricedModel,
    hardware: str | Hardware,
    *,
    tokens: int,
    chips: int = 1,
    attention: AttentionPolicy = DENSE,
    shared_tokens: int = 0,
    kv_bytes: float = 2,
    weight_bytes: float = 2,
    reserve: float = RESERVE,
) -> Capacity:
    """How many sequences of `tokens` tokens (prompt and output) fit beside the weights on `chips` chips together.

    Tensor parallel: weights are split evenly, KV heads go to the chips whole. With more chips than KV heads, every head
    is kept by several chips, its K and V projections too, so further chips make room for weights but hold no more
    sequences of it; with a number of chips that does not divide the heads, the fullest chip decides. Sequences occupy
    whole pages; the whole pages of `shared_tokens` prompt tokens are kept once for all of them. Of an `Architecture`
    all parameters are split evenly. `reserve` is the fraction of a chip's memory left to activations and the runtime.
    Raises CostError if an argument makes no sense, HardwareError for an unknown chip.
    """
    chip = hardware if isinstance(hardware, Hardware) else hardware_named(hardware)
    if chips < 1 or tokens < 1 or not 0 <= shared_tokens < tokens:
        raise CostError(
            f"fits needs at least one chip and one token, and fewer shared tokens than tokens: chips {chips}, "
            f"tokens {tokens}, shared_tokens {shared_tokens}"
        )
    if not (kv_bytes > 0 and weight_bytes > 0 and 0 <= reserve < 1):
        raise CostError(
            f"kv_bytes and weight_bytes must be positive and reserve in [0, 1), got {kv_bytes}, {weight_bytes}, "
            f"{reserve}"
        )
    if isinstance(config, Architecture):
        kept = {"policy": attention, "kv_bytes": kv_bytes, "chips": chips}
        shared = shared_bytes(config, shared_tokens, **kept)
        sequence = float(sequence_bytes(config, tokens, **kept)) - shared
        return _capacity(chip, weight_bytes * config.total_parameters / chips, sequence, shared, chips, reserve)
    heads = -(-config.num_kv_heads // chips)  # KV heads of the fullest chip
    projections = 2 * config.num_layers * config.hidden_size * config.head_dim  # of one KV head
    split = total_parameters(config) - projections * config.num_kv_heads
    weights = weight_bytes * (split / chips + projections * heads)

    size = attention.page_size
    page = kv_bytes * heads / config.num_kv_heads * _page_elements(config, attention)
    shared = shared_tokens // size
    sequence = page * (-(-tokens // size) - shared)
    return _capacity(chip, weights, sequence, page * shared, chips, reserve)


def _capacity(chip: Hardware, weights: float, sequence: float, shared: float, chips: int, reserve: float) -> Capacity:
    free = chip.memory * (1 - reserve) - weights
    room = free - shared
    sequences = 0 if room < sequence else int(room // sequence)
    return Capacity(sequences, weights, sequence, shared, free, chips)


def least_chips(config: PricedModel, hardware: str | Hardware, *, tokens: int, most: int = 1024, **options) -> int:
    """The smallest power of two of chips, up to `most`, that holds one sequence of `tokens`; 0 if none does.

    `options` as in `fits`.
    """
    chips = 1
    while chips <= most:
        if fits(config, hardware, tokens=tokens, chips=chips, **options).sequences:
            return chips
        chips *= 2
    return 0


def _summary_elements(config: ModelConfig, attention: AttentionPolicy) -> int:
    """Elements of one page's summaries over all layers and KV heads."""
    layers = sum(map(attention.searches, range(config.num_layers)))
    return layers * config.num_kv_heads * config.head_dim * attention.summary_vectors


def _page_elements(config: ModelConfig, attention: AttentionPolicy) -> int:
    return attention.page_size * config.kv_elements_per_token + _summary_elements(config, attention)
