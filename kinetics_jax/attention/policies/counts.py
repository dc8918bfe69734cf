"""What decode steps attend to and read, in counts: tokens, page scores, summary vectors. Costs turn them into bytes.

A decode step at length n belongs to a sequence of n tokens, its own included. A trial with `prompt` prompt tokens takes
`steps` decode steps, at lengths prompt + 1 … prompt + steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np


class Share(NamedTuple):
    """An amount in two parts: what each trial reads for itself (`own`), and what all trials of a prompt read of the
    `prompt` in the same steps, which an engine may read once for all of them.
    """

    own: Any = 0.0
    prompt: Any = 0.0

    @property
    def total(self) -> Any:
        """Both parts."""
        return self.own + self.prompt

    def times(self, factor: float) -> Share:
        """Both parts, multiplied."""
        return Share(self.own * factor, self.prompt * factor)

    def plus(self, other: Share) -> Share:
        """Part by part."""
        return Share(self.own + other.own, self.prompt + other.prompt)


class Counts(NamedTuple):
    """Sums over decode steps, per KV head: tokens attended, page scores compared, and summary vectors read.

    Tokens are `dense` in a layer that attends to everything. In a sparse layer they are `forced` (attended whatever the
    scores say: sink and recent pages, a window) or `chosen` (the rest, also in steps that still hold no more than the
    budget). A vector has head_dim elements.
    """

    dense: Share = Share()
    forced: Share = Share()
    chosen: Share = Share()
    scores: Share = Share()
    vectors: Share = Share()

    def times(self, factor: float) -> Counts:
        """Every count, multiplied."""
        return Counts(*(share.times(factor) for share in self))

    def plus(self, other: Counts) -> Counts:
        """Count by count."""
        return Counts(*(share.plus(more) for share, more in zip(self, other, strict=True)))


class StepCounts(NamedTuple):
    """What one decode step of a sparse layer attends to and reads per KV head: tokens, page scores, summary vectors."""

    forced: Any
    chosen: Any = 0.0
    scores: Any = 0.0
    vectors: Any = 0.0


class PublishedCounts(NamedTuple):
    """Sums over `output` steps of one layer under a published convention.

    Tokens `attended` by each trial, and those of the prompt that are read once for all trials (`attended_once`);
    `vectors` multiplied with a query, read by each trial or once. None where a convention has no such term.
    """

    attended: Any
    attended_once: Any = None
    vectors: Any = None
    vectors_read: Any = None
    vectors_read_once: Any = None


def dense_counts(prompt: np.ndarray, steps: np.ndarray) -> Counts:
    """Steps that attend to every token."""
    return Counts(dense=Share(triangle(steps), prompt * steps))


def sum_steps(step: Callable[[np.ndarray], StepCounts], prompt: np.ndarray, steps: np.ndarray) -> Counts:
    """`step(lengths)` summed over the steps of trials; `prompt` and `steps` are float64 whole numbers that broadcast.

    The prompt's tokens are shared in steps that attend to everything; everything else is each trial's own.
    """
    last = int(np.max(prompt + steps, initial=0))
    lengths = np.arange(1, last + 1, dtype=np.float64)
    each = StepCounts(*(np.broadcast_to(np.asarray(count, np.float64), lengths.shape) for count in step(lengths)))
    whole = each.forced + each.chosen == lengths
    begin, end = (np.asarray(n, np.int64) for n in (prompt, prompt + steps))

    def total(amount: np.ndarray) -> Any:
        sums = np.concatenate([[0.0], np.cumsum(amount)])
        return sums[end] - sums[begin]

    of_prompt = prompt * total(whole.astype(np.float64))
    chosen_of_prompt = np.minimum(of_prompt, total(np.where(whole, each.chosen, 0.0)))
    return Counts(
        forced=Share(total(each.forced) - (of_prompt - chosen_of_prompt), of_prompt - chosen_of_prompt),
        chosen=Share(total(each.chosen) - chosen_of_prompt, chosen_of_prompt),
        scores=Share(total(each.scores)),
        vectors=Share(total(each.vectors)),
    )


def split_steps(prompt: np.ndarray, steps: np.ndarray, most: float) -> tuple[np.ndarray, np.ndarray]:
    """How many steps find a sequence of up to `most` tokens, their own included, and how many a longer one."""
    short = np.minimum(np.maximum(most - prompt, 0), steps)
    return short, steps - short


def filled(budget: float, prompt: np.ndarray, output: np.ndarray) -> Any:
    """Tokens attended in `output` steps under a budget, integral in length: all tokens until the budget is full."""
    room = np.maximum(budget - prompt, 0)
    filling = np.minimum(room, output)
    return budget * output - room * filling + filling**2 / 2


def triangle(n: Any) -> Any:
    """1 + 2 + … + n."""
    return n * (n + 1) / 2


class Cut:
    """n tokens cut into pages of `size`: full pages and the rest, and sums over sequences of fewer tokens.

    Division and floor are exact for whole numbers below 2**52, and four times as fast as NumPy's floor division.
    """

    def __init__(self, n: np.ndarray, size: float) -> None:
        self.size = size
        self.pages = np.floor(n / size)
        self.rest = n - self.pages * size

    def tails(self) -> Any:
        """Tokens in the last page, summed over sequences of 1 … n tokens."""
        return self.pages * triangle(self.size) + triangle(self.rest)

    def remainders(self) -> Any:
        """Tokens that no full page holds, summed over sequences of 1 … n tokens."""
        return self.pages * triangle(self.size - 1) + triangle(self.rest)

    def full_pages(self) -> Any:
        """Full pages, summed over sequences of 1 … n tokens."""
        return self.size * triangle(self.pages - 1) + self.pages * (self.rest + 1)

    def whole_beyond(self, first: Any) -> Any:
        """Tokens of full pages from token `first` on, summed over sequences of 0 … n - 1 tokens."""
        least = np.floor(first / self.size) + 1  # full pages that reach beyond it
        count = np.maximum(self.pages - least, 0)
        inside = count * (self.size * least - first) + self.size * triangle(count - 1)
        return self.size * inside + self.rest * np.maximum(self.size * self.pages - first, 0)
