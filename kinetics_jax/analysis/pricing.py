"""How the samples of a pool are priced: convention, chip, widths, and the batch that shares reads of the weights."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Int

from kinetics_jax.analysis.samples import Pool
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.costs.batching import Batch, Room, Rule, room, too_many
from kinetics_jax.costs.conventions import CostError
from kinetics_jax.costs.cost import CONVENTIONS, Cost, generation_cost
from kinetics_jax.costs.hardware import Hardware, chips_words
from kinetics_jax.costs.hardware import hardware as hardware_named
from kinetics_jax.costs.links import unknown_link
from kinetics_jax.costs.memory import least_chips
from kinetics_jax.costs.traffic import touched_parameters
from kinetics_jax.costs.widths import Widths, widths
from kinetics_jax.errors import spelled


@dataclasses.dataclass(frozen=True)
class Pricing:
    """Arguments of `cost.generation_cost`, of which some depend on the pool.

    `batch` is how many sequences decode side by side and share the reads of the weights (`batching.Batch`): "fit" takes
    for each pool and cap what fits the memory of `chips` chips, and the convention `traffic` on hardware does so by
    default ("auto"). The published conventions have no weights, and an intensity alone has no memory: there "auto" is
    None, the weights amortised away, and "fit" is refused. `kv_bytes` and `weight_bytes` are by default those of the
    type in which a pool's run was made, in `traffic`; published conventions take two. Raises CostError for what makes
    no sense, HardwareError for an unknown chip.
    """

    convention: str = "traffic"
    hardware: str | Hardware | None = None
    intensity: float | None = None
    kv_bytes: float | None = None
    weight_bytes: float | None = None
    batch: Batch = "auto"
    chips: int = 1
    shared_prompt: bool = False

    def __post_init__(self) -> None:
        if self.convention not in CONVENTIONS:
            raise CostError(f"convention {self.convention!r} is not known (known: {', '.join(CONVENTIONS)})")
        number = isinstance(self.batch, int) and not isinstance(self.batch, bool) and self.batch >= 1
        if self.batch is not None and self.batch not in ("fit", "auto") and not number:
            raise CostError(f'batch must be "fit", None or a whole number from 1 up, got {spelled(self.batch)}')
        if self.batch == "fit" and self.convention != "traffic":
            raise CostError(f'batch has no meaning in the {self.convention} convention; use "traffic"')
        if self.batch == "fit" and self.intensity is not None:
            raise CostError("batch fit needs hardware, whose memory says what fits; an intensity has none")
        if self.chips > 1 and (self.convention != "traffic" or self.intensity is not None):
            raise CostError("several chips have a meaning in the traffic convention on hardware alone")

    @property
    def rule(self) -> Rule:
        """How the batch is found, in a word."""
        if isinstance(self.batch, int):
            return "given"
        default = self.convention == "traffic" and self.intensity is None
        return "fit" if self.batch == "fit" or (self.batch == "auto" and default) else "none"

    @property
    def chip(self) -> Hardware | None:
        """The hardware, None where an intensity prices the reads."""
        if self.intensity is not None:
            return None
        return self.hardware if isinstance(self.hardware, Hardware) else hardware_named(self.hardware or "h100")

    def widths(self, pool: Pool) -> Widths:
        """Bytes of an element of a pool's cache and weights."""
        settings: Mapping[str, Any] = pool.settings if self.convention == "traffic" else {}
        return widths(settings, kv_bytes=self.kv_bytes, weight_bytes=self.weight_bytes)

    def room(self, pool: Pool, cap: int) -> Room | None:
        """What fits of a pool's samples under a cap; None where no memory is known or nothing is shared."""
        chip = self.chip
        if chip is None or self.rule == "none":
            return None
        prompts = [np.full(len(problem.lengths), problem.prompt_tokens) for problem in pool.problems.values()]
        lengths = np.concatenate([problem.lengths for problem in pool.problems.values()])
        kv, weights = self.widths(pool)
        return room(
            pool.priced(),
            chip,
            prompt_tokens=np.concatenate(prompts),
            output_tokens=np.minimum(lengths, cap),
            cap=cap,
            chips=self.chips,
            attention=pool.attention,
            kv_bytes=kv,
            weight_bytes=weights,
        )

    def cost(
        self,
        pool: Pool,
        *,
        prompt_tokens: npt.ArrayLike,
        output_tokens: npt.ArrayLike,
        trials: Any = 1,
        batch: Any,
        attention: AttentionPolicy,
    ) -> Cost:
        """`generation_cost` of a pool's model; `attention` is what `counted.sample_policy` says of the samples; `batch`
        is None or numbers, as `Batches` has them.
        """
        kv, weights = self.widths(pool)
        return generation_cost(
            pool.priced(),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            trials=trials,
            attention=attention,
            convention=self.convention,
            hardware=self.hardware,
            intensity=self.intensity,
            kv_bytes=kv,
            weight_bytes=weights,
            batch=batch,
            chips=self.chips,
            shared_prompt=self.shared_prompt,
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Batches:
    """The batch at every cap of a pool. `used`: what is priced, 0 where not one sequence fits; None without weights.
    `full`: what fits when every sequence may grow to its cap; None where it is not known.
    """

    used: Int[np.ndarray, " caps"] | None
    full: Int[np.ndarray, " caps"] | None


def batches(pool: Pool, pricing: Pricing, caps: npt.ArrayLike) -> Batches:
    """The batches of a pool. Warns where not one sequence fits, where more are asked for than fit, and where what
    connects several chips is not known.
    """
    if pricing.rule == "none":
        return Batches(None, None)
    chip = pricing.chip
    if chip is not None and (unknown := unknown_link(chip, pricing.chips)):
        warnings.warn(unknown, stacklevel=4)
    caps = np.asarray(caps)
    rooms = [pricing.room(pool, int(cap)) for cap in caps]
    known = [each for each in rooms if each is not None]
    if chip is not None and known:
        _warn(pool, pricing, chip, caps, known)
    full = np.array([each.full for each in known]) if known else None
    if isinstance(pricing.batch, int):
        return Batches(np.full(len(caps), pricing.batch), full)
    return Batches(np.array([each.batch for each in known]), full)


def weights_at(pool: Pool, batch: Any) -> np.ndarray:
    """Matrix parameters that a step of one sequence pays for when `batch [...]` share its reads."""
    batch = np.asarray(batch, np.float64)
    return touched_parameters(pool.priced(), batch) / batch


def _warn(pool: Pool, pricing: Pricing, chip: Hardware, caps: np.ndarray, rooms: list[Room]) -> None:
    where = chips_words(pricing.chips, chip.name)
    if isinstance(pricing.batch, int):
        least_room = min(rooms, key=lambda each: each.batch)
        if pricing.batch > least_room.batch:
            warnings.warn(f"{pool}: {too_many(pricing.batch, least_room, where)}", stacklevel=5)
        return
    none = [int(cap) for cap, each in zip(caps, rooms, strict=True) if not each.full]
    if not none:
        return
    kv, weights = pricing.widths(pool)
    prompt = max(int(problem.prompt_tokens) for problem in pool.problems.values())
    longest = prompt + max(none)
    least = least_chips(
        pool.priced(), chip, tokens=longest, attention=pool.attention, kv_bytes=kv, weight_bytes=weights
    )
    cure = f"give --chips {least}, " if least > pricing.chips else ""
    warnings.warn(
        f"{pool}: not one sequence of {prompt + min(none)} tokens fits beside the weights on {where}, so its rows with "
        f"a cap of {min(none)} tokens{' and more' if len(none) > 1 else ''} have batch 0 and no cost; {cure}larger "
        "hardware, or --batch none, which takes the weights for free",
        stacklevel=5,
    )
