"""What is decoded: requests, their prompts, and each of their samples from its request to its end and beyond."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from kinetics_jax.engine.sampling import BLOCKED, HOOK_NONFINITE, IDLE, NONFINITE
from kinetics_jax.settings import DrawRules, Sampling

NO_TOKEN = {NONFINITE: "nonfinite", HOOK_NONFINITE: "nonfinite", BLOCKED: "blocked"}  # why nothing could be drawn


class Watch(Protocol):
    """Follows a sample's tokens and tells where it ends."""

    def recall(self, tokens: list[int]) -> None:
        """Takes the next tokens, which are given: no sample ends at one of them."""

    def feed(self, tokens: list[int]) -> int | None:
        """Takes the next tokens. Returns how many of them belong to the sample, if it ends by then, else None;
        negative where it loses tokens of before, too.
        """


@dataclasses.dataclass(frozen=True)
class Draw:
    """How the samples of one request are drawn, where that is not the engine's own sampling for all.

    `key` is the samples' key, None: that of the request's problem and of each sample's index.
    """

    sampling: Sampling
    rules: DrawRules
    key: Any = None


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt and which of its samples are wanted. `problem` names it: with the seed it fixes every draw.

    `draw` is for requests of an open decoder; `label` is how messages call it, if not by its problem.
    """

    problem: str
    prompt: Sequence[int]
    samples: Sequence[int]
    draw: Draw | None = None
    label: str = ""

    @property
    def where(self) -> str:
        """How messages begin that are about it."""
        return self.label or f"problem {self.problem!r:.80}"


@dataclasses.dataclass
class Prompt:
    """A prompt with pages of its own; `logits` is what its prefill returned, None before."""

    request: Request
    pages: list[int]
    logits: Any = None


@dataclasses.dataclass(eq=False)
class Running:
    """One sample: its pages so far, its tokens so far, at most `limit` of them.

    `age` counts samples in the order they began, `began` is the time; `saved` is the copy of its pages while they are
    on the host; `failed`: the code of why no token could be drawn, 0 for none; `ended`: which of `watches`, by reason,
    ended it; `reads [steps, 2]`: KV tokens attended and summary vectors read by each decode step that was taken for it,
    steps behind its last token included.

    In an open decoder beside: `forced` are tokens still to come, in the order they are given; `log_probs` has two
    numbers for each token, if the rules ask for them; `key` is its own where it is not that of its problem and index;
    `reached`: tokens that were in the cache when it ended; `kept`: its pages stay then, with what the policy carried,
    `carried`, on the shard `shard`; `copy`: a page, and the page it is copied to before the sample goes on.
    """

    request: Request
    sample: int
    limit: int
    age: int = -1
    began: float = 0.0
    pages: list[int] = dataclasses.field(default_factory=list)
    tokens: list[int] = dataclasses.field(default_factory=list)
    watches: Mapping[str, Watch] = dataclasses.field(default_factory=dict)
    ended: str = ""
    failed: int = 0
    saved: Any = None
    reads: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.int64))
    forced: list[int] = dataclasses.field(default_factory=list)
    log_probs: list[tuple[float, float]] = dataclasses.field(default_factory=list)
    key: Any = None
    kept: bool = False
    reached: int = 0
    shard: int = 0
    carried: Any = None
    copy: tuple[int, int] | None = None

    @property
    def stored(self) -> int:
        """Tokens in the cache when it goes on: all but the newest, which the next step appends."""
        return len(self.request.prompt) + max(len(self.tokens) - 1, 0)

    @property
    def filled(self) -> int:
        """Tokens of those that belong to it that are in the cache once it has ended."""
        return min(self.reached, len(self.request.prompt) + len(self.tokens))

    @property
    def read(self) -> np.ndarray:
        """KV tokens attended and summary vectors read by the decode steps of its tokens: all but the first took one."""
        return self.reads[: max(len(self.tokens) - 1, 0)].sum(axis=0)

    @property
    def nonfinite(self) -> bool:
        """Whether the model's logits were not finite."""
        return self.failed == NONFINITE

    def add(self, tokens: list[int]) -> None:
        """Appends new tokens; those after the point where a watch ends the sample are dropped. A code in place of the
        last one is no token.
        """
        drawn = len(self.tokens) + len(tokens)
        self.failed = tokens[-1] if tokens and tokens[-1] < IDLE else 0
        tokens = tokens[:-1] if self.failed else tokens
        given, drawn_now = tokens[: len(self.forced)], tokens[len(self.forced) :]
        self.forced = self.forced[len(given) :]
        for watch in self.watches.values():
            watch.recall(given)
        found = {reason: watch.feed(drawn_now) for reason, watch in self.watches.items()}
        kept = {reason: len(given) + count for reason, count in found.items() if count is not None}
        before = len(self.tokens)
        self.tokens += tokens
        if kept:
            self.ended, self.failed = min(kept, key=lambda reason: kept[reason]), 0
            self.tokens = self.tokens[: max(before + kept[self.ended], 0)]
        del self.log_probs[len(self.tokens) :]
        self.reached = len(self.request.prompt) + drawn - 1
