"""What users set of an engine and of sampling, beside the attention policy."""

from __future__ import annotations

import dataclasses
import math

from kinetics_jax.errors import UserError
from kinetics_jax.padding import PREFILL_CHUNK

MAX_TOKENS = 1 << 24  # beyond any context: a larger number is surely a typo
LIMITS = {"slots": 1 << 16, "chunk": 1 << 16, "num_pages": 1 << 30, "prefill_chunk": 1 << 24}


class SamplingError(UserError):
    """A sampling setting that makes no sense; the message names it, its value and the values it may have."""


class RequestError(UserError):
    """A request, or engine settings, that cannot be run; the message names the problem or the setting and the cure."""


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """How an engine decodes.

    `slots` sequences decode side by side; a chunk is at most `chunk` decode steps, and ends early once `patience` slots
    have stopped while samples wait. `num_pages` bounds the KV pool (default: every slot's worst case, or as much of it
    as the device's memory holds); when it runs dry, the youngest samples are preempted: their pages move to the host's
    memory until there is room. On a mesh slots and pages are those of all shards. Prompts of more than `prefill_chunk`
    tokens are prefilled in chunks of that many (rounded up to whole tiles of attention). `shared_prefix`: whether dense
    layers read the pages of a prompt once for all its samples, which rounds differently; None: where the cost model
    finds that it pays for the prompts and samples of the run. Raises RequestError for a value out of range.
    """

    slots: int = 32
    chunk: int = 32
    num_pages: int | None = None
    prefill_chunk: int = PREFILL_CHUNK
    shared_prefix: bool | None = False

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= limit:
                raise RequestError(f"engine: {name} must be in 1 … {limit}, got {value}")


def patience(slots: int) -> int:
    """How many slots stop before a chunk ends early, while samples wait for a slot: an eighth of all."""
    return max(1, slots // 8)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn, in the order of Hugging Face's logits processors: temperature, top-k, top-p, min-p.

    `temperature = 0` is greedy. `top_k = 0`, `top_p = 1` and `min_p = 0` switch a filter off. `max_tokens` bounds the
    generated tokens, the end token included. `seed` with (problem, sample, position) fixes every draw. A sample ends
    early once its last `repetition_window` tokens repeat with one period of at most a third of them; 0: it never does.
    Raises SamplingError for a value out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 1024
    seed: int = 0
    repetition_window: int = 0

    def __post_init__(self) -> None:
        bounds = (
            (
                "temperature",
                self.temperature == 0 or 1e-6 <= self.temperature < math.inf,
                "0 (greedy), or from 1e-6 up",
            ),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1] (1 switches it off)"),
            ("top_k", self.top_k >= 0, "at least 0 (0 switches it off)"),
            ("min_p", 0 <= self.min_p < 1, "in [0, 1) (0 switches it off)"),
            ("max_tokens", 1 <= self.max_tokens <= MAX_TOKENS, f"in 1 … {MAX_TOKENS}"),
            ("seed", 0 <= self.seed < 2**32, "in 0 … 2**32 - 1"),
            (
                "repetition_window",
                self.repetition_window == 0 or 16 <= self.repetition_window <= MAX_TOKENS,
                f"0 (never stop), or in 16 … {MAX_TOKENS}: below that, ordinary text repeats itself",
            ),
        )
        for name, good, want in bounds:
            if not good:
                raise SamplingError(f"sampling: {name} must be {want}, got {getattr(self, name)}")
