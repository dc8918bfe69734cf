"""Which physical page belongs to whom: a host-side allocator with reference counts. No jax."""

from __future__ import annotations

import heapq


class OutOfPages(RuntimeError):
    """The pool cannot give what was asked; nothing was taken."""


class PageAllocator:
    """Hands out page ids 0 … num_pages - 1, lowest first; a page is free again when its last holder lets go.

    Promises let a sequence be admitted only when its worst case fits, and still take its pages step by step.
    """

    def __init__(self, num_pages: int):
        self.num_pages = num_pages
        self._free = list(range(num_pages))  # a heap: ascending ids stay contiguous where they can
        self._holders = [0] * num_pages
        self._promised = 0

    @property
    def free(self) -> int:
        """Pages nobody holds, promised ones included."""
        return len(self._free)

    @property
    def available(self) -> int:
        """Pages nobody holds and nobody was promised."""
        return len(self._free) - self._promised

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

    def take(self, count: int, *, promised: bool = False) -> list[int]:
        """`count` fresh pages, each with one holder. Raises OutOfPages when fewer are available."""
        room = self._promised if promised else self.available
        if count > room:
            raise OutOfPages(f"{count} pages wanted, {room} of {self.num_pages} available")
        self._promised -= count if promised else 0
        pages = [heapq.heappop(self._free) for _ in range(count)]
        for page in pages:
            self._holders[page] = 1
        return pages

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
                heapq.heappush(self._free, page)
