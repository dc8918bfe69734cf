"""What generating samples costs in FLOPs and memory reads, under three named conventions.

Every amount is in units of 1e12 (Tera-eFLOPs). Memory is bytes times the hardware's intensity I, so that both add up:
eFLOPs = C_comp + I * C_mem (the paper's equation 3).

`traffic` (default): what an engine really computes and reads, token by token; equal to a sum over the tokens. Left
    out: writes, norms, softmax, sampling, page tables, and what prefill's attention reads. Weight reads count when
    `batch` is given.
`paper`: equations (1)-(4), (8) and (9) as published, integral in length.
`upstream`: the formulas of the paper's published code with its defects, to reproduce published numbers.

conventions.py defines each of them in full.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kinetics_jax.config import ModelConfig
from kinetics_jax.economics import conventions
from kinetics_jax.economics.conventions import Components, CostError
from kinetics_jax.economics.estimators import expected_max
from kinetics_jax.economics.hardware import Hardware
from kinetics_jax.economics.hardware import hardware as hardware_named
from kinetics_jax.policies import POLICIES, Dense, Policy

CONVENTIONS = ("traffic", "paper", "upstream")
UNIT = 1e12
DENSE = Dense()


@dataclasses.dataclass(frozen=True, eq=False)
class Cost:
    """Cost in Tera-eFLOPs: float64 scalars, or arrays of one shape.

    `parts` names every component and adds up to `total`; the names that end in `_reads` are memory, times I.
    `flops` is the hardware's peak FLOP/s, None when only an intensity was given.
    """

    compute: Any
    memory: Any
    parts: Mapping[str, Any]
    flops: float | None = None

    @property
    def total(self) -> Any:
        """Equation (4): compute plus memory."""
        return self.compute + self.memory

    @property
    def seconds(self) -> Any:
        """Seconds on the hardware when arithmetic and reads overlap in full (roofline); None without hardware."""
        return None if self.flops is None else np.maximum(self.compute, self.memory) * UNIT / self.flops

    @property
    def additive_seconds(self) -> Any:
        """Seconds when nothing overlaps: the paper's "B200-seconds" on `b200-fp8`. None without hardware."""
        return None if self.flops is None else self.total * UNIT / self.flops


def generation_cost(
    config: ModelConfig,
    *,
    prompt_tokens: npt.ArrayLike,
    output_tokens: npt.ArrayLike,
    trials: npt.ArrayLike = 1,
    attention: Policy = DENSE,
    convention: str = "traffic",
    intensity: float | None = None,
    hardware: str | Hardware | None = None,
    kv_bytes: float = 2,
    weight_bytes: float = 2,
    batch: int | None = None,
    shared_prompt: bool = False,
) -> Cost:
    """Cost of `trials` samples of `output_tokens` each for one prompt of `prompt_tokens`.

    The three are whole numbers or arrays that broadcast; so is the result. Over measured lengths take the mean of the
    result, never of the lengths (equation 10). Give `intensity` (FLOP/byte) or `hardware` (a name or Hardware;
    default h100), not both. `kv_bytes` and `weight_bytes` are bytes per element. Only for `traffic`: `batch`, the
    sequences that decode side by side and share every read of the weights (default: the reads are amortised away),
    and `shared_prompt`: what all trials read of the prompt is read once per step (the KV of dense attention and the
    summaries; chosen pages are each trial's own). Raises CostError for what makes no sense or has no meaning in the
    convention. Equations: see conventions.py.
    """
    prompt, output, count = (
        _whole(name, value, least)
        for name, value, least in (
            ("prompt_tokens", prompt_tokens, 0),
            ("output_tokens", output_tokens, 0),
            ("trials", trials, 1),
        )
    )
    intensity, flops = _hardware(intensity, hardware)
    components = _components(
        config, prompt, output, count, attention, convention, kv_bytes, weight_bytes, batch, shared_prompt
    )
    amounts = {name: count * own + shared for name, (own, shared) in components.items()}
    shape = np.broadcast_shapes(prompt.shape, output.shape, count.shape)
    return _cost({name: np.broadcast_to(amount, shape)[()] for name, amount in amounts.items()}, intensity, flops)


