"""Which physical page belongs to whom: a host-side allocator with reference counts. No jax."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence


class OutOfPages(RuntimeError):
    """The pool cannot give what was asked; nothing was taken."""


RUN = 16  # pages that a kernel can copy at once where they follow each other


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
    """Hands out page ids 0 … num_pages - 1; a page is free again when its last holder lets go.

    Every RUN pages of a sequence, counted from its start, are an aligned run of ids while there are free runs. Runs
    are given lowest first, pages that can be in none highest first. Promises let a sequence be admitted only when its
    worst case fits, and still take its pages step by step.
    """

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._holders = [0] * num_pages
        self._held = 0
        self._promised = 0
        # Every free run and page is among these, beside some that have been taken since: they are passed over.
        self._runs = _Candidates(range(0, num_pages - RUN + 1, RUN))  # by first page
        self._lone = _Candidates(-page for page in range(num_pages))  # negative: highest first

    @property
    def free(self) -> int:
        """Pages nobody holds, promised ones included."""
        return self.num_pages - self._held

    @property
    def available(self) -> int:
        """Pages nobody holds and nobody was promised."""
        return self.free - self._promised

    def holders(self, page: int) -> int:
        """How many sequences hold a page."""
        return self._holders[page]

    def promise(self, count: int) -> bool:
        """Sets `count` pages aside for later `take(..., promised=True)`; False, and nothing done, if they lack."""
        if count > self.available:
            return False
        self._promised += count
        return True

    def unpromise(self, count: int) -> None:
        """Gives back the part of a promise that was not needed."""
        if not 0 <= count <= self._promised:
            raise ValueError(f"cannot give back {count} promised pages, {self._promised} are promised")
        self._promised -= count

    def take(self, count: int, *, sequence: Sequence[int] = (), promised: bool = False) -> list[int]:
        """`count` fresh pages, each with one holder, to follow the pages that a sequence has.

        Raises OutOfPages when fewer are available.
        """
        room = self._promised if promised else self.available
        if count > room:
            raise OutOfPages(f"{count} pages wanted, {room} of {self.num_pages} available")
        self._promised -= count if promised else 0
        pages: list[int] = []
        last = sequence[-1] if sequence else -1
        for place in range(len(sequence), len(sequence) + count):
            last = self._next(place, last)
            self._holders[last] = 1
            pages.append(last)
        self._held += count
        return pages

    def _next(self, place: int, last: int) -> int:
        """A free page for a place of a sequence, whose page before that is `last`."""
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
        """Adds a holder to pages that are in use."""
        for page in pages:
            if not self._holders[page]:
                raise ValueError(f"page {page} is free and cannot be shared")
        for page in pages:
            self._holders[page] += 1

    def release(self, pages: list[int]) -> None:
        """Takes one holder from each page; pages without holders are free again."""
        for page in pages:
            if not self._holders[page]:
                raise ValueError(f"page {page} is already free")
            self._holders[page] -= 1
            if not self._holders[page]:
                self._held -= 1
                self._lone.add(-page)
                if self._run_is_free(first := page - page % RUN):
                    self._runs.add(first)
