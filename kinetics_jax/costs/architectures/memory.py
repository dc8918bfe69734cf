"""What an `Architecture` keeps of a sequence: bytes of K and V, summaries, index keys and states."""

from __future__ import annotations

from typing import Any

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.costs.architectures.architecture import Architecture
from kinetics_jax.costs.architectures.mixers import FullAttention, LinearAttention, WindowAttention


def sequence_bytes(
    architecture: Architecture, tokens: Any, policy: AttentionPolicy, *, kv_bytes: float, chips: int = 1
) -> Any:
    """Bytes that the fullest of `chips` chips keeps of a sequence of `tokens` tokens: whole pages of K and V, page
    summaries where the policy keeps some, windows, index keys and recurrent states.
    """
    total: Any = 0.0
    for (mixer, dense, searches), layers in architecture.mixers(policy).items():
        kept = mixer.cache_bytes(tokens, kv_bytes, policy.page_size)
        if searches and not dense and isinstance(mixer, FullAttention):
            kept = kept + mixer.summary_bytes(policy, tokens, kv_bytes)
        total = total + layers * kept * mixer.largest_share(chips)
    return total


def shared_bytes(
    architecture: Architecture, tokens: int, policy: AttentionPolicy, *, kv_bytes: float, chips: int = 1
) -> float:
    """Bytes of the whole pages among the first `tokens` tokens, which sequences of one prompt keep once: of the layers
    whose cache grows, with their summaries. Windows and states are each sequence's own.
    """
    whole = tokens // policy.page_size * policy.page_size
    total = 0.0
    for (mixer, dense, searches), layers in architecture.mixers(policy).items():
        if isinstance(mixer, WindowAttention | LinearAttention):
            continue
        kept = mixer.cache_bytes(whole, kv_bytes, policy.page_size)
        if searches and not dense and isinstance(mixer, FullAttention):
            kept = kept + mixer.summary_bytes(policy, whole, kv_bytes)
        total += float(layers * kept * mixer.largest_share(chips))
    return total
