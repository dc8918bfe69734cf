"""Seconds of a decode step and of a prefill on a chip: the amounts of the `traffic` convention, priced by Hardware.

The one place where seconds of an engine come from: `kinetics calibrate` fits a profile to it, the planner sums it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.dense import DENSE
from kinetics_jax.costs.architectures.architecture import PricedModel
from kinetics_jax.costs.cost import UNIT, generation_cost, split_over_chips
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.costs.links import activation_bytes, communication_seconds
from kinetics_jax.costs.traffic import touched_parameters
from kinetics_jax.padding import prompt_shape


def step_amounts(
    config: PricedModel,
    policy: AttentionPolicy,
    *,
    contexts: npt.ArrayLike,
    width: npt.ArrayLike | None = None,
    kv_bytes: float = 2,
    weight_bytes: float = 2,
    padded: bool = False,
) -> dict[str, Any]:
    """FLOPs and bytes (`…_reads`) of one decode step of a batch, by component, each of shape `[...]`.

    `contexts [..., batch]`: tokens of every sequence, the step's own included; 0 for an idle slot, which still goes
    through the linear layers. `padded`: see Hardware; `width [...]` is then the longest that a sequence may get, by
    default the longest there is.
    """
    contexts = np.asarray(contexts, np.float64)
    batch, longest = contexts.shape[-1], contexts.max(-1)
    if padded and policy.masks_logits:
        policy, longest = DENSE, np.maximum(longest, 0 if width is None else width)  # masked, not skipped

    def attended(lengths: np.ndarray) -> dict[str, Any]:
        """Of one sequence: the single step that a sequence of one token fewer takes."""
        cost = generation_cost(
            config,
            prompt_tokens=np.maximum(lengths - 1, 0),
            output_tokens=2,
            attention=policy,
            intensity=1,
            kv_bytes=kv_bytes,
        )
        return {
            name: UNIT * np.where(lengths > 0, amount, 0)
            for name, amount in cost.parts.items()
            if not name.startswith("prefill") and name != "linear"
        }

    if padded:
        amounts = {name: batch * amount for name, amount in attended(longest).items()}
        searched = np.maximum(longest if width is None else width, policy.budget + 1)
        amounts |= {
            name: batch * amount
            for name, amount in attended(np.broadcast_to(searched, longest.shape)).items()
            if name in ("search", "top_k", "search_reads")
        }
    else:
        amounts = {name: amount.sum(-1) for name, amount in attended(contexts).items()}
    return amounts | {
        "linear": np.full(longest.shape, 2.0 * config.matmul_parameters * batch),
        "weight_reads": np.full(longest.shape, weight_bytes * touched_parameters(config, batch)),
    }


def step_seconds(
    config: PricedModel,
    policy: AttentionPolicy,
    hardware: Hardware,
    *,
    contexts: npt.ArrayLike,
    width: npt.ArrayLike | None = None,
    chips: int = 1,
    kv_bytes: float = 2,
    weight_bytes: float = 2,
    amounts: Mapping[str, Any] | None = None,
) -> Any:
    """Seconds of one decode step of a batch, `[...]`; arguments as in `step_amounts`, whose `amounts` can be given.

    `chips` work on every sequence together (`split_over_chips`) and sum what they found after every half of a layer
    (`links.communication_seconds`); overheads are those of one chip.
    """
    contexts = np.asarray(contexts)
    if amounts is None:
        bytes_each = {"kv_bytes": kv_bytes, "weight_bytes": weight_bytes}
        amounts = step_amounts(config, policy, contexts=contexts, width=width, padded=hardware.padded, **bytes_each)
    overhead = hardware.overhead_seconds(config.num_layers, config.vocab_size, contexts.shape[-1])
    waiting = communication_seconds(
        config, hardware, chips, contexts.shape[-1], activation_bytes=activation_bytes(weight_bytes)
    )
    return hardware.seconds(split_over_chips(amounts, config, chips)) + overhead + waiting


def step_joules(
    config: PricedModel,
    policy: AttentionPolicy,
    hardware: Hardware,
    seconds: Any,
    *,
    contexts: npt.ArrayLike,
    width: npt.ArrayLike | None = None,
    chips: int = 1,
    kv_bytes: float = 2,
    weight_bytes: float = 2,
    amounts: Mapping[str, Any] | None = None,
) -> Any:
    """Joules of one decode step over all chips, `[...]`, which takes `seconds [...]`; other arguments as in
    `step_seconds`. None where the hardware's energy was not measured.
    """
    if hardware.watts is None:  # before anything is counted: a plan asks for every configuration
        return None
    if amounts is None:
        bytes_each = {"kv_bytes": kv_bytes, "weight_bytes": weight_bytes}
        amounts = step_amounts(config, policy, contexts=contexts, width=width, padded=hardware.padded, **bytes_each)
    drawn = hardware.joules(split_over_chips(amounts, config, chips), seconds)
    return None if drawn is None else chips * drawn


def prefill_amounts(
    config: PricedModel, *, prompt_tokens: npt.ArrayLike, page_size: int, weight_bytes: float = 2
) -> dict[str, Any]:
    """FLOPs and bytes of one prompt's prefill, `[...]`, by component.

    `prompt_tokens [...]` is padded as the engine does it (`padding.prompt_shape`); every chunk reads the weights.
    """
    chunk, tokens = padded_prompt(prompt_tokens, page_size)
    cost = generation_cost(config, prompt_tokens=tokens, output_tokens=1, intensity=1)
    amounts = {name: UNIT * amount for name, amount in cost.parts.items() if name.startswith("prefill")}
    return amounts | {"weight_reads": weight_bytes * touched_parameters(config, chunk) * (tokens / chunk)}


def padded_prompt(prompt_tokens: npt.ArrayLike, page_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens that the engine computes at a time, and in all, for prompts of `prompt_tokens [...]`, each `[...]`."""
    lengths = np.asarray(prompt_tokens, np.float64)
    shaped = [prompt_shape(int(np.ceil(length)), page_size) for length in lengths.ravel()]
    chunk, tokens = np.array(shaped, np.float64).reshape(-1, 2).T
    return chunk.reshape(lengths.shape), tokens.reshape(lengths.shape)


