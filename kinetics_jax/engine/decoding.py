"""One run of an engine: its requests, its cache, its slots, and the loop that decodes them.

The device runs decode chunks, each one jitted while_loop; between chunks the host takes out what has finished, hands
out pages for the next steps and refills the slots. A sample's tokens depend on its key and its row alone, never on the
slot it sits in, its neighbours or when it was admitted.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Bool
from kinetics_kernels.backends import Backend

from kinetics_jax.attention.cache import empty_cache
from kinetics_jax.attention.policies.base import AttentionPolicy, PolicyError
from kinetics_jax.attention.reads import join_halves, policy_fault
from kinetics_jax.attention.shared_prefix import SharedPrefix, prefix_width, share_prefixes
from kinetics_jax.config import ModelConfig
from kinetics_jax.engine.capacity import SMALLER_POOL, bytes_per_page, describe_pool
from kinetics_jax.engine.diagnosis import nonfinite_warning
from kinetics_jax.engine.programs import (
    Resumed,
    Slots,
    Starts,
    decode_chunk,
    load_carried,
    load_pages,
    prefill,
    prefill_chunk,
    resume_sample,
    save_carried,
    save_pages,
    start_samples,
)
from kinetics_jax.engine.sampling import IDLE, problem_hash, seed_key
from kinetics_jax.engine.schedule import Prompt, Request, Running, Schedule
from kinetics_jax.padding import pages_for, prefill_size, prompt_shape, table_width
from kinetics_jax.settings import EngineSettings, RequestError, Sampling, patience
from kinetics_jax.sharding.mesh import row_shards, rows_sharding

PAGES_PER_COPY = 64  # of a sample on their way to the host or back


@dataclasses.dataclass(frozen=True)
class Finished:
    """One finished sample: its token ids, the end token included, and why it ended: `stop` (it drew an end token),
    `length` (it has max_tokens), `repetition` (its last `Sampling.repetition_window` tokens repeat) or `nonfinite` (the
    logits of its next token were not finite; it may have no token). `attended_tokens` and `summary_vectors` are what
    its decode steps read, over layers and KV heads, as the device counted it.
    """

    problem: str
    sample: int
    prompt_tokens: int
    output_tokens: list[int]
    finish_reason: str
    seconds: float
    attended_tokens: int
    summary_vectors: int


@dataclasses.dataclass
class Counts:
    """What a run has done so far: decode `steps`; tokens `drawn`; of the rows of steps `offered` while samples waited,
    those that were `busy`; `prefills`, repeated ones included; how often a sample was `preempted`.
    """

    steps: int = 0
    drawn: int = 0
    offered: int = 0
    busy: int = 0
    prefills: int = 0
    preempted: int = 0


@dataclasses.dataclass(frozen=True, eq=False)
class Setup:
    """What all runs of an engine have in common: the arguments that it was made of."""

    graph: nnx.GraphDef
    weights: nnx.State
    config: ModelConfig
    policy: AttentionPolicy
    sampling: Sampling
    settings: EngineSettings
    cache_dtype: DTypeLike
    backend: Backend | None
    mesh: Mesh | None
    known_ids: Bool[Array, " vocab"] | None = None  # that may be drawn; None: all

    @property
    def shards(self) -> int:
        """How many shards slots and pages are split into."""
        return row_shards(self.mesh)

    @property
    def page_bytes(self) -> int:
        """Bytes of a page's K and V on one device."""
        return bytes_per_page(self.config, page_size=self.policy.page_size, dtype=self.cache_dtype, mesh=self.mesh)

    @property
    def draws(self) -> dict[str, Any]:
        """Static arguments of every program that draws tokens.

        max_tokens, seed and the ids that may be drawn are traced values and repetition is checked on the host, so
        changing them must not recompile.
        """
        sampling = dataclasses.replace(self.sampling, max_tokens=1, seed=0, repetition_window=0, known_ids_only=False)
        return {"sampling": sampling, "eos": self.config.eos_token_ids}

    @property
    def decodes(self) -> dict[str, Any]:
        """Static arguments of `decode_chunk`."""
        return {**self.draws, "policy": self.policy, "chunk": self.settings.chunk, "backend": self.backend}

    def describe_pool(self, num_pages: int) -> str:
        """See `capacity.describe_pool`."""
        return describe_pool(num_pages, page_size=self.policy.page_size, page_bytes=self.page_bytes, mesh=self.mesh)


