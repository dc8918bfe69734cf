"""What to attend to and how to sample: frozen settings, with the one parser and printer of their spellings. No jax."""

from __future__ import annotations

import dataclasses
import re
import typing
from typing import Any, ClassVar

from kinetics_jax.errors import UserError


class PolicyError(UserError):
    """An attention policy or sampling setting that cannot be meant; the message names the value and the cure."""


PAGE_SIZE = 16
MOST_TOKENS = 1 << 24  # beyond any context: a larger number is a slip of the hand
SUMMARY_VECTORS = {"mean": 1, "min_max": 2, "mean_std": 2}  # kinds of page summary, and their vectors of head_dim


@dataclasses.dataclass(frozen=True)
class Dense:
    """Every decode step attends to every token."""

    kind: ClassVar[str] = "dense"
    page_size: ClassVar[int] = PAGE_SIZE  # of the cache; what is attended to does not depend on it

    def __str__(self) -> str:
        return self.kind


@dataclasses.dataclass(frozen=True)
class BlockPolicy:
    """What policies that choose whole pages share: the budget, the forced pages and the dense layers.

    Every decode step attends to `pages` pages of `page_size` tokens per KV head, always to the first `sink_pages` and
    the last `recent_pages` among them. `budget = pages * page_size` tokens: give one of the two, the other follows.
    Layers in `dense_layers` attend to everything.
    """

    pages: int = 0
    budget: int = 0
    page_size: int = PAGE_SIZE
    sink_pages: int = 1
    recent_pages: int = 1
    dense_layers: tuple[int, ...] = (0,)

    kind: ClassVar[str]

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
        _set_dense_layers(self)
        object.__setattr__(self, "pages", pages)
        object.__setattr__(self, "budget", pages * self.page_size)

    def __str__(self) -> str:
        return _spelling(self, always=("budget", "page_size"), implied=("pages",))


@dataclasses.dataclass(frozen=True)
class BlockTopK(BlockPolicy):
    """The forced pages, and those whose summary scores best for the step's query (paper, section 4.1).

    The query is the mean over the GQA group. `summary` names what stands for a page: the `mean` of its keys, scored by
    its dot product with the query; `min_max`, the bounds of its keys in every dimension, scored by the largest dot
    product that a key within them could have (Quest, arXiv 2406.10774); `mean_std`, mean and standard deviation, scored
    by the logarithm of the page's mean exp(logit) if its keys were independent Gaussians.
    """

    summary: str = "mean"

    kind: ClassVar[str] = "block_topk"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.summary not in SUMMARY_VECTORS:
            raise PolicyError(
                f"{self.kind}: summary {self.summary!r} is not known (known: {', '.join(SUMMARY_VECTORS)})"
            )


@dataclasses.dataclass(frozen=True)
class RandomBlocks(BlockPolicy):
    """The forced pages, and distinct others drawn uniformly anew in every step, layer and KV head: the floor that a
    selection has to beat.
    """

    kind: ClassVar[str] = "random_blocks"


@dataclasses.dataclass(frozen=True)
class TokenTopK:
    """The oracle: every decode step attends, per KV head, to the `budget` tokens with the largest logits.

    Logits are averaged over the GQA group, in float32; the current token is always among the tokens, and counted. All
    logits are computed to find the largest: this says how well a budget could be spent, not what it saves.
    """

    budget: int = 0
    dense_layers: tuple[int, ...] = (0,)

    kind: ClassVar[str] = "token_topk"
    page_size: ClassVar[int] = PAGE_SIZE

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise PolicyError(f"{self.kind}: give budget= (tokens), at least 1, got {self.budget}")
        _set_dense_layers(self)

    def __str__(self) -> str:
        return _spelling(self, always=("budget",))


@dataclasses.dataclass(frozen=True)
class SlidingWindow:
    """Every decode step attends to the first `sink_tokens` tokens and the last `budget - sink_tokens`."""

    budget: int = 0
    sink_tokens: int = 4
    dense_layers: tuple[int, ...] = (0,)

    kind: ClassVar[str] = "sliding_window"
    page_size: ClassVar[int] = PAGE_SIZE

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise PolicyError(f"{self.kind}: give budget= (tokens), at least 1, got {self.budget}")
        if self.sink_tokens < 0:
            raise PolicyError(f"{self.kind}: sink_tokens must not be negative, got {self.sink_tokens}")
        if self.budget <= self.sink_tokens:
            raise PolicyError(
                f"{self.kind}: budget {self.budget} leaves no window beside {self.sink_tokens} sink tokens; the least "
                f"is budget={self.sink_tokens + 1}"
            )
        _set_dense_layers(self)

    def __str__(self) -> str:
        return _spelling(self, always=("budget",))


@dataclasses.dataclass(frozen=True)
class LiteSysBlockTopK:
    """Block top-k by the rule of the paper's own code (LiteSys), for comparison with published results.

    Blocks of `page_size` tokens begin after the 4 sink tokens. Every decode step attends to the sinks, to the `pages`
    blocks with the largest mean logit, and to the last `local` tokens with what no whole block covers before them;
    nothing forced counts among `pages`. In force once a sequence holds more than 4 + local + pages * page_size tokens,
    rounded up to whole blocks. With `local = 0` the current token can end a block that is not chosen.
    """

    pages: int = 0
    page_size: int = PAGE_SIZE
    local: int = 0
    dense_layers: tuple[int, ...] = (0,)

    kind: ClassVar[str] = "litesys_block_topk"
    sink_tokens: ClassVar[int] = 4

    def __post_init__(self) -> None:
        for name, least in (("pages", 1), ("page_size", 1), ("local", 0)):
            if getattr(self, name) < least:
                raise PolicyError(f"{self.kind}: {name} must be at least {least}, got {getattr(self, name)}")
        _set_dense_layers(self)

    def __str__(self) -> str:
        return _spelling(self, always=("pages", "page_size"))


Policy = Dense | BlockTopK | TokenTopK | SlidingWindow | RandomBlocks | LiteSysBlockTopK
POLICIES: dict[str, type[Policy]] = {policy.kind: policy for policy in typing.get_args(Policy)}


def _set_dense_layers(policy: Any) -> None:
    """Sorts a policy's `dense_layers`; they are a set. Refuses numbers that no sequence can have tokens for."""
    for field in dataclasses.fields(policy):
        value = getattr(policy, field.name)
        if isinstance(value, int) and value > MOST_TOKENS:
            raise PolicyError(f"{policy.kind}: {field.name} must be at most {MOST_TOKENS}, got {value}")
    if any(layer < 0 for layer in policy.dense_layers):
        raise PolicyError(f"{policy.kind}: dense_layers counts from 0, got {policy.dense_layers}")
    object.__setattr__(policy, "dense_layers", tuple(sorted(set(policy.dense_layers))))


def _spelling(policy: Any, *, always: tuple[str, ...], implied: tuple[str, ...] = ()) -> str:
    """The canonical spelling: the options in `always`, and what differs from its default and is not `implied` by them.

    `parse_policy` reads it back to an equal policy.
    """
    parts = [f"{name}={getattr(policy, name)}" for name in always]
    for field in dataclasses.fields(policy):
        value = getattr(policy, field.name)
        if field.name not in (*always, *implied) and value != field.default:
            parts.append(f"{field.name}={_spell(value)}")
    return f"{policy.kind}:{','.join(parts)}"


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
