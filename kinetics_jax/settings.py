"""What users set of an engine and of sampling, beside the attention policy."""

from __future__ import annotations

import dataclasses
import math
import numbers
from collections.abc import Callable
from typing import Any

from kinetics_jax.errors import UserError
from kinetics_jax.padding import PREFILL_CHUNK

MAX_TOKENS = 1 << 24  # beyond any context: a larger number is surely a typo
MAX_SAMPLES = 1 << 31  # of a problem: an index is an int32 on the device
MAX_DRAFTS = 64  # verified together; far beyond where drafts still agree
LIMITS = {"slots": 1 << 16, "chunk": 1 << 16, "num_pages": 1 << 30, "prefill_chunk": 1 << 24}


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number by its type, of Python, NumPy or jax: no float is, even 20.0, and no bool."""
    if getattr(value, "shape", None) == () and hasattr(value, "dtype"):
        return value.dtype.kind in "iu"
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def whole_number(value: Any, where: str, error: type[UserError]) -> int:
    """The value as Python's int. Raises `error`, beginning with `where`, for what is no whole number by its type."""
    if not is_whole(value):
        cure = f"; write {int(value)}" if isinstance(value, float) and value.is_integer() else ""
        raise error(f"{where} must be a whole number, got {_shown(value)}{cure}")
    return int(value)


def sample_indices(samples: Any, error: type[UserError]) -> list[int]:
    """Indices of samples, each once, as Python's ints. Raises `error` for what is none, or no number of 31 bits."""
    if isinstance(samples, str) or not hasattr(samples, "__iter__"):
        raise error(f"samples must be a list of indices, got {_shown(samples)}")
    indices = [whole_number(index, "a sample's index", error) for index in samples]
    if odd := [index for index in indices if not 0 <= index < MAX_SAMPLES]:
        raise error(f"samples must name indices in 0 … {MAX_SAMPLES - 1}, got {_shown(odd[0])}")
    return indices


def real_number(value: Any, where: str, error: type[UserError]) -> float:
    """The value as Python's float or int. Raises `error`, beginning with `where`, for what is no number."""
    if is_whole(value):
        return int(value)
    scalar = getattr(value, "shape", None) == () and "float" in str(getattr(value, "dtype", ""))
    if not scalar and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise error(f"{where} must be a number, got {_shown(value)}")
    return float(value)


def switch(value: Any, where: str, error: type[UserError]) -> bool:
    """The value as Python's bool. Raises `error`, beginning with `where`, for anything else."""
    if not (isinstance(value, bool) or type(value).__name__ == "bool"):  # NumPy's is called so too
        raise error(f"{where} must be True or False, got {_shown(value)}")
    return bool(value)


