"""What an `Architecture` keeps: bytes of weights and of a sequence's cache, and how many sequences fit."""

from __future__ import annotations

from typing import Any

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.costs.architectures.architecture import Architecture
from kinetics_jax.costs.architectures.mixers import FullAttention
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.costs.memory import RESERVE, Capacity


def sequence_bytes(
    architecture: Architecture, tokens: Any, policy: AttentionPolicy, *, kv_bytes: float, chips: int = 1
) -> Any:
    """Bytes that the fullest of `chips` chips keeps of a sequence of `tokens` tokens: whole pages of K and V, page
    summaries where the policy keeps some, windows, index keys and recurrent states.
    """
    total: Any = 0.0
    for (mixer, dense), layers in architecture.mixers(policy).items():
        kept = mixer.cache_bytes(tokens, kv_bytes, policy.page_size)
        if not dense and isinstance(mixer, FullAttention):
            kept = kept + mixer.summary_bytes(policy, tokens, kv_bytes)
        total = total + layers * kept * mixer.largest_share(chips)
    return total


def architecture_fits(
    architecture: Architecture,
    hardware: Hardware,
    *,
    tokens: int,
    policy: AttentionPolicy,
    chips: int = 1,
    kv_bytes: float = 2,
    weight_bytes: float = 2,
    reserve: float = RESERVE,
) -> Capacity:
    """How many sequences of `tokens` tokens fit beside the weights on `chips` chips together, as `costs.memory.fits`.

    All parameters are split evenly, look-up tables among them.
    """
    weights = weight_bytes * architecture.total_parameters / chips
    sequence = float(sequence_bytes(architecture, tokens, policy, kv_bytes=kv_bytes, chips=chips))
    free = hardware.memory * (1 - reserve) - weights
    return Capacity(max(0, int(free // sequence)), weights, sequence, 0.0, free, chips)
