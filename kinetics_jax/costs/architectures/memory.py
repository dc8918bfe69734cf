"""What an `Architecture` keeps: bytes of weights and of a sequence's cache, and how many sequences fit."""

from __future__ import annotations

from typing import Any

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.costs.architectures.architecture import Architecture
from kinetics_jax.costs.architectures.mixers import FullAttention


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