def prefill_seconds(
    config: PricedModel,
    hardware: Hardware,
    *,
    prompt_tokens: npt.ArrayLike,
    page_size: int,
    chips: int = 1,
    weight_bytes: float = 2,
    amounts: Mapping[str, Any] | None = None,
) -> Any:
    """Seconds from a prompt to the first tokens of its samples, `[...]`; arguments as in `prefill_amounts`, whose
    `amounts` can be given.
    """
    if amounts is None:
        amounts = prefill_amounts(config, prompt_tokens=prompt_tokens, page_size=page_size, weight_bytes=weight_bytes)
    overhead = hardware.prompt_seconds + hardware.overhead_seconds(config.num_layers, config.vocab_size, 1)
    chunk, tokens = padded_prompt(prompt_tokens, page_size)
    waiting = communication_seconds(config, hardware, chips, chunk, activation_bytes=activation_bytes(weight_bytes)) * (
        tokens / chunk
    )
    return hardware.seconds(split_over_chips(amounts, config, chips)) + overhead + waiting


def prefill_joules(
    config: PricedModel,
    hardware: Hardware,
    seconds: Any,
    *,
    prompt_tokens: npt.ArrayLike,
    page_size: int,
    chips: int = 1,
    weight_bytes: float = 2,
    amounts: Mapping[str, Any] | None = None,
) -> Any:
    """Joules of a prefill over all chips, `[...]`, as in `step_joules` and `prefill_seconds`."""
    if hardware.watts is None:
        return None
    if amounts is None:
        amounts = prefill_amounts(config, prompt_tokens=prompt_tokens, page_size=page_size, weight_bytes=weight_bytes)
    drawn = hardware.joules(split_over_chips(amounts, config, chips), seconds)
    return None if drawn is None else chips * drawn
