"""The cost of generating samples in FLOPs and memory reads, under three named conventions.

Every amount is in units of 1e12 (Tera-eFLOPs). Memory is bytes times the hardware's intensity I, so that both add up:
eFLOPs = C_comp + I * C_mem (the paper's equation 3).

`traffic` (default): what an engine really computes and reads, token by token; equal to a sum over the tokens. Left
    out: writes, norms, softmax, sampling, page tables, and what prefill's attention reads. Weight reads count when
    `batch` is given, communication on several `chips`. Defined in full in traffic.py and links.py.
`paper`: equations (1)-(4), (8) and (9) as published, integral in length. In conventions.py.
`upstream`: the formulas of the paper's published code with its defects, to reproduce published numbers. There too.

docs/economics.md has the equations of all three.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from kinetics_jax.attention.policies.base import AttentionPolicy, no_formula
from kinetics_jax.attention.policies.dense import DENSE
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs import conventions
from kinetics_jax.costs.architectures.architecture import Architecture, PricedModel
from kinetics_jax.costs.conventions import Components, CostError
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.costs.hardware import hardware as hardware_named
from kinetics_jax.costs.links import activation_bytes, communication_seconds
from kinetics_jax.costs.traffic import traffic
from kinetics_jax.errors import spelled
from kinetics_jax.stats.estimators import expected_max

CONVENTIONS = ("traffic", "paper", "upstream")
COMMUNICATION = "communication"  # what the names of its parts end in
UNIT = 1e12
MAX_COUNT = 1 << 31  # of tokens, trials and sequences: beyond any of them
MAX_INTENSITY = 1e12


@dataclasses.dataclass(frozen=True, eq=False)
class Cost:
    """Cost in Tera-eFLOPs: float64 scalars, or arrays of one shape.

    `parts` names every component and adds up to `total`; the names that end in `_reads` are memory, times I. In
    `traffic` what is attended to falls into `dense_`, `forced_` and `chosen_`, and `window_` where an architecture has
    windows; `attention` and `kv_reads` are their sums, in every convention. `shared` says, by the same names, what of
    the parts all trials of a prompt cost once.
    Amounts are of all `chips` together, which work on every sequence together; `communication` (in the parts too) is
    what they could have computed while they wait for each other, 0 on one chip. `hardware` is None when only an
    intensity was given. `overhead_seconds` is what the decode steps take beside arithmetic and reads; 0 for a
    data-sheet chip, and without a batch that shares it.
    """

    compute: Any
    memory: Any
    parts: Mapping[str, Any]
    shared: Mapping[str, Any]
    hardware: Hardware | None = None
    overhead_seconds: Any = 0.0
    communication: Any = 0.0
    chips: int = 1

    @property
    def total(self) -> Any:
        """Equation (4): compute plus memory, and communication on several chips."""
        return self.compute + self.memory + self.communication

    @property
    def weight_reads(self) -> Any:
        """Reads of the weights, times I: of decode and prefill; 0 where they are amortised away."""
        return sum(part for name, part in self.parts.items() if name.endswith("weight_reads"))

    @property
    def roofline(self) -> Any:
        """The larger of compute and memory: what is left when arithmetic and reads overlap in full; communication
        overlaps with neither.
        """
        return np.maximum(self.compute, self.memory) + self.communication

    @property
    def attention(self) -> Any:
        """Decode's attention compute, of all layers, forced and chosen; excluding search and prefill."""
        return self._sum("attention")

    @property
    def kv_reads(self) -> Any:
        """Decode's reads of K and V, of all layers, forced and chosen, times I; excluding summaries."""
        return self._sum("kv_reads")

    @property
    def seconds(self) -> Any:
        """Seconds on the hardware in its own form, overheads included: of the roofline for every data-sheet chip, of
        the sum for a calibrated profile that says so. None without hardware.
        """
        if self.hardware is None:
            return None
        return self._seconds(self.hardware)

    @property
    def additive_seconds(self) -> Any:
        """Seconds when nothing overlaps: the paper's "B200-seconds" on `b200-fp8`. None without hardware."""
        if self.hardware is None:
            return None
        return self._seconds(dataclasses.replace(self.hardware, form="sum"))

    @property
    def price(self) -> Any:
        """`seconds` of all chips at the hardware's price per hour, in its currency. None without either."""
        if self.hardware is None or self.hardware.price_per_hour is None:
            return None
        return self.seconds / 3600 * self.hardware.price_per_hour * self.chips

    @property
    def joules(self) -> Any:
        """What all chips draw in `seconds` over this work. None without hardware whose energy was measured."""
        drawn = None if self.hardware is None else self.hardware.joules(self._amounts(self.hardware), self.seconds)
        return None if drawn is None else self.chips * drawn

    def mean(self, axis: int | tuple[int, ...] | None = None) -> Cost:
        """Expected cost over measured lengths (equation 10): the mean over one axis, several or all.

        Its `roofline` and `seconds` are of the mean work, as of many attempts that run side by side.
        """

        def mean(value: Any) -> Any:
            return np.mean(value, axis=axis)

        return Cost(
            compute=mean(self.compute),
            memory=mean(self.memory),
            parts={name: mean(value) for name, value in self.parts.items()},
            shared={name: mean(value) for name, value in self.shared.items()},
            hardware=self.hardware,
            overhead_seconds=mean(np.broadcast_to(self.overhead_seconds, np.shape(self.compute))),
            communication=mean(np.broadcast_to(self.communication, np.shape(self.compute))),
            chips=self.chips,
        )

    def _seconds(self, chip: Hardware) -> Any:
        """Seconds of one chip's share in the chip's form; the chips are equally busy, copies of KV heads included."""
        waiting = self.communication * (UNIT / self.chips / chip.flops)
        return chip.seconds(self._amounts(chip)) + waiting + self.overhead_seconds

    def _amounts(self, chip: Hardware) -> dict[str, Any]:
        """FLOPs and bytes of one chip's share."""
        return {
            name: part * (UNIT / self.chips / (chip.intensity if name.endswith("_reads") else 1))
            for name, part in self.parts.items()
            if not name.endswith(COMMUNICATION)
        }

    def _sum(self, name: str) -> Any:
        kinds = (name, f"dense_{name}", f"forced_{name}", f"chosen_{name}", f"window_{name}")
        return sum(self.parts[kind] for kind in kinds if kind in self.parts)


