"""What policies that choose whole pages have in common."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kinetics_jax.attention.policies.base import PAGE_SIZE, AttentionPolicy, PolicyError, check_settings
from kinetics_jax.attention.policies.counts import Counts, Cut, PublishedCounts, Share, split_steps, triangle

if TYPE_CHECKING:
    from kinetics_jax.attention.decode_step import DecodeStep


@dataclasses.dataclass(frozen=True)
class BlockPolicy(AttentionPolicy):
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

    spelled: ClassVar[tuple[str, ...]] = ("budget", "page_size")
    implied: ClassVar[tuple[str, ...]] = ("pages",)

    def __post_init__(self) -> None:
        check_settings(self)
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
        object.__setattr__(self, "pages", pages)
        object.__setattr__(self, "budget", pages * self.page_size)

    def choice(self, step: DecodeStep) -> dict[str, Any]:
        """Options of `step.select_pages` and `step.choose_pages`: no more pages than a sequence can have."""
        least = self.sink_pages + self.recent_pages + 1
        return {
            "pages": min(self.pages, max(step.max_pages, least)),
            "sink_pages": self.sink_pages,
            "recent_pages": self.recent_pages,
        }

    def sparse_counts(self, prompt: np.ndarray, steps: np.ndarray) -> Counts:
        """Steps up to `budget` tokens attend to everything, the later ones to `pages` pages.

        A step at n tokens chooses among the full pages between the sink pages and the recent ones: those from token
        `sinks` on, up to a page for every full page before the current one, less the recent ones before it.
        """
        size = float(self.page_size)
        whole, choosing = split_steps(prompt, steps, self.budget)
        start, end = Cut(prompt + whole, size), Cut(prompt + steps, size)  # before and after the choosing steps
        own = triangle(whole) + choosing * (self.budget - size) + end.tails() - start.tails()

        before, sinks, recent = Cut(prompt, size), self.sink_pages * size, (self.recent_pages - 1) * size
        free = (self.pages - self.sink_pages - self.recent_pages) * size
        not_own = np.maximum(prompt, sinks) + recent
        own_chosen = start.whole_beyond(not_own) - before.whole_beyond(not_own)
        prompt_chosen = start.whole_beyond(sinks + recent) - before.whole_beyond(sinks + recent) - own_chosen
        own_chosen = own_chosen + choosing * free
        attended = Counts(
            forced=Share(own - own_chosen, prompt * whole - prompt_chosen), chosen=Share(own_chosen, prompt_chosen)
        )
        if not self.summary_vectors:
            return attended
        searched = before.pages * choosing  # the prompt's full pages
        scores = Share(end.full_pages() - start.full_pages() - searched, searched)
        return attended._replace(scores=scores, vectors=scores.times(self.summary_vectors))

    def paper_counts(self, prompt: np.ndarray, output: np.ndarray) -> PublishedCounts:
        """Equations (8) and (9), without a search."""
        return self.budget_filled(prompt, output)

    def with_page_size(self, page_size: int) -> AttentionPolicy:
        """As for every policy; `pages` follows from the budget."""
        return dataclasses.replace(self, page_size=page_size, pages=0)
