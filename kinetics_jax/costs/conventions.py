"""The two published conventions of `generation_cost`, component by component, in FLOPs and bytes.

Each function maps names to pairs `(own, shared)`: what every trial costs, and what all trials of a problem cost once
(None where nothing is shared); arrays that broadcast over prompt_tokens, output_tokens and trials (float64). Names that
end in `_reads` are bytes. Every shared amount grows with output_tokens: that of several trials is the longest one's.
The third convention, `traffic`, has a file of its own and the same manner.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.counts import PublishedCounts
from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import UserError

# Parameters by published name in the paper's code; tied embeddings of the small models count twice.
UPSTREAM_PARAMETERS = {"0.6B": 0.752e9, "1.7B": 2.03e9, "4B": 4.02e9, "8B": 8.19e9, "14B": 14.77e9, "32B": 32.76e9}

Components = dict[str, tuple[Any, Any | None]]


class CostError(UserError):
    """A cost that cannot be computed as asked; the message says why and what to change."""


def paper(
    config: ModelConfig, prompt: np.ndarray, output: np.ndarray, policy: AttentionPolicy, kv_bytes: float
) -> Components:
    """Equations (1), (2), (8) and (9), integral in length; P counts all parameters used per token.

    Sparse attention: the budget's tokens once they are there, before that all of them (the exact sum, where equation 8
    takes the prompt to fill the budget), in every layer. The policies of block top-k add the search, in every step;
    that of a sliding window, of random blocks and of token top-k costs nothing, of the last by the paper's idealisation
    of an oracle. Dense attention reads the prompt once for all trials, sparse attention and its search do not.
    """
    counts = policy.paper_counts(prompt, output)
    heads = config.num_layers * config.num_heads * config.head_dim
    linear = 2 * config.active_parameters * output
    return _published(counts, linear, heads, config.kv_elements_per_token / 2, kv_bytes)


def upstream(
    config: ModelConfig, prompt: np.ndarray, output: np.ndarray, trials: np.ndarray, policy: AttentionPolicy
) -> Components:
    """The published code's formulas, floors and signs included; negative where they are.

    `pages` of block top-k is its k, the budget of token top-k its k, the window beside the sink tokens its local
    budget: sink, recent pages and dense layers are not charged, nor is the search of token top-k, an oracle. Raises
    CostError for a model whose parameters it does not list, and for random blocks, which it has no formula for.
    """
    size = config.name.removeprefix("Qwen/").removeprefix("Qwen3-")
    if size not in UPSTREAM_PARAMETERS:
        known = ", ".join(f"Qwen/Qwen3-{known}" for known in UPSTREAM_PARAMETERS)
        raise CostError(f"the upstream convention has no parameter count of {config.name!r} (it has {known})")
    heads = config.num_layers * config.num_heads * config.head_dim
    kv_heads = config.num_layers * config.num_kv_heads * config.head_dim
    counts = policy.upstream_counts(prompt, output, trials)
    if counts is None:
        raise CostError(f'the upstream convention has no formula for {policy.kind}; use "paper" or "traffic"')
    return _published(counts, 2 * UPSTREAM_PARAMETERS[size] * output, heads, kv_heads, kv_bytes=2)


def _published(counts: PublishedCounts, linear: Any, heads: float, kv_heads: float, kv_bytes: float) -> Components:
    """Counts of one layer as amounts of all: `heads` and `kv_heads` times layers and head_dim."""

    def read(amount: float, own: Any, once: Any) -> tuple[Any, Any]:
        return amount * (0 if own is None else own), None if once is None else amount * once

    tokens, once = counts.attended, counts.attended_once
    components: Components = {
        "linear": (linear, None),
        "attention": (4 * heads * (tokens if once is None else tokens + once), None),
        "kv_reads": read(2 * kv_bytes * kv_heads, tokens, once),
    }
    if counts.vectors is not None:
        components["search"] = 2 * heads * counts.vectors, None
        components["search_reads"] = read(kv_bytes * kv_heads, counts.vectors_read, counts.vectors_read_once)
    return components
