"""What policies that choose whole pages have in common."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from kinetics_jax.attention.policies.base import PAGE_SIZE, AttentionPolicy, PolicyError, check_settings


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
        check_settings(self)
        object.__setattr__(self, "pages", pages)
        object.__setattr__(self, "budget", pages * self.page_size)