@dataclasses.dataclass(frozen=True)
class Job:
    """Requests that an engine has checked, and what it decided by all of them: the width of the page table, the pages
    in the pool (those of all shards), and whether dense layers share prefixes.

    Made by `Engine.check`. Requests without samples count too: a run that is continued computes at the widths of the
    whole one.
    """

    requests: Sequence[Request]
    table_width: int
    num_pages: int
    shared_prefix: bool

    @property
    def samples(self) -> int:
        """How many samples are wanted."""
        return sum(len(request.samples) for request in self.requests)

    @property
    def longest_prompt(self) -> int:
        """In tokens."""
        return max(len(request.prompt) for request in self.requests)

    def without(self, done: Collection[tuple[str, int]]) -> Job:
        """The job without the samples of `done`, (problem, sample) each."""
        left = [
            dataclasses.replace(
                request, samples=[sample for sample in request.samples if (request.problem, sample) not in done]
            )
            for request in self.requests
        ]
        return dataclasses.replace(self, requests=left)


def shared_prefix(setup: Setup, job: Job, running: Mapping[int, Running]) -> SharedPrefix | None:
    """Which of the running samples, by slot, share prompt pages in the next chunk; None for a job without sharing."""
    if not job.shared_prefix:
        return None
    slots, page_size = setup.settings.slots, setup.policy.page_size
    return share_prefixes(
        ((slot, run.pages, len(run.request.prompt) // page_size) for slot, run in running.items()),
        slots=slots,
        width=prefix_width(slots, setup.config.group, setup.backend),
        prefix_pages=min(table_width(max(job.longest_prompt // page_size, 1)), job.table_width),
        max_pages=job.table_width,
        page_size=page_size,
    )


class Decoding:
    """One run over a job's requests, with a cache and slots of its own, which go when it goes.

    `cache` and `slots` are on the device. `table [slots, table_width]` int32 names every slot's pages, -1 unused.
    `schedules` has one for each shard; `counts` fill as the run goes. Raises RequestError where the device has no room
    for the cache.
    """

    def __init__(self, setup: Setup, job: Job):
        self.setup, self.job = setup, job
        slots, shards = setup.settings.slots, setup.shards
        self.counts = Counts()
        self.schedules: list[Schedule] = []
        for shard in range(shards):
            self.schedules.append(
                Schedule(
                    job.requests,
                    slots=slots // shards,
                    num_pages=job.num_pages // shards,
                    page_size=setup.policy.page_size,
                    chunk=setup.settings.chunk,
                    max_tokens=setup.sampling.max_tokens,
                    repetition_window=setup.sampling.repetition_window,
                    first_slot=shard * (slots // shards),
                    beside=self.schedules[0] if shard else None,
                )
            )
        self._warned = False
        self.seed = seed_key(setup.sampling.seed)
        self.slots = Slots.idle(slots, self.seed, setup.mesh)
        self.table = np.full((slots, job.table_width), -1, np.int32)
        try:
            self.cache = empty_cache(
                setup.policy,
                setup.config,
                num_pages=job.num_pages,
                dtype=setup.cache_dtype,
                rows=slots,
                mesh=setup.mesh,
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise RequestError(
                f"{setup.describe_pool(job.num_pages)}, more than the device has left; {SMALLER_POOL}"
            ) from error

    def run(self, on_chunk: Callable[[int], None] = lambda tokens: None) -> Iterator[Finished]:
        """Decodes to the end; yields every sample as it finishes.

        `on_chunk` is called with the number of tokens that each chunk drew, after what finished in it was yielded.
        Raises PolicyError for a policy that chooses what it may not, after the other samples of that chunk.
        """
        while any(schedule.unfinished for schedule in self.schedules):
            self._preempt()
            self._refill()
            first, drawn, active, counts, faults = self._decode()
            new_tokens = 0
            going = active.copy()
            running = [(schedule, *item) for schedule in self.schedules for item in schedule.running.items()]
            broken: PolicyError | None = None
            for schedule, slot, sample in running:
                if faults[slot]:
                    where = f"problem {sample.request.problem!r:.80}, sample {sample.sample}"
                    broken = broken or policy_fault(self.setup.policy, int(faults[slot]), where)
                    continue
                fresh = [int(first[slot])] if not sample.tokens else []
                fresh += drawn[slot][drawn[slot] != IDLE].tolist()
                before = max(len(sample.tokens), 1)  # the first token takes no decode step
                sample.add(fresh)
                sample.read += counts[slot, : max(len(sample.tokens) - before, 0)].sum(axis=0)
                new_tokens += len(fresh) - sample.nonfinite
                going[slot] &= not sample.repeats
                if not going[slot]:
                    if sample.nonfinite:
                        self._warn_once(sample)
                    yield self._finished(schedule.finish(slot))
            if broken is not None:  # what finished beside it is kept
                raise broken
            if not np.array_equal(going, active):
                self.slots = dataclasses.replace(self.slots, active=self._rows(going))
            on_chunk(new_tokens)

    def _decode(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Decodes a chunk. Returns the token that each slot began with, those it drew, whether it goes on, what each
        step read (int64 `[slots, chunk, 2]`), and the policy's faults.
        """
        for schedule in self.schedules:
            schedule.reserve(self.table)
        setup, before = self.setup, self.slots
        waits = any(schedule.waiting or schedule.preempted for schedule in self.schedules)
        self.cache, self.slots, drawn, reads = decode_chunk(
            setup.graph,
            setup.weights,
            self.cache,
            before,
            self._rows(self.table),
            jnp.int32(patience(setup.settings.slots) if waits else setup.settings.slots),
            shared_prefix(setup, self.job, self.schedules[0].running),
            setup.known_ids,
            **setup.decodes,
        )
        first, drawn, active, reads = jax.device_get((before.token, drawn, self.slots.active, reads))
        self._count(drawn, waits)
        return first, drawn, active, join_halves(reads.counts), reads.fault

    def _count(self, drawn: np.ndarray, waits: bool) -> None:
        busy = drawn != IDLE
        steps = int(np.any(busy, axis=0).sum())
        self.counts.steps += steps
        self.counts.drawn += int((drawn >= 0).sum())
        if waits:
            self.counts.offered += steps * self.setup.settings.slots
            self.counts.busy += int(busy.sum())

    def _rows(self, array: np.ndarray) -> jax.Array:
        """A host's array with a row for each slot, or for each shard, on the devices."""
        mesh = self.setup.mesh
        return jnp.asarray(array) if mesh is None else jax.device_put(array, rows_sharding(mesh))

    def _preempt(self) -> None:
        """Preempts the youngest samples until the pool holds the next chunk of all others."""
        for shard, schedule in enumerate(self.schedules):
            while (slot := schedule.victim()) is not None:
                running = schedule.running[slot]
                pages = running.pages[: pages_for(running.stored, schedule.page_size)]
                saved = [jax.device_get(save_pages(self.cache, jnp.int32(shard), ids)) for ids in _page_groups(pages)]
                carried = jax.device_get(save_carried(self.cache, jnp.int32(slot))) if self.cache.carried else {}
                active = np.array(self.slots.active)
                active[slot] = False
                self.slots = dataclasses.replace(self.slots, active=self._rows(active))
                schedule.preempt(slot, (saved, carried))
                self.counts.preempted += 1

    def _refill(self) -> None:
        """Lets preempted samples go on and waiting ones start, while there are slots and pages."""
        for shard, schedule in enumerate(self.schedules):
            for slot, running, places in schedule.resume():
                groups, carried = running.saved
                for ids, saved in zip(_page_groups(places), groups, strict=True):
                    self.cache = load_pages(self.cache, jnp.int32(shard), ids, saved)
                if carried:
                    self.cache = load_carried(self.cache, jnp.int32(slot), carried)
                running.saved = None
                resumed = Resumed(
                    slot=jnp.int32(slot),
                    token=jnp.int32(running.tokens[-1]),
                    stored=jnp.int32(running.stored),
                    produced=jnp.int32(len(running.tokens)),
                    limit=jnp.int32(self.setup.sampling.max_tokens),
                    seed=self.seed,
                    problem=jnp.uint32(problem_hash(running.request.problem)),
                    sample=jnp.int32(running.sample),
                )
                self.slots = resume_sample(self.slots, resumed)
        # One prompt for each shard at a time: they are prefilled side by side.
        while admitted := [
            (shard, *samples) for shard, schedule in enumerate(self.schedules) if (samples := schedule.admit())
        ]:
            self._prefill({shard: prompt for shard, prompt, _ in admitted if prompt.logits is None})
            for shard, prompt, started in admitted:
                self._start(self.schedules[shard], prompt, started)
                self.schedules[shard].started(prompt)

    def _prefill(self, prompts: dict[int, Prompt]) -> None:
        """Computes K and V of prompts, by shard, into their pages, and the logits `[shards, vocab]` after the last
        token of each. Prompts padded to one shape are computed together; each one's shape depends on its own length
        alone, so that its bits do.
        """
        page_size, asked = self.setup.policy.page_size, self.setup.settings.prefill_chunk
        chunk = prefill_size(page_size, asked)
        alike: dict[int, dict[int, Prompt]] = {}
        for shard, prompt in prompts.items():
            length = len(prompt.request.prompt)
            shaped = self.job.longest_prompt if length > chunk else length  # one shape for all long prompts of a run
            alike.setdefault(prompt_shape(shaped, page_size, asked)[1], {})[shard] = prompt
        for bucket, group in alike.items():
            tokens = np.zeros((self.setup.shards, bucket), np.int32)
            lengths = np.zeros(self.setup.shards, np.int32)
            table = np.full((self.setup.shards, bucket // page_size), -1, np.int32)
            for shard, prompt in group.items():
                length = lengths[shard] = len(prompt.request.prompt)
                tokens[shard, :length] = prompt.request.prompt
                table[shard, : len(prompt.pages)] = prompt.pages
            whole = int(lengths.max()) <= chunk
            for start in range(0, int(lengths.max()), bucket if whole else chunk):
                logits = self._prefill_from(start, bucket if whole else chunk, tokens, lengths, table, whole)
                for shard, prompt in group.items():
                    if start < lengths[shard]:
                        prompt.logits = logits
            self.counts.prefills += len(group)

    def _prefill_from(
        self, start: int, size: int, tokens: np.ndarray, lengths: np.ndarray, table: np.ndarray, whole: bool
    ) -> jax.Array:
        """Computes tokens `start … start + size` of prompts `[shards, …]`, which are all (`whole`) or a chunk."""
        graph, weights = self.setup.graph, self.setup.weights
        part, rows = self._rows(tokens[:, start : start + size]), (self._rows(lengths), self._rows(table))
        if self.setup.mesh is None:
            rows = jnp.int32(lengths[0]), jnp.asarray(table[0])
        if whole:
            self.cache, logits = prefill(graph, weights, self.cache, part, *rows)
        else:
            self.cache, logits = prefill_chunk(graph, weights, self.cache, part, jnp.int32(start), *rows)
        return logits

    def _start(self, schedule: Schedule, prompt: Prompt, started: dict[int, Running]) -> None:
        """Starts samples of a prompt on the device, by slot."""
        length, slots = len(prompt.request.prompt), self.setup.settings.slots
        partial = length % self.setup.policy.page_size != 0
        chosen, samples, target = np.zeros(slots, bool), np.zeros(slots, np.int32), np.full(slots, -1, np.int32)
        for slot, running in started.items():
            chosen[slot], samples[slot] = True, running.sample
            if partial:
                schedule.grow(running, pages_for(length, schedule.page_size))
                target[slot] = running.pages[-1]
        starts = Starts(
            logits=prompt.logits,
            chosen=self._rows(chosen),
            samples=self._rows(samples),
            limit=jnp.int32(self.setup.sampling.max_tokens),
            length=jnp.int32(length),
            seed=self.seed,
            problem=jnp.uint32(problem_hash(prompt.request.problem)),
            source=jnp.int32(prompt.pages[-1]),
            target=self._rows(target),
        )
        self.cache, self.slots = start_samples(self.cache, self.slots, starts, self.setup.known_ids, **self.setup.draws)

    def _warn_once(self, sample: Running) -> None:
        """Warns of the run's first sample whose logits were not finite, and says where that began."""
        if self._warned:
            return
        self._warned = True
        where = f"problem {sample.request.problem!r}, sample {sample.sample}, token {len(sample.tokens)}"
        tokens = [*sample.request.prompt, *sample.tokens]
        warnings.warn(nonfinite_warning(self.setup.graph, self.setup.weights, tokens, where), stacklevel=3)

    def _finished(self, running: Running) -> Finished:
        ended = not running.nonfinite and running.tokens[-1] in self.setup.config.eos_token_ids
        unfinished = "nonfinite" if running.nonfinite else "repetition" if running.repeats else "length"
        return Finished(
            problem=running.request.problem,
            sample=running.sample,
            prompt_tokens=len(running.request.prompt),
            output_tokens=running.tokens,
            finish_reason="stop" if ended else unfinished,
            seconds=time.perf_counter() - running.began,
            attended_tokens=int(running.read[0]),
            summary_vectors=int(running.read[1]),
        )


def _page_groups(pages: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
    """Page ids `PAGES_PER_COPY` at a time, the last group padded with -1: one shape to compile."""
    for start in range(0, len(pages), PAGES_PER_COPY):
        group = np.full(PAGES_PER_COPY, -1, np.int32)
        part = pages[start : start + PAGES_PER_COPY]
        group[: len(part)] = part
        yield group
