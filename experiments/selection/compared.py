"""The policies that are compared, of every registered kind."""

from __future__ import annotations

from kinetics_jax.attention.policies.base import PAGE_SIZE, AttentionPolicy
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.gated_block_topk import GatedBlockTopK
from kinetics_jax.attention.policies.growing_block_topk import GrowingBlockTopK
from kinetics_jax.attention.policies.litesys_block_topk import LiteSysBlockTopK
from kinetics_jax.attention.policies.litesys_random_tokens import LiteSysRandomTokens
from kinetics_jax.attention.policies.litesys_strided_blocks import LiteSysStridedBlocks
from kinetics_jax.attention.policies.random_blocks import RandomBlocks
from kinetics_jax.attention.policies.shared_block_topk import SharedBlockTopK
from kinetics_jax.attention.policies.sliding_window import SlidingWindow
from kinetics_jax.attention.policies.token_topk import TokenTopK
from kinetics_jax.attention.policies.top_p_pages import TopPPages
from kinetics_jax.attention.policies.unbiased_block_topk import UnbiasedBlockTopK

SUMMARIES = ("mean", "min_max", "mean_std", "two_means")


def masked(budget: int) -> list[AttentionPolicy]:
    """Those that a masked forward can follow, at a budget in tokens."""
    blocks = [BlockTopK(budget=budget, summary=summary) for summary in SUMMARIES]
    return [*blocks, SlidingWindow(budget=budget), RandomBlocks(budget=budget), TokenTopK(budget=budget)]


def decoded(budget: int, length: int, gate: str | None = None) -> list[AttentionPolicy]:
    """Those that are decoded token by token, at about the same budget in a sequence of `length` tokens.

    Top-p has the budget for its cap. A gate, a safetensors file for the model, adds block top-k by it.
    """
    pages = budget // PAGE_SIZE
    return [
        TopPPages(p=0.9, budget=budget),
        GrowingBlockTopK(ratio=min(budget / length, 1.0)),
        SharedBlockTopK(select_every=2, budget=budget),
        UnbiasedBlockTopK(samples=max(1, pages // 4), budget=budget),
        *([GatedBlockTopK(gate=gate, budget=budget)] if gate else []),
        LiteSysBlockTopK(pages=pages),
        LiteSysStridedBlocks(pages=pages, stride=PAGE_SIZE // 2),
        LiteSysRandomTokens(samples=budget - 4),
        LiteSysRandomTokens(samples=budget - 4, weights="importance"),
    ]


def of_every_kind(budget: int, length: int, gate: str | None = None) -> list[AttentionPolicy]:
    """All of them."""
    return [*masked(budget), *decoded(budget, length, gate)]