def best_of_n_cost(
    config: ModelConfig,
    *,
    prompt_tokens: int,
    output_lengths: npt.ArrayLike,
    trials: npt.ArrayLike,
    attention: Policy = DENSE,
    convention: str = "traffic",
    intensity: float | None = None,
    hardware: str | Hardware | None = None,
    kv_bytes: float = 2,
    weight_bytes: float = 2,
    batch: int | None = None,
    shared_prompt: bool = False,
) -> Cost:
    """Expected cost of `trials` samples of one problem, their lengths drawn from `output_lengths [samples]`.

    `trials` is a whole number or an array; the result has its shape. In `paper` and `upstream` this is the mean of
    `generation_cost` over the lengths (equation 10): what trials share is charged for a trial of average length. In
    `traffic` with `shared_prompt` it is charged until the last of the trials ends, as the exact expectation over
    draws without replacement. Other arguments and errors as in `generation_cost`; CostError without a length,
    EstimateError when that expectation needs more trials than there are lengths.
    """
    prompt, count = _whole("prompt_tokens", prompt_tokens, 0), _whole("trials", trials, 1)
    lengths = _whole("output_lengths", output_lengths, 0)
    if prompt.ndim or lengths.ndim != 1 or not lengths.size:
        raise CostError(
            f"best_of_n_cost: one prompt length and a list of output lengths are needed, got shapes "
            f"{prompt.shape} and {lengths.shape}"
        )
    intensity, flops = _hardware(intensity, hardware)
    flat = np.atleast_1d(count).ravel()
    components = _components(
        config, prompt, lengths[:, None], flat, attention, convention, kv_bytes, weight_bytes, batch, shared_prompt
    )
    amounts = {}
    for name, (own, shared) in components.items():
        own, shared = (np.broadcast_to(part, (lengths.size, flat.size)) for part in (own, shared))
        if shared_prompt:  # everything shared grows with length: the longest trial has the largest amount
            once = np.array([expected_max(shared[:, i], int(trial)) for i, trial in enumerate(flat)])
        else:
            once = np.mean(shared, axis=0)
        amounts[name] = (flat * np.mean(own, axis=0) + once).reshape(count.shape)[()]
    return _cost(amounts, intensity, flops)


def phi(config: ModelConfig, prompt_tokens: npt.ArrayLike, output_tokens: npt.ArrayLike, intensity: float) -> Any:
    """Attention over parameter cost, [2 r L_in D + (r + I) D L_out] / 2P, with P of the `paper` convention.

    As published: for many trials, which share the reads of the prompt. Whole numbers or arrays that broadcast,
    `intensity` in FLOP/byte; returns float64 of the broadcast shape. Raises CostError for negative lengths.
    """
    prompt = _whole("prompt_tokens", prompt_tokens, 0)
    output = _whole("output_tokens", output_tokens, 0)
    attention = 2 * config.group * prompt + (config.group + intensity) * output
    return attention * config.kv_elements_per_token / (2 * config.active_parameters)


def _whole(name: str, value: npt.ArrayLike, least: int) -> np.ndarray:
    """The value as a float64 array, exact for token counts and their squares. Refuses fractions and NaN."""
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or not np.all((array >= least) & (array == np.floor(array))):
        raise CostError(f"{name} must be whole numbers, at least {least}, got {value}")
    return array.astype(np.float64)


def _hardware(intensity: float | None, hardware: str | Hardware | None) -> tuple[float, float | None]:
    if intensity is not None and hardware is not None:
        raise CostError("give intensity= or hardware=, not both: the hardware has an intensity of its own")
    if intensity is not None:
        if not intensity > 0:
            raise CostError(f"intensity must be positive (FLOP/byte), got {intensity}")
        return float(intensity), None
    chip = hardware if isinstance(hardware, Hardware) else hardware_named(hardware or "h100")
    return chip.intensity, chip.flops


def _cost(amounts: dict[str, Any], intensity: float, flops: float | None) -> Cost:
    parts = {name: v * (intensity if name.endswith("_reads") else 1) / UNIT for name, v in amounts.items()}
    memory = sum(value for name, value in parts.items() if name.endswith("_reads"))
    compute = sum(value for name, value in parts.items() if not name.endswith("_reads"))
    return Cost(compute=compute, memory=memory, parts=parts, flops=flops)


def _components(
    config: ModelConfig,
    prompt: np.ndarray,
    output: np.ndarray,
    trials: np.ndarray,
    policy: Policy,
    convention: str,
    kv_bytes: float,
    weight_bytes: float,
    batch: int | None,
    shared_prompt: bool,
) -> Components:
    if convention not in CONVENTIONS:
        raise CostError(f"convention {convention!r} is not known (known: {', '.join(CONVENTIONS)})")
    if not isinstance(policy, tuple(POLICIES.values())):
        raise CostError(f"the cost of attention {policy} is not defined")
    if not (kv_bytes > 0 and weight_bytes > 0):
        raise CostError(f"kv_bytes and weight_bytes must be positive, got {kv_bytes} and {weight_bytes}")
    if batch is not None and batch < 1:
        raise CostError(f"batch must be at least 1, got {batch}")
    if convention == "traffic":
        return conventions.traffic(config, prompt, output, policy, kv_bytes, weight_bytes, batch, shared_prompt)
    if batch is not None or shared_prompt:
        raise CostError(f'batch and shared_prompt have no meaning in the {convention} convention; use "traffic"')
    if convention == "paper":
        return conventions.paper(config, prompt, output, policy, kv_bytes)
    if kv_bytes != 2:
        raise CostError('the upstream convention fixes two bytes per KV element; use "paper" or "traffic"')
    return conventions.upstream(config, prompt, output, trials, policy)
