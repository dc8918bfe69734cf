"""The two published conventions of `generation_cost`, component by component, in FLOPs and bytes.

Each function maps names to pairs `(own, shared)`: what every trial costs, and what all trials of a problem cost once;
arrays that broadcast over prompt_tokens, output_tokens and trials (whole numbers as float64). Names that end in
`_reads` are bytes. Every shared amount grows with output_tokens: that of several trials is the longest one's.
The third convention, `traffic`, has a file of its own and the same manner.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.blocks import BlockPolicy
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.litesys_block_topk import LiteSysBlockTopK
from kinetics_jax.attention.policies.sliding_window import SlidingWindow
from kinetics_jax.attention.policies.token_topk import TokenTopK
from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import UserError

# Parameters by published name in the paper's code; tied embeddings of the small models count twice.
UPSTREAM_PARAMETERS = {"0.6B": 0.752e9, "1.7B": 2.03e9, "4B": 4.02e9, "8B": 8.19e9, "14B": 14.77e9, "32B": 32.76e9}

Components = dict[str, tuple[Any, Any]]


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
    kv_elements, group = config.kv_elements_per_token, config.group
    prompt_reads, own_reads = prompt * output, output**2 / 2
    components: Components = {"linear": (2 * config.active_parameters * output, 0)}
    if isinstance(policy, Dense):
        components["attention"] = 2 * group * kv_elements * (prompt_reads + own_reads), 0
        components["kv_reads"] = kv_bytes * kv_elements * own_reads, kv_bytes * kv_elements * prompt_reads
        return components
    budget = _budget(policy)
    room = np.maximum(budget - prompt, 0)
    filling = np.minimum(room, output)
    attended = budget * output - room * filling + filling**2 / 2
    components["attention"] = 2 * group * kv_elements * attended, 0
    components["kv_reads"] = kv_bytes * kv_elements * attended, 0
    if isinstance(policy, BlockTopK | LiteSysBlockTopK):
        per_page = kv_elements / (2 * policy.page_size)
        components["search"] = 2 * group * per_page * (prompt_reads + own_reads), 0
        components["search_reads"] = kv_bytes * per_page * (prompt_reads + own_reads), 0
    return components


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
    components: Components = {"linear": (2 * UPSTREAM_PARAMETERS[size] * output, 0)}
    if isinstance(policy, Dense):
        components["attention"] = 2 * (2 * prompt + output) * output * heads, 0
        components["kv_reads"] = 2 * output**2 * kv_heads, 4 * prompt * output * kv_heads
        return components
    budget = _budget(policy) - (policy.sink_tokens if isinstance(policy, SlidingWindow) else 0)
    filling = np.maximum(budget - prompt, 0) ** 2 / 2
    if isinstance(policy, BlockTopK | LiteSysBlockTopK):
        attended = budget * output - filling
        components["search"] = (2 * prompt + output) // policy.page_size * output * heads, 0
        components["search_reads"] = 0, (2 * prompt + output * trials) // policy.page_size * output * kv_heads
    elif isinstance(policy, TokenTopK | SlidingWindow):
        attended = budget * output + filling  # the published sign
    else:
        raise CostError(f'the upstream convention has no formula for {policy.kind}; use "paper" or "traffic"')
    components["attention"] = 4 * attended * heads, 0
    components["kv_reads"] = 4 * attended * kv_heads, 0
    return components


def _budget(policy: BlockPolicy | TokenTopK | SlidingWindow | LiteSysBlockTopK) -> float:
    """B of the published equations; for LiteSys the tokens of its blocks and its window, as there."""
    if isinstance(policy, LiteSysBlockTopK):
        return float(policy.local + policy.pages * policy.page_size)
    return float(policy.budget)
