"""What to attend to and how to sample: frozen settings, with the one parser and printer of their spellings. No jax."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, ClassVar

from kinetics_jax.errors import UserError


class PolicyError(UserError):
    """An attention policy or sampling setting that cannot be meant; the message names the value and the cure."""


@dataclasses.dataclass(frozen=True)
class Dense:
    """Every decode step attends to every token."""

    kind: ClassVar[str] = "dense"

    def __str__(self) -> str:
        return self.kind


@dataclasses.dataclass(frozen=True)
class BlockTopK:
    """Every decode step attends to `pages` pages of `page_size` tokens per KV head (paper, section 4.1).

    Always the first `sink_pages` and the last `recent_pages`; the rest are the pages whose summary has the largest
    dot product with the query, averaged over the GQA group. `budget = pages * page_size` tokens: give one of the
    two, the other follows. Layers in `dense_layers` attend to everything. `summary` names what stands for a page:
    the `mean` of its keys.
    """

    pages: int = 0
    budget: int = 0
    page_size: int = 16
    sink_pages: int = 1
    recent_pages: int = 1
    dense_layers: tuple[int, ...] = (0,)
    summary: str = "mean"

    kind: ClassVar[str] = "block_topk"

    def __post_init__(self) -> None:
        if self.page_size < 1:
            raise PolicyError(f"{self.kind}: page_size must be at least 1, got {self.page_size}")
        if not self.pages and not self.budget:
            raise PolicyError(f"{self.kind}: give budget= (tokens) or pages=, at least 1")
        if self.budget % self.page_size:
            raise PolicyError(
                f"{self.kind}: budget {self.budget} is not a multiple of page_size {self.page_size}; "
                f"the nearest below is {self.budget // self.page_size * self.page_size}"
            )
        pages = self.pages or self.budget // self.page_size
        if self.budget and self.budget != pages * self.page_size:
            raise PolicyError(
                f"{self.kind}: budget {self.budget} and pages {pages} of {self.page_size} disagree; give one of the two"
            )
        if self.sink_pages < 0:
            raise PolicyError(f"{self.kind}: sink_pages must not be negative, got {self.sink_pages}")
        if self.recent_pages < 1:
            raise PolicyError(
                f"{self.kind}: recent_pages must be at least 1 (the current page is always attended), "
                f"got {self.recent_pages}"
            )
        least = self.sink_pages + self.recent_pages + 1
        if pages < least:
            raise PolicyError(
                f"{self.kind}: {pages} pages leave none to choose beside {self.sink_pages} sink and "
                f"{self.recent_pages} recent ones; the least is pages={least} (budget={least * self.page_size})"
            )
        if self.summary != "mean":
            raise PolicyError(f"{self.kind}: summary {self.summary!r} is not known (known: mean)")
        if any(layer < 0 for layer in self.dense_layers):
            raise PolicyError(f"{self.kind}: dense_layers counts from 0, got {self.dense_layers}")
        object.__setattr__(self, "dense_layers", tuple(sorted(set(self.dense_layers))))
        object.__setattr__(self, "pages", pages)
        object.__setattr__(self, "budget", pages * self.page_size)

    def __str__(self) -> str:
        """The canonical spelling; `parse_policy` reads it back to an equal policy."""
        parts = [f"budget={self.budget}", f"page_size={self.page_size}"]
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name not in ("pages", "budget", "page_size") and value != field.default:
                parts.append(f"{field.name}={_spell(value)}")
        return f"{self.kind}:{','.join(parts)}"


Policy = Dense | BlockTopK
POLICIES: dict[str, type[Dense] | type[BlockTopK]] = {policy.kind: policy for policy in (Dense, BlockTopK)}


def parse_policy(text: str) -> Policy:
    """Reads `dense`, `block_topk:budget=1024,page_size=16`, `block_topk:pages=64,dense_layers=none` …

    `dense_layers` is spelled `none`, `0` or `0+1+2`. Raises PolicyError naming what was not understood.
    """
    kind, _, rest = text.strip().partition(":")
    if kind not in POLICIES:
        raise PolicyError(f"attention {text!r}: {kind!r} is not known (known: {', '.join(POLICIES)})")
    policy = POLICIES[kind]
    known = {field.name: field for field in dataclasses.fields(policy)}
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in known:
            options = f"takes {', '.join(known)}" if known else "takes no options"
            raise PolicyError(f"attention {text!r}: {name!r} is not an option; {kind} {options}")
        if not equals or not value:
            raise PolicyError(f"attention {text!r}: {name} needs a value, as in {name}=…")
        if name in values:
            raise PolicyError(f"attention {text!r}: {name} is given twice")
        values[name] = _read(text, name, value)
    return policy(**values)


def slug(policy: Policy) -> str:
    """The spelling as a file name: `block_topk-budget32-page_size2`."""
    return re.sub(r"[:,]", "-", str(policy)).replace("=", "").replace("+", "_")


def _spell(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value)) or "none"
    return str(value)


def _read(text: str, name: str, value: str) -> Any:
    try:
        if name == "dense_layers":
            return () if value == "none" else tuple(int(layer) for layer in value.split("+"))
        return value if name == "summary" else int(value)
    except ValueError as error:
        raise PolicyError(f"attention {text!r}: {name} = {value!r} is not a whole number") from error


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn, in the order of Hugging Face's logits processors: temperature, top-k, top-p, min-p.

    `temperature = 0` is greedy. `top_k = 0`, `top_p = 1` and `min_p = 0` switch a filter off. `max_tokens` bounds the
    generated tokens, the end token included. `seed` with (problem, sample, position) fixes every draw.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 1024
    seed: int = 0

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
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("seed", 0 <= self.seed < 2**32, "in 0 … 2**32 - 1"),
        )
        for name, good, want in bounds:
            if not good:
                raise PolicyError(f"sampling: {name} must be {want}, got {getattr(self, name)}")
