"""The `traffic` convention for an `Architecture`: the sums over layers of what their mixers and matrices take."""

from __future__ import annotations

from typing import Any

import numpy as np

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.counts import Share
from kinetics_jax.costs.architectures.architecture import Architecture
from kinetics_jax.costs.conventions import Components


def architecture_traffic(
    architecture: Architecture,
    prompt: np.ndarray,
    output: np.ndarray,
    policy: AttentionPolicy,
    kv_bytes: float,
    weight_bytes: float,
    batch: np.ndarray | None,
    shared_prompt: bool,
) -> Components:
    """FLOPs and bytes (names that end in `_reads`) of one trial: pairs (of each trial, once for all of a prompt).

    As `costs.traffic.traffic`, whose names it has; beside them `window_attention` and `window_kv_reads` (layers with a
    sliding window), `state` and `state_reads` (recurrent states, read and written).
    """
    steps = np.maximum(output - 1, 0)
    head, parameters = architecture.head, architecture.matmul_parameters
    has_prompt = np.minimum(prompt, 1)  # logits are wanted after the last prompt token only
    sums: dict[str, Share] = {}
    prefill: Any = 0.0
    for (mixer, dense, searches), layers in architecture.mixers(policy).items():
        prefill = prefill + layers * mixer.prefill_flops(prompt)
        for name, share in mixer.decode(policy, dense, prompt, steps, kv_bytes).items():
            if not (dense or searches) and name in ("search", "top_k", "search_reads"):
                continue
            sums[name] = sums.get(name, Share()).plus(share.times(layers))
    components: Components = {
        "prefill_linear": (0, 2 * ((parameters - head) * prompt + head * has_prompt)),
        "prefill_attention": (0, prefill),
        "linear": (2 * parameters * steps, None),
    }
    for name, share in sums.items():
        once = share.prompt if shared_prompt and name == "dense_kv_reads" else None
        components[name] = (share.total, None) if once is None else (share.own, once)
    if batch is not None:
        touched = architecture.touched_parameters
        components["prefill_weight_reads"] = 0, weight_bytes * touched(prompt) * has_prompt
        components["weight_reads"] = weight_bytes * touched(batch) / batch * steps, None
    return components
