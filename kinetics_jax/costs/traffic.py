"""The `traffic` convention: sums over decode steps of what an engine computes and reads, in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.counts import triangle
from kinetics_jax.costs.architectures.architecture import Architecture, PricedModel
from kinetics_jax.costs.architectures.traffic import architecture_traffic
from kinetics_jax.costs.conventions import Components


def traffic(
    config: PricedModel,
    prompt: np.ndarray,
    output: np.ndarray,
    policy: AttentionPolicy,
    kv_bytes: float,
    weight_bytes: float,
    batch: np.ndarray | None,
    shared_prompt: bool,
) -> Components:
    """What an engine computes and reads, token by token; P counts the matrix parameters a token is multiplied with.

    One prefill per problem computes the prompt's K and V and the first output token; each of the other
    `output_tokens - 1` comes from a decode step, which attends to what `policy.counts` says: tokens that are `dense`,
    `forced` or `chosen`, after reading page summaries, multiplying them with the mean query of their group, and a
    comparison for each score, which any exact choice needs at least. Each part grows with the output, the number of
    trials and the budget (docs/economics.md: where that holds, and why). `prompt [...]` and `output [...]` are float64
    whole numbers that broadcast; amounts are FLOPs, and bytes for names that end in `_reads`.

    With `shared_prompt`, the K and V of the prompt's whole pages are read once for all trials in the layers that attend
    to everything, as `attention.shared_prefix` does it; its last tokens, which fill no page, and all that sparse layers
    and their search read are each trial's own.
    """
    if isinstance(config, Architecture):
        return architecture_traffic(config, prompt, output, policy, kv_bytes, weight_bytes, batch, shared_prompt)
    steps = np.maximum(output - 1, 0)
    counts = policy.counts(prompt, steps, config.num_layers)
    tokens = {"dense": counts.dense, "forced": counts.forced, "chosen": counts.chosen}
    elements = 2 * config.num_kv_heads * config.head_dim  # K and V of one token in one layer
    vector = elements / 2
    dense_layers = config.num_layers - len(policy.sparse_layers(config.num_layers))
    once = dense_layers * np.floor(prompt / policy.page_size) * policy.page_size * steps if shared_prompt else None

    parameters, head = config.matmul_parameters, config.vocab_size * config.hidden_size
    has_prompt = np.minimum(prompt, 1)  # logits are wanted after the last prompt token only
    components: Components = {
        "prefill_linear": (0, 2 * ((parameters - head) * prompt + head * has_prompt)),
        "prefill_attention": (0, 2 * config.group * config.kv_elements_per_token * triangle(prompt)),
        "linear": (2 * parameters * steps, None),
        **{f"{name}_attention": (2 * config.group * elements * share.total, None) for name, share in tokens.items()},
        "search": (2 * vector * counts.vectors.total, None),
        "top_k": (config.num_kv_heads * counts.scores.total, None),
        **{f"{name}_kv_reads": (kv_bytes * elements * share.total, None) for name, share in tokens.items()},
        "search_reads": (kv_bytes * vector * counts.vectors.total, None),
    }
    if once is not None:
        read = kv_bytes * elements
        components["dense_kv_reads"] = read * (counts.dense.total - once), read * once
    if batch is not None:
        prefill = weight_bytes * touched_parameters(config, prompt) * has_prompt
        components["prefill_weight_reads"] = 0, prefill
        components["weight_reads"] = weight_bytes * touched_parameters(config, batch) / batch * steps, None
    return components


def touched_parameters(config: PricedModel, tokens: Any) -> Any:
    """Matrix parameters read when `tokens` tokens are processed together: every expert that one of them uses.

    Experts are taken to be used evenly and independently; for a dense feed-forward this is `matmul_parameters`.
    """
    if isinstance(config, Architecture):
        return config.touched_parameters(tokens)
    if not config.num_experts:
        return config.matmul_parameters
    unused = (1 - config.experts_per_token / config.num_experts) ** tokens
    more = config.num_experts * (1 - unused) - config.experts_per_token
    expert = 3 * config.hidden_size * config.moe_intermediate_size
    return config.matmul_parameters + len(config.moe_layers) * expert * more
