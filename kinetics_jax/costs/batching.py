"""How many sequences decode side by side, and so share every read of the weights: what is asked for, or what fits."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.counts import triangle
from kinetics_jax.attention.policies.dense import DENSE
from kinetics_jax.costs.architectures.architecture import PricedModel
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.costs.memory import fits

# `fit`: as many as the memory holds on average; a number: that many; None: so many that the weights cost nothing;
# `auto`: `fit` in the traffic convention on known hardware, else None.
Batch = int | Literal["fit", "auto"] | None
Rule = Literal["fit", "given", "none"]
MAX_BATCH = 1 << 16  # sequences that a command may ask for


def weight_words(rule: str, batch: float | None = None) -> str:
    """What a cost holds of the weights, by a `Rule`, for labels and notes; `batch` is the one that was given. "own":
    the samples' source states the cost.
    """
    if rule == "own":
        return "as the samples' source states them"
    if rule == "none":
        return "weights left out"
    number = "the batch asked for" if batch is None else f"a batch of {batch:.0f}"
    return f"weights shared by {'the batch that fits' if rule == 'fit' else number}"


@dataclasses.dataclass(frozen=True)
class Room:
    """Sequences that fit beside the weights; 0: not one does.

    `batch`: on average, when each holds the mean of its tokens over its steps, for the engine sets samples aside while
    their neighbours grow. `full`: when every one may grow to its prompt and its cap.
    """

    batch: int
    full: int


def resident_tokens(prompt_tokens: npt.ArrayLike, output_tokens: npt.ArrayLike) -> float:
    """Tokens of a sequence that is being decoded, its prompt included: the mean over all decode steps of all samples.

    `prompt_tokens [...]` and `output_tokens [...]` broadcast, one entry per sample. A step at random belongs to a long
    sample more often than to a short one: of samples of one length the mean is the prompt and half of the output, of
    unlike ones more than half of their mean.
    """
    prompt, output = np.broadcast_arrays(np.asarray(prompt_tokens, np.float64), np.asarray(output_tokens, np.float64))
    steps = np.maximum(output - 1, 0)
    if not np.sum(steps):
        return float(np.mean(prompt)) + 1
    return float(np.sum(prompt * steps + triangle(steps)) / np.sum(steps))


def room(
    config: PricedModel,
    hardware: str | Hardware,
    *,
    prompt_tokens: npt.ArrayLike,
    output_tokens: npt.ArrayLike,
    cap: int | None = None,
    chips: int = 1,
    attention: AttentionPolicy = DENSE,
    shared_tokens: int = 0,
    kv_bytes: float = 2,
    weight_bytes: float = 2,
) -> Room:
    """How many of such samples decode side by side on `chips` chips together; arguments as in `memory.fits`.

    `prompt_tokens [...]` and `output_tokens [...]` are of samples, as in `resident_tokens`; `cap` is the most tokens
    that one may get, by default the longest. Where one sample at its cap does not fit, none does: it could not end.
    """
    longest = int(np.max(output_tokens)) if cap is None else cap
    sizes: dict[str, Any] = {"chips": chips, "attention": attention, "shared_tokens": shared_tokens}
    sizes |= {"kv_bytes": kv_bytes, "weight_bytes": weight_bytes}
    full = fits(config, hardware, tokens=max(1, int(np.max(prompt_tokens)) + longest), **sizes).sequences
    if not full:
        return Room(0, 0)
    resident = math.ceil(resident_tokens(prompt_tokens, output_tokens))
    return Room(max(full, fits(config, hardware, tokens=resident, **sizes).sequences), full)


def too_many(batch: int, room: Room, where: str) -> str:
    """A line for a batch that does not fit."""
    return (
        f"batch {batch} does not fit on {where}: {room.batch} sequences do on average ({room.full} if each may grow to "
        "its cap), so the weights cost more than is counted"
    )