def split_over_chips(amounts: Mapping[str, Any], config: PricedModel, chips: int) -> dict[str, Any]:
    """The busiest chip's share of every component when `chips` work on every sequence together (tensor parallel).

    Arithmetic and weights are split evenly; KV heads go to the chips whole, so reads of KV and summaries shrink by no
    more than the number of KV heads, beyond which chips read copies. Communication stands in links.py. Raises CostError
    for less than one chip.
    """
    if chips < 1:
        raise CostError(f"chips must be at least 1, got {chips}")
    cache = ("kv_reads", "search_reads", "state_reads")
    if isinstance(config, Architecture):
        shares = {name: config.largest_share(name, chips) for name in amounts if name.endswith(cache)}
    else:
        heads = -(-config.num_kv_heads // chips) / config.num_kv_heads
        shares = {name: heads for name in amounts if name.endswith(cache)}
    return {name: amount * shares.get(name, 1 / chips) for name, amount in amounts.items()}


def generation_cost(
    config: PricedModel,
    *,
    prompt_tokens: npt.ArrayLike,
    output_tokens: npt.ArrayLike,
    trials: npt.ArrayLike = 1,
    attention: AttentionPolicy = DENSE,
    convention: str = "traffic",
    intensity: float | None = None,
    hardware: str | Hardware | None = None,
    kv_bytes: float = 2,
    weight_bytes: float = 2,
    batch: npt.ArrayLike | None = None,
    chips: int = 1,
    shared_prompt: bool = False,
) -> Cost:
    """Cost of `trials` samples of `output_tokens` each for one prompt of `prompt_tokens`.

    The three are whole numbers or arrays that broadcast; so is the result. Over measured lengths take the mean of the
    result, never of the lengths (equation 10). Give `intensity` (FLOP/byte) or `hardware` (a name or Hardware;
    default h100), not both. `kv_bytes` and `weight_bytes` are bytes per element. `chips` work on every sequence
    together: the amounts are of all of them. Only for `traffic`: `batch`, the sequences that decode side by side and
    share every read of the weights, whole numbers that broadcast too (default: the reads are amortised away; how many
    fit says `batching.room`); communication between chips; and `shared_prompt`: whole pages of the prompt are
    read once per step for all trials, in layers of dense attention, on one chip. Raises CostError if an argument makes
    no sense or has no meaning in the convention. Equations: see docs/economics.md.
    """
    prompt, output, count = (
        _whole(name, value, least)
        for name, value, least in (
            ("prompt_tokens", prompt_tokens, 0),
            ("output_tokens", output_tokens, 0),
            ("trials", trials, 1),
        )
    )
    intensity, chip = _hardware(intensity, hardware)
    side_by_side = None if batch is None else _whole("batch", batch, 1)
    components = _components(
        config,
        prompt,
        output,
        count,
        attention,
        convention=convention,
        kv_bytes=kv_bytes,
        weight_bytes=weight_bytes,
        batch=side_by_side,
        chips=chips,
        chip=chip,
        shared_prompt=shared_prompt,
    )
    sizes = (prompt, output, count) if side_by_side is None else (prompt, output, count, side_by_side)
    shape = np.broadcast_shapes(*(size.shape for size in sizes))

    def whole(amount: Any) -> Any:
        return np.broadcast_to(amount, shape)[()]

    amounts = {name: whole(count * own + (0 if once is None else once)) for name, (own, once) in components.items()}
    shared = {name: whole(once) for name, (_, once) in components.items() if once is not None}
    overhead = whole(count * _overhead(config, output, chip, side_by_side))
    return _cost(amounts, shared, intensity, chip, overhead, chips)


def best_of_n_cost(
    config: PricedModel,
    *,
    prompt_tokens: int,
    output_lengths: npt.ArrayLike,
    trials: npt.ArrayLike,
    attention: AttentionPolicy = DENSE,
    convention: str = "traffic",
    intensity: float | None = None,
    hardware: str | Hardware | None = None,
    kv_bytes: float = 2,
    weight_bytes: float = 2,
    batch: int | None = None,
    chips: int = 1,
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
    intensity, chip = _hardware(intensity, hardware)
    flat = np.atleast_1d(count).ravel()
    side_by_side = None if batch is None else _whole("batch", batch, 1)
    components = _components(
        config,
        prompt,
        lengths[:, None],
        flat,
        attention,
        convention=convention,
        kv_bytes=kv_bytes,
        weight_bytes=weight_bytes,
        batch=side_by_side,
        chips=chips,
        chip=chip,
        shared_prompt=shared_prompt,
    )

    def expected(once: Any) -> np.ndarray:  # [trials]
        if once is None:
            return np.zeros(flat.shape)
        once = np.broadcast_to(once, (lengths.size, flat.size))
        if shared_prompt:  # everything shared grows with length: the longest trial has the largest amount
            return np.array([expected_max(once[:, i], int(trial)) for i, trial in enumerate(flat)])
        return np.mean(once, axis=0)

    def whole(amount: Any) -> Any:
        return np.broadcast_to(amount, flat.shape).reshape(count.shape)[()]

    once = {name: expected(amount) for name, (_, amount) in components.items()}
    amounts = {name: whole(flat * _mean(own) + once[name]) for name, (own, _) in components.items()}
    shared = {name: whole(once[name]) for name, (_, amount) in components.items() if amount is not None}
    overhead = whole(flat * _mean(_overhead(config, lengths, chip, side_by_side)))
    return _cost(amounts, shared, intensity, chip, overhead, chips)


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
    """The value as a float64 array, exact for token counts and their squares. Refuses fractions, NaN and numbers beyond
    MAX_COUNT.
    """
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or not np.all((array >= least) & (array == np.floor(array))):
        raise CostError(f"{name} must be whole numbers, at least {least}, got {spelled(value)}")
    if np.any(array > MAX_COUNT):
        raise CostError(f"{name} must be at most {MAX_COUNT}, got {array.max():g}")
    return array.astype(np.float64)


def _hardware(intensity: float | None, hardware: str | Hardware | None) -> tuple[float, Hardware | None]:
    if intensity is not None and hardware is not None:
        raise CostError("give intensity= or hardware=, not both: the hardware has an intensity of its own")
    if intensity is not None:
        if not 0 < intensity <= MAX_INTENSITY:
            raise CostError(f"intensity must be positive (FLOP/byte), at most {MAX_INTENSITY:g}, got {intensity}")
        return float(intensity), None
    chip = hardware if isinstance(hardware, Hardware) else hardware_named(hardware or "h100")
    return chip.intensity, chip


def _overhead(config: PricedModel, output: np.ndarray, chip: Hardware | None, batch: np.ndarray | None) -> Any:
    """Seconds of one trial's decode steps beside arithmetic and reads; a batch shares them, as it does the weights."""
    if chip is None or batch is None:
        return 0.0
    return np.maximum(output - 1, 0) * chip.overhead_seconds(config.num_layers, config.vocab_size, batch) / batch


def _mean(own: Any) -> Any:
    """Over lengths, the first axis, where an amount depends on them; otherwise it is its own mean."""
    return np.mean(own, axis=0) if np.ndim(own) else own


def _cost(
    amounts: dict[str, Any], shared: dict[str, Any], intensity: float, chip: Hardware | None, overhead: Any, chips: int
) -> Cost:
    def priced(amounts: dict[str, Any]) -> dict[str, Any]:
        return {name: v * ((intensity if name.endswith("_reads") else 1) / UNIT) for name, v in amounts.items()}

    parts = priced(amounts)
    memory = sum(value for name, value in parts.items() if name.endswith("_reads"))
    communication = sum(value for name, value in parts.items() if name.endswith(COMMUNICATION))
    compute = sum(value for name, value in parts.items() if not name.endswith(("_reads", COMMUNICATION)))
    return Cost(compute, memory, parts, priced(shared), chip, overhead, communication, chips)


def _components(
    config: PricedModel,
    prompt: np.ndarray,
    output: np.ndarray,
    trials: np.ndarray,
    policy: AttentionPolicy,
    *,
    convention: str,
    kv_bytes: float,
    weight_bytes: float,
    batch: np.ndarray | None,
    chips: int,
    chip: Hardware | None,
    shared_prompt: bool,
) -> Components:
    """FLOPs and bytes of all chips together, each trial's own and what all trials cost once."""
    if convention not in CONVENTIONS:
        raise CostError(f"convention {convention!r} is not known (known: {', '.join(CONVENTIONS)})")
    if not isinstance(policy, AttentionPolicy):
        raise CostError(f"attention must be a policy such as kj.Dense(), got {policy!r:.80}")
    if policy.price == "measured":
        raise CostError(no_formula(policy))
    if not (kv_bytes > 0 and weight_bytes > 0):
        raise CostError(f"kv_bytes and weight_bytes must be positive, got {kv_bytes} and {weight_bytes}")
    if isinstance(config, Architecture) and str(policy) != "dense" and not config.follows(policy):
        raise CostError(
            f"{config.name or 'this model'}: {policy} changes none of its layers, which select by design or do not "
            "grow; leave the attention out (dense is the model as it is)"
        )
    if convention == "traffic":
        if shared_prompt and chips > 1:
            raise CostError("shared_prompt is for one chip: the engine shares no prompts on a mesh")
        counted = traffic(config, prompt, output, policy, kv_bytes, weight_bytes, batch, shared_prompt)
        together = _together(counted, config, chips)
        if chip is not None and chips > 1:
            together |= _communication(config, prompt, output, chip, chips, batch, activation_bytes(weight_bytes))
        return together
    if isinstance(config, Architecture):
        raise CostError(f"the {convention} convention knows full attention alone; price {config.name} by traffic")
    if batch is not None or shared_prompt:
        raise CostError(f'batch and shared_prompt have no meaning in the {convention} convention; use "traffic"')
    if convention == "paper":
        return _together(conventions.paper(config, prompt, output, policy, kv_bytes), config, chips)
    if kv_bytes != 2:
        raise CostError('the upstream convention fixes two bytes per KV element; use "paper" or "traffic"')
    return _together(conventions.upstream(config, prompt, output, trials, policy), config, chips)


def _together(components: Components, config: PricedModel, chips: int) -> Components:
    """What all chips do together: each as much as the busiest."""
    if chips == 1:
        return components
    share = {
        name: chips * part for name, part in split_over_chips(dict.fromkeys(components, 1.0), config, chips).items()
    }
    return {
        name: (share[name] * own, None if once is None else share[name] * once)
        for name, (own, once) in components.items()
    }


def _communication(
    config: PricedModel,
    prompt: np.ndarray,
    output: np.ndarray,
    chip: Hardware,
    chips: int,
    batch: np.ndarray | None,
    number: float,
) -> Components:
    """FLOPs that all chips could have done while they wait; a batch shares the latency of a step's all-reduces. Without
    a batch the latency is amortised away, as the weights are. `number`: bytes of an activation.
    """

    def lost(tokens: Any) -> Any:
        return chips * chip.flops * communication_seconds(config, chip, chips, tokens, activation_bytes=number)

    steps = np.maximum(output - 1, 0)
    each = lost(1.0) - lost(0.0) if batch is None else lost(batch) / batch
    return {
        f"prefill_{COMMUNICATION}": (0, lost(prompt) * np.minimum(prompt, 1)),
        COMMUNICATION: (each * steps, None),
    }