def _shown(value: Any) -> str:
    """A value as a message shows it: short, and a text told from a number."""
    return f"{value!r:.40}"


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
    finds that it pays for the prompts and samples of the run. `speculate`: how many tokens the policy drafts before one
    dense pass verifies them (`engine.speculation`), so that samples are the dense model's whatever the policy; 0: none.
    Raises RequestError for a value out of range.
    """

    slots: int = 32
    chunk: int = 32
    num_pages: int | None = None
    prefill_chunk: int = PREFILL_CHUNK
    shared_prefix: bool | None = False
    speculate: int = 0

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if value is None and name == "num_pages":
                continue
            value = whole_number(value, f"engine: {name}", RequestError)
            if not 1 <= value <= limit:
                raise RequestError(f"engine: {name} must be in 1 … {limit}, got {_shown(value)}")
            object.__setattr__(self, name, value)
        ahead = whole_number(self.speculate, "engine: speculate", RequestError)
        if not 0 <= ahead <= MAX_DRAFTS:
            raise RequestError(f"engine: speculate must be in 0 … {MAX_DRAFTS} (0 switches it off), got {ahead}")
        if ahead >= self.chunk:
            raise RequestError(
                f"engine: a round of {ahead} drafts gives up to {ahead + 1} tokens, and a chunk has {self.chunk}; "
                "lower speculate or raise chunk"
            )
        object.__setattr__(self, "speculate", ahead)
        if self.shared_prefix is not None:
            object.__setattr__(self, "shared_prefix", switch(self.shared_prefix, "engine: shared_prefix", RequestError))


def patience(slots: int) -> int:
    """How many slots stop before a chunk ends early, while samples wait for a slot: an eighth of all."""
    return max(1, slots // 8)


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn, in the order of Hugging Face's logits processors: temperature, top-k, top-p, min-p.

    `temperature = 0` is greedy. `top_k = 0`, `top_p = 1` and `min_p = 0` switch a filter off. `max_tokens` bounds the
    generated tokens, the end token included. `seed` with (problem, sample, position) fixes every draw. A sample ends
    early once its last `repetition_window` tokens repeat with one period of at most a third of them; 0: it never does.
    `known_ids_only` draws no id that the checkpoint's tokenizer has no token for, as padded vocabularies have; by
    default they are drawn like any other, as Hugging Face does. Numbers may be Python's, NumPy's or jax's. Raises
    SamplingError for a value of another type or out of range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 1024
    seed: int = 0
    repetition_window: int = 0
    known_ids_only: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            read = {"float": real_number, "int": whole_number, "bool": switch}[str(field.type)]
            value = read(getattr(self, field.name), f"sampling: {field.name}", SamplingError)
            object.__setattr__(self, field.name, value)
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
                raise SamplingError(f"sampling: {name} must be {want}, got {_shown(getattr(self, name))}")


@dataclasses.dataclass(frozen=True)
class DrawRules:
    """What one request asks for beside its `Sampling`; nothing by default, which costs nothing.

    `min_tokens`: no end token and no stop id is drawn before so many tokens. `repetition_penalty` (1: none) divides the
    positive logits, and multiplies the negative ones, of tokens that the prompt or the output holds;
    `presence_penalty` (0: none) is taken from the logits of tokens that the output holds. With `repetition_block`, the
    sampling's `repetition_window` is that of the paper's own code (1024, with blocks of 64): a sample ends once its
    last block stands in the window before it max(window // block - 1, 2) times, and loses that block. `stop` are
    texts that end a sample, `stop_ids` tokens beside the model's end tokens. `allowed` are the only ids that may be
    drawn; an end token must be among them to be. `hook(logits, output, count)` returns other logits for the next
    token, float32 `[vocab]`, and is traced by jax once; `output [positions]` int32 has `count` tokens so far, -1 behind
    them. `log_probs` asks for those of the drawn tokens. In this order: penalties, min_tokens, allowed, hook, sampling.
    Raises RequestError for a value of another type or out of range.
    """

    min_tokens: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    repetition_block: int = 0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    allowed: tuple[int, ...] | None = None
    hook: Callable[..., Any] | None = None
    log_probs: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            read = {"float": real_number, "int": whole_number, "bool": switch}.get(str(field.type))
            if read:
                object.__setattr__(self, field.name, read(getattr(self, field.name), f"{field.name}", RequestError))
        bounds = (
            ("min_tokens", 0 <= self.min_tokens <= MAX_TOKENS, f"in 0 … {MAX_TOKENS}"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "above 0 (1 switches it off)"),
            ("presence_penalty", math.isfinite(self.presence_penalty), "a finite number (0 switches it off)"),
            ("repetition_block", 0 <= self.repetition_block <= MAX_TOKENS, f"in 0 … {MAX_TOKENS}"),
            ("hook", self.hook is None or callable(self.hook), "a function of logits, output and count"),
        )
        for name, good, want in bounds:
            if not good:
                raise RequestError(f"{name} must be {want}, got {_shown(getattr(self, name))}")
        stop: Any = (self.stop,) if isinstance(self.stop, str) else self.stop
        stop = tuple(stop) if hasattr(stop, "__iter__") else (None,)
        if not all(isinstance(text, str) and text for text in stop):
            raise RequestError(f"stop must be a list of texts, none of them empty, got {_shown(self.stop)}")
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_ids", _token_ids(self.stop_ids, "stop_ids"))
        if self.allowed is not None:
            object.__setattr__(self, "allowed", _token_ids(self.allowed, "allowed"))
            if not self.allowed:
                raise RequestError("allowed names no token, so that none could be drawn; leave it out to allow all")


def _token_ids(ids: Any, where: str) -> tuple[int, ...]:
    """Token ids, each once, in order. Raises RequestError for anything else."""
    if isinstance(ids, str) or not hasattr(ids, "__iter__"):
        raise RequestError(f"{where} must be a list of token ids, got {_shown(ids)}")
    return tuple(sorted({whole_number(token, f"{where}: a token id", RequestError) for token in ids}))
