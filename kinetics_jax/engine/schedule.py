"""Which samples decode, and which pages they hold: the engine's bookkeeping on the host.

A sample is admitted when its prompt and its next chunk fit beside the next chunk of all that run, not when its longest
possible output would: pages are taken chunk by chunk. When the next chunk does not fit, prompts that wait for more
samples go first (they are prefilled again), then the youngest sample is preempted: its pages are saved on the host and
given back, and it is the first to come back. The oldest sample always goes on, so that a pool that can hold one sample
finishes them all.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from kinetics_jax.engine.pages import PageAllocator
from kinetics_jax.engine.repetition import RepetitionWatch
from kinetics_jax.engine.sampling import NONFINITE
from kinetics_jax.padding import pages_for


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt and which of its samples are wanted. `problem` names it: with the seed it fixes every draw."""

    problem: str
    prompt: Sequence[int]
    samples: Sequence[int]


@dataclasses.dataclass
class Prompt:
    """A prompt with pages of its own; `logits` is what its prefill returned, None before."""

    request: Request
    pages: list[int]
    logits: Any = None


@dataclasses.dataclass
class Running:
    """A sample that has begun: its pages so far, its tokens so far. `age` counts samples in the order they began,
    `began` is the time; `saved` is the copy of its pages while it is preempted; `nonfinite`: no token could be drawn;
    `read`: KV tokens attended and summary vectors read so far.
    """

    request: Request
    sample: int
    age: int
    began: float
    pages: list[int] = dataclasses.field(default_factory=list)
    tokens: list[int] = dataclasses.field(default_factory=list)
    repetition: RepetitionWatch | None = None
    repeats: bool = False
    nonfinite: bool = False
    saved: Any = None
    read: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(2, np.int64))

    @property
    def stored(self) -> int:
        """Tokens in the cache: all but the newest, which the next step appends."""
        return len(self.request.prompt) + max(len(self.tokens) - 1, 0)

    def add(self, tokens: list[int]) -> None:
        """Appends new tokens; those after the point where the sample repeats are dropped. NONFINITE is none of them."""
        failed = bool(tokens) and tokens[-1] == NONFINITE
        tokens = tokens[:-1] if failed else tokens
        kept = self.repetition.feed(tokens) if self.repetition else None
        self.repeats = kept is not None
        self.nonfinite = failed and not self.repeats
        self.tokens += tokens[:kept]


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
        self.max_tokens, self.repetition_window = max_tokens, repetition_window
        self.allocator = PageAllocator(num_pages)
        self.waiting = collections.deque((request, sample) for request in requests for sample in request.samples)
        self._unstarted = {request.problem: len(request.samples) for request in requests}
        if beside:
            self.waiting, self._unstarted = beside.waiting, beside._unstarted
        self.running: dict[int, Running] = {}
        self.preempted: list[Running] = []  # oldest first
        self.prompts: dict[str, Prompt] = {}
        self._ages = 0

    @property
    def unfinished(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.waiting or self.running or self.preempted)

    def resume(self) -> list[tuple[int, Running, np.ndarray]]:
        """Lets preempted samples that have room again run, oldest first.

        Returns the slot, the sample and its page ids of each, -1 where a page is its prompt's and needs no restoring.
        """
        resumed = []
        for slot in self._idle_slots():
            if not self.preempted:
                break
            running = self.preempted[0]
            if not self.running:  # else prompts that wait for this sample could keep it out for ever
                for prompt in list(self.prompts.values()):
                    self._drop(prompt)
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
        idle = self._idle_slots()
        if not (idle and self.waiting) or self.preempted:
            return None
        request = self.waiting[0][0]
        length = len(request.prompt)
        shared = length // self.page_size
        private = pages_for(length + min(self.chunk, self.max_tokens), self.page_size) - shared
        prompt = self.prompts.get(request.problem)
        own = 0 if prompt else pages_for(length, self.page_size)
        if own + private > self._room():
            return None
        if prompt is None:
            prompt = self.prompts[request.problem] = Prompt(request, self.allocator.take(own))
        started: dict[int, Running] = {}
        while idle and self.waiting and self.waiting[0][0] is request and private <= self._room():
            _, sample = self.waiting.popleft()
            pages = prompt.pages[:shared]
            self.allocator.share(pages)
            running = Running(request, sample, self._ages, time.perf_counter(), pages)
            if self.repetition_window:
                running.repetition = RepetitionWatch(self.repetition_window)
            self._ages += 1
            slot = idle.pop(0)
            self.running[slot] = started[slot] = running
            self._unstarted[request.problem] -= 1
        return prompt, started

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
        self.allocator.release(running.pages)
        running.pages, running.saved = [], saved
        self.preempted.append(running)
        self.preempted.sort(key=lambda other: other.age)

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

    def _for_next_chunk(self, running: Running) -> int:
        """Pages of a sample at the end of the next chunk."""
        longest = len(running.request.prompt) + self.max_tokens
        return pages_for(min(running.stored + self.chunk, longest), self.page_size)

    def _room(self) -> int:
        """Free pages beyond what everything that runs takes in the next chunk; negative when that does not fit."""
        growth = sum(max(self._for_next_chunk(run) - len(run.pages), 0) for run in self.running.values())
        return self.allocator.free - growth

    def _drop(self, prompt: Prompt) -> None:
        self.allocator.release(prompt.pages)
        del self.prompts[prompt.request.problem]
