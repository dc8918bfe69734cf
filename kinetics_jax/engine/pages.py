"""Which physical page belongs to which sequences: a host-side allocator with reference counts."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from kinetics_jax.padding import RUN


class OutOfPages(RuntimeError):
    """The pool has fewer free pages than were asked for; nothing was taken."""


class _Candidates:
    """Numbers that were free when they were added, each kept once, lowest first."""

    def __init__(self, numbers: Iterable[int]):
        self._heap = sorted(numbers)
        self._kept = set(self._heap)

    def __bool__(self) -> bool:
        return bool(self._heap)

    def add(self, number: int) -> None:
        if number not in self._kept:
            self._kept.add(number)
            heapq.heappush(self._heap, number)

    def pop(self) -> int:
        number = heapq.heappop(self._heap)
        self._kept.remove(number)
        return number


class PageAllocator:
    """Hands out page ids 0 … num_pages - 1; a page is free again when its last holder releases it.

    Every RUN pages of a sequence, counted from its start, are an aligned run of ids while there are free runs. Runs
    are handed out lowest first, single pages highest first.
    """

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._holders = [0] * num_pages
        self._held = 0
        # Every free run and page is among these, beside some that have been taken since: they are passed over.
        self._runs = _Candidates(range(0, num_pages - RUN + 1, RUN))  # by first page
        self._lone = _Candidates(-page for page in range(num_pages))  # negative: highest first

    @property
    def free(self) -> int:
        """Pages nobody holds."""
        return self.num_pages - self._held

    def holders(self, page: int) -> int:
        """How many sequences hold a page: for tests, which keep counts of their own."""
        return self._holders[page]

    def take(self, count: int, *, sequence: Sequence[int] = ()) -> list[int]:
        """Takes `count` free pages, which get one holder each, to follow the pages that `sequence` has already.

        Raises OutOfPages if fewer are free.
        """
        if count > self.free:
            raise OutOfPages(f"{count} pages wanted, {self.free} of {self.num_pages} free")
        pages: list[int] = []
        last = sequence[-1] if sequence else -1
        for place in range(len(sequence), len(sequence) + count):
            last = self._next(place, last)
            self._holders[last] = 1
            pages.append(last)
        self._held += count
        return pages

    def _next(self, place: int, last: int) -> int:
        """A free page for a place of a sequence; `last` is the page before it."""
        if place % RUN == 0:
            while self._runs:
                if self._run_is_free(first := self._runs.pop()):
                    return first
        elif last % RUN == (place - 1) % RUN and last + 1 < self.num_pages and not self._holders[last + 1]:
            return last + 1
        while self._holders[page := -self._lone.pop()]:
            pass
        return page

    def _run_is_free(self, first: int) -> bool:
        return first + RUN <= self.num_pages and not any(self._holders[first : first + RUN])

    def share(self, pages: list[int]) -> None:
        """Adds a holder to pages that are in use. Raises ValueError if one is free."""
        for page in pages:
            if not self._holders[page]:
                raise ValueError(f"page {page} is free and cannot be shared")
        for page in pages:
            self._holders[page] += 1

    def release(self, pages: list[int]) -> None:
        """Takes one holder from each page; a page without holders is free again. Raises ValueError if one is free."""
        for page in pages:
            if not self._holders[page]:
                raise ValueError(f"page {page} is already free")
            self._holders[page] -= 1
            if not self._holders[page]:
                self._held -= 1
                self._lone.add(-page)
                if self._run_is_free(first := page - page % RUN):
                    self._runs.add(first)
