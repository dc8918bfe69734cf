"""Which samples decode, and which pages they hold: the engine's bookkeeping on the host.

A sample is admitted when its prompt and its next chunk fit beside the next chunk of all that run, not when its longest
possible output would: pages are taken chunk by chunk. When the next chunk does not fit, prompts that wait for more
samples go first (they are prefilled again), then the youngest sample is preempted: its pages are saved on the host and
given back, and it is the first to come back. The oldest sample always goes on, so that a pool that can hold one sample
finishes them all.

In an open decoder ended samples can keep their pages, to go on later: then they are taken up like preempted ones.
Samples that were forked share pages; who writes to a shared one gets a copy first. Pages that are only kept make room
for all others: they move to the host.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from kinetics_jax.engine.pages import PageAllocator
from kinetics_jax.engine.repetition import RepetitionWatch
from kinetics_jax.engine.requests import Prompt, Request, Running
from kinetics_jax.padding import pages_for


class Schedule:
    """Slots, queue and pages of one run. `max_tokens` bounds every sample, `chunk` the tokens it gets at a time.

    `num_pages` must hold any one sample at full length and one page more, that of its prompt's last tokens. On several
    shards each has a schedule, with slots and pages of its own; all take samples from the queue of the first, which the
    others are made `beside`. Slots count from `first_slot`, pages from 0.
    """

    def __init__(
        self,
        requests: Iterable[Request],
        *,
        slots: int,
        num_pages: int,
        page_size: int,
        chunk: int,
        max_tokens: int,
        repetition_window: int = 0,
        first_slot: int = 0,
        beside: Schedule | None = None,
    ):
        requests = list(requests)
        self.first_slot = first_slot
        self.slots, self.page_size, self.chunk = slots, page_size, chunk
        self.repetition_window = repetition_window
        self.allocator = PageAllocator(num_pages)
        self.waiting: collections.deque[Running] = collections.deque()
        self._unstarted: collections.Counter[str] = collections.Counter()
        if beside:
            self.waiting, self._unstarted = beside.waiting, beside._unstarted
        else:
            self.enqueue(Running(request, sample, max_tokens) for request in requests for sample in request.samples)
        self.running: dict[int, Running] = {}
        self.preempted: list[Running] = []  # oldest first
        self.kept: list[Running] = []  # ended, with pages; in the order they ended
        self.prompts: dict[str, Prompt] = {}
        self._ages = 0

    @property
    def unfinished(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting or self.running or self.preempted)

    def enqueue(self, samples: Iterable[Running]) -> None:
        """Lets samples that have not begun wait; those of one request stand side by side."""
        for sample in samples:
            self.waiting.append(sample)
            self._unstarted[sample.request.problem] += 1

    def resume(self) -> list[tuple[int, Running, np.ndarray]]:
        """Lets preempted samples that have room again run, oldest first.

        Returns the slot, the sample and its page ids of each, -1 where a page is its prompt's and needs no restoring;
        none for a sample whose pages never left.
        """
        resumed = []
        for slot in self._idle_slots():
            if not self.preempted:
                break
            running = self.preempted[0]
            if not self.running:  # else prompts that wait for this sample could keep it out for ever
                for prompt in list(self.prompts.values()):
                    self._drop(prompt)
            if running.saved is None:
                if not self._writable(running):
                    break
                self.running[slot] = self.preempted.pop(0)
                resumed.append((slot, running, np.full(0, -1, np.int32)))
                continue
            shared = self._prompt_pages(running)
            if self._for_next_chunk(running) - len(shared) > self._room():
                break
            self.preempted.pop(0)
            held = pages_for(running.stored, self.page_size)
            self.allocator.share(shared)
            running.pages = shared + self.allocator.take(held - len(shared), sequence=shared)
            self.running[slot] = running
            places = np.array(running.pages, np.int32)
            places[: len(shared)] = -1
            resumed.append((slot, running, places))
        return resumed

    def admit(self) -> tuple[Prompt, dict[int, Running]] | None:
        """The next samples of one prompt that fit, by slot; None if no slot is idle, nothing waits, or the next sample
        does not fit.

        A prompt without `logits` has fresh pages and must be prefilled. Nothing is admitted while samples are
        preempted: they come first.
        """
        for prompt in list(self.prompts.values()):
            self.started(prompt)  # the last of its samples may have begun on another shard
        if not self.may_admit:
            return None
        idle = self._idle_slots()
        request, limit = self.waiting[0].request, self.waiting[0].limit
        length = len(request.prompt)
        shared = length // self.page_size
        private = pages_for(length + min(self.chunk, limit), self.page_size) - shared
        prompt = self.prompts.get(request.problem)
        own = 0 if prompt else pages_for(length, self.page_size)
        if own + private > self._room():
            return None
        if prompt is None:
            prompt = self.prompts[request.problem] = Prompt(request, self.allocator.take(own))
        started: dict[int, Running] = {}
        while idle and self.waiting and self.waiting[0].request is request and private <= self._room():
            running = self.waiting.popleft()
            running.age, running.began, running.pages = self._ages, time.perf_counter(), prompt.pages[:shared]
            self.allocator.share(running.pages)
            if self.repetition_window:
                running.watches = {"repetition": RepetitionWatch(self.repetition_window)}
            self._ages += 1
            slot = idle.pop(0)
            self.running[slot] = started[slot] = running
            self._unstarted[request.problem] -= 1
        return prompt, started

    @property
    def may_admit(self) -> bool:
        """Whether a sample waits that could begin if it had room."""
        return bool(self.waiting and not self.preempted and self._idle_slots())

    @property
    def may_resume(self) -> bool:
        """Whether a sample that began could go on if it had room."""
        return bool(self.preempted and self._idle_slots())

    def started(self, prompt: Prompt) -> None:
        """Releases a prompt's pages once its last sample has begun and holds what it needs of them."""
        if not self._unstarted[prompt.request.problem]:
            self._drop(prompt)

    def victim(self) -> int | None:
        """The slot whose sample must be preempted before the next chunk; None when the chunk fits.

        Releases the pages of waiting prompts first. Call `preempt` with the slot, then ask again.
        """
        for prompt in list(self.prompts.values()):
            if self._room() >= 0:
                return None
            self._drop(prompt)
        if self._room() >= 0:
            return None
        return max(self.running, key=lambda slot: self.running[slot].age)

    def preempt(self, slot: int, saved: Any) -> None:
        """Takes a sample out of its slot and gives back its pages, of which `saved` is a copy."""
        running = self.running.pop(slot)
        self.park(running, saved)
        self.go_on(running)

    def go_on(self, running: Running) -> None:
        """Lets a sample that holds pages, or a copy of them, wait for its turn."""
        self.preempted.append(running)
        self.preempted.sort(key=lambda other: other.age)

    def keep(self, slot: int) -> Running:
        """Takes an ended sample out of its slot; its pages stay."""
        running = self.running.pop(slot)
        self.kept.append(running)
        return running

    @property
    def crowded(self) -> bool:
        """Whether the next chunk of all that run does not fit."""
        return self._room() < 0

    def parkable(self) -> Running | None:
        """The next sample whose pages can make room, though it does not run: of those that ended, the first, then of
        those that wait to go on, the youngest, but for the oldest; None where there is none.
        """
        waiting = reversed(self.preempted[1:])
        return next((running for running in [*self.kept, *waiting] if running.pages), None)

    def park(self, running: Running, saved: Any) -> None:
        """Gives back a sample's pages, of which `saved` is a copy."""
        self.allocator.release(running.pages)
        running.pages, running.saved = [], saved

    def forget(self, running: Running) -> None:
        """Gives back everything that a kept sample holds."""
        self.kept.remove(running)
        self.park(running, None)

    def cut(self, running: Running, stored: int) -> None:
        """Gives back the pages of a sample behind its first `stored` tokens and the page that the next one goes to."""
        spare = running.pages[stored // self.page_size + 1 :]
        self.allocator.release(spare)
        del running.pages[len(running.pages) - len(spare) :]

    def reserve(self, table: np.ndarray) -> None:
        """Takes the pages of the next chunk and writes every slot's pages into its row of `table`, -1 elsewhere.

        `table [slots, max_pages]` has a row for each slot of all shards.
        """
        table[self.first_slot : self.first_slot + self.slots] = -1
        for slot, running in self.running.items():
            self.grow(running, self._for_next_chunk(running))
            table[slot, : len(running.pages)] = running.pages

    def grow(self, running: Running, pages: int) -> None:
        """Takes pages until the sample has so many."""
        running.pages += self.allocator.take(max(pages - len(running.pages), 0), sequence=running.pages)

    def finish(self, slot: int) -> Running:
        """Takes a finished sample out of its slot and gives back its pages."""
        running = self.running.pop(slot)
        self.allocator.release(running.pages)
        return running

    def _idle_slots(self) -> list[int]:
        return [slot for slot in range(self.first_slot, self.first_slot + self.slots) if slot not in self.running]

    def _prompt_pages(self, running: Running) -> list[int]:
        """The full pages of a sample's prompt; none once the prompt's pages were released."""
        prompt = self.prompts.get(running.request.problem)
        return prompt.pages[: len(running.request.prompt) // self.page_size] if prompt else []

    def _writable(self, running: Running) -> bool:
        """Whether a sample whose pages are here can go on; then the page that it writes to is its own, and its `copy`
        says of what.
        """
        first = running.stored // self.page_size
        shared = running.pages[first : first + 1]
        if not shared or self.allocator.holders(shared[0]) == 1:
            shared = []
        if self._for_next_chunk(running) - len(running.pages) + len(shared) > self._room():
            return False
        if shared:
            (own,) = self.allocator.take(1, sequence=running.pages[:first])
            self.allocator.release(shared)
            running.pages[first], running.copy = own, (shared[0], own)
        return True

    def _for_next_chunk(self, running: Running) -> int:
        """Pages of a sample at the end of the next chunk."""
        longest = len(running.request.prompt) + running.limit
        return pages_for(min(running.stored + self.chunk, longest), self.page_size)

    def _room(self) -> int:
        """Free pages beyond what everything that runs takes in the next chunk; negative when that does not fit."""
        growth = sum(max(self._for_next_chunk(run) - len(run.pages), 0) for run in self.running.values())
        return self.allocator.free - growth

    def _drop(self, prompt: Prompt) -> None:
        self.allocator.release(prompt.pages)
        del self.prompts[prompt.request.problem]
