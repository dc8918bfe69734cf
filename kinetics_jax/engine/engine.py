"""Batched decoding: prompts are prefilled once, their samples share the prompt's pages and fill a fixed set of slots.

The device runs decode chunks, each one jitted while_loop; between chunks the host takes out what has finished, hands
out pages for the next steps and refills the slots. A sample's tokens depend on its key and its row alone, never on the
slot it sits in, its neighbours or when it was admitted.
"""

from __future__ import annotations

import collections
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from kinetics_jax.attention.cache import empty_cache
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.shared_prefix import (
    SharedPrefix,
    prefix_obstacle,
    prefix_width,
    share_prefixes,
    sharing_chosen,
)
from kinetics_jax.config import ModelConfig
from kinetics_jax.engine.abstract import abstract_cache, abstract_rows, abstract_scalar, abstract_slots
from kinetics_jax.engine.capacity import SMALLER_POOL, device_memory
from kinetics_jax.engine.programs import (
    Slots,
    decode_chunk,
    load_pages,
    prefill,
    prefill_chunk,
    resume_sample,
    save_pages,
    start_samples,
)
from kinetics_jax.engine.sampling import problem_hash, seed_key
from kinetics_jax.engine.schedule import Prompt, Request, Running, Schedule
from kinetics_jax.padding import pool_pages, prefill_size, prompt_shape, table_width, whole_runs
from kinetics_jax.settings import EngineSettings, RequestError, Sampling
from kinetics_jax.sharding.mesh import check_mesh, kv_copies, mesh_spelling, row_shards, rows_sharding

SAVED_AT_A_TIME = 64  # pages of a sample on their way to the host or back


@dataclasses.dataclass(frozen=True)
class Finished:
    """One finished sample: its token ids, the end token included, and why it ended: `stop` (it drew an end token),
    `length` (it has max_tokens) or `repetition` (its last `Sampling.repetition_window` tokens repeat).
    """

    problem: str
    sample: int
    prompt_tokens: int
    output_tokens: list[int]
    finish_reason: str
    seconds: float


@dataclasses.dataclass
class Counts:
    """What a run did: decode `steps`; `drawn` tokens; of the `offered` rows of steps taken while samples waited, those
    that were `busy`; `prefills`, repeated ones included; how often a sample was `set_aside`.
    """

    steps: int = 0
    drawn: int = 0
    offered: int = 0
    busy: int = 0
    prefills: int = 0
    set_aside: int = 0


class Engine:
    """Decodes requests under one policy and one sampling; yields samples as they finish.

    `graph, weights` are `nnx.split(model)`; `backend` forces the kernels' backend. On a `mesh` (the model's) slots and
    pages are split among its shards: a sample decodes where its pages are, and a prompt is prefilled on each shard that
    draws samples of it. Raises MeshError where the mesh does not divide the model, RequestError where not the slots.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        weights: nnx.State,
        config: ModelConfig,
        *,
        policy: AttentionPolicy,
        sampling: Sampling,
        settings: EngineSettings = EngineSettings(),
        cache_dtype: DTypeLike = jnp.float32,
        backend: str | None = None,
        mesh: Mesh | None = None,
    ):
        self.mesh, self.shards = mesh, row_shards(mesh)
        if mesh is not None:
            check_mesh(mesh, config)
            if settings.slots % self.shards:
                raise RequestError(
                    f"engine: {settings.slots} slots cannot be split over mesh {mesh_spelling(mesh)!r}; make slots a "
                    f"multiple of {self.shards}"
                )
        self.graph, self.weights, self.config = graph, weights, config
        self.policy, self.sampling, self.settings = policy, sampling, settings
        self.cache_dtype, self.backend = cache_dtype, backend
        # The limit and the seed reach the device as numbers, repetition is the host's: none may compile another step.
        self._static_sampling = dataclasses.replace(sampling, max_tokens=1, seed=0, repetition_window=0)
        self.page_size = policy.page_size
        self.eos = config.eos_token_ids
        self.counts = Counts()
        self._open = False

    def check(self, requests: Sequence[Request]) -> None:
        """Raises RequestError naming the first request that cannot be run."""
        for layer in getattr(self.policy, "dense_layers", ()):
            if layer >= self.config.num_layers:
                raise RequestError(f"{self.policy}: there is no layer {layer}; the model has {self.config.num_layers}")
        if odd := [request for request in requests if len(set(request.samples)) < len(request.samples)]:
            raise RequestError(f"problem {odd[0].problem!r}: its samples {list(odd[0].samples)} name one twice")
        counts = collections.Counter(request.problem for request in requests)
        if repeated := [problem for problem, count in counts.items() if count > 1]:
            raise RequestError(f"problem {repeated[0]!r} is requested twice; ids fix the random draws and must differ")
        positions, vocab = self.config.max_position_embeddings, self.config.vocab_size
        for request in requests:
            where, tokens = f"problem {request.problem!r}", len(request.prompt)
            if not tokens:
                raise RequestError(f"{where}: the prompt holds no token")
            if not (min(request.prompt) >= 0 and max(request.prompt) < vocab):
                raise RequestError(f"{where}: token ids must lie in 0 … {vocab - 1}")
            if tokens + self.sampling.max_tokens > positions:
                raise RequestError(
                    f"{where}: {tokens} prompt tokens and max_tokens {self.sampling.max_tokens} exceed the model's "
                    f"{positions} positions; lower max_tokens"
                )
            worst, num_pages = self._worst_case(tokens), self.settings.num_pages
            if num_pages is not None and num_pages // self.shards < worst:
                each = f" on each of {self.shards} shards" if self.shards > 1 else ""
                raise RequestError(
                    f"{where}: {num_pages // self.shards} pages of {self.page_size} tokens{each} cannot hold its "
                    f"{worst}; raise num_pages or lower max_tokens"
                )
        if requests:
            _, num_pages = self._pool(requests)
            memory = device_memory(self.mesh)
            if memory is not None and self._pool_bytes(num_pages) > memory[0]:
                raise RequestError(
                    f"{self._pool_size(num_pages)}, more than the device's {memory[0] / 1e9:,.1f} GB; {SMALLER_POOL}"
                )
            self.shares_prefix(requests)
            if self.backend:
                self._check_backend(requests)

    def shares_prefix(self, requests: Sequence[Request]) -> bool:
        """Whether these requests are decoded with shared prefixes: as set, else as the cost model finds that it pays.

        Raises RequestError where that was asked for and cannot be.
        """
        asked, obstacle = self.settings.shared_prefix, self.prefix_obstacle
        if asked and obstacle:
            raise RequestError(f"engine: shared_prefix {obstacle}; leave it out")
        if asked is not None or obstacle:
            return bool(asked)
        return sharing_chosen(
            self.config,
            [(len(request.prompt), len(request.samples)) for request in requests],
            slots=self.settings.slots,
            page_size=self.page_size,
            dtype=self.cache_dtype,
            backend=self.backend,
        )

    @property
    def prefix_obstacle(self) -> str | None:
        """Why prefixes cannot be shared here; None where they can."""
        return prefix_obstacle(
            self.config, self.policy, slots=self.settings.slots, backend=self.backend, mesh=self.mesh
        )

    def _shared(self, longest: int, max_pages: int, running: Mapping[int, Running]) -> SharedPrefix:
        """Who shares prompt pages in the next chunk; `longest` tokens are in the longest prompt of the run."""
        slots = self.settings.slots
        return share_prefixes(
            ((slot, run.pages, len(run.request.prompt) // self.page_size) for slot, run in running.items()),
            slots=slots,
            width=prefix_width(slots, self.config.group, self.backend),
            prefix_pages=min(table_width(max(longest // self.page_size, 1)), max_pages),
            max_pages=max_pages,
            page_size=self.page_size,
        )

    def _check_backend(self, requests: Sequence[Request]) -> None:
        """Traces a decode step: what a forced backend cannot do is told before anything is computed."""
        max_pages, num_pages = self._pool(requests)
        slots, longest = self.settings.slots, max(len(request.prompt) for request in requests)
        try:
            decode_chunk.eval_shape(
                self.graph,
                self.weights,
                abstract_cache(self.policy, self.config, num_pages=num_pages, dtype=self.cache_dtype, mesh=self.mesh),
                abstract_slots(slots, self.mesh),
                abstract_rows((slots, max_pages), self.mesh),
                abstract_scalar(self.mesh),
                self._shared(longest, max_pages, {}) if self.shares_prefix(requests) else None,
                policy=self.policy,
                sampling=self._static_sampling,
                eos=self.eos,
                chunk=self.settings.chunk,
                backend=self.backend,
            )
        except NotImplementedError as error:
            raise RequestError(str(error)) from error

    def run(
        self, requests: Iterable[Request], *, on_chunk: Callable[[int], None] = lambda tokens: None
    ) -> Iterator[Finished]:
        """Yields every requested sample in the order they finish; `on_chunk` hears how many tokens a chunk drew.

        Raises RequestError, before anything is computed, when a request cannot be run.
        """
        if self._open:
            raise RuntimeError("this engine is running; end that run, or make another engine")
        requests = list(requests)
        self.check(requests)
        if not any(request.samples for request in requests):
            return
        self._open = True
        try:
            yield from self._run(requests, on_chunk)
        finally:
            self._open = False

    def _run(self, requests: list[Request], on_chunk: Callable[[int], None]) -> Iterator[Finished]:
        self._prepare(requests)  # those without samples too: a continued run computes at the widths of the whole one
        schedules, shares = self._schedules, self.shares_prefix(requests)
        while any(schedule.unfinished for schedule in schedules):
            self._make_room()
            self._refill()
            for schedule in schedules:
                schedule.reserve(self._table)
            before = self._slots
            waits = any(schedule.waiting or schedule.aside for schedule in schedules)
            patience = max(1, self.settings.slots // 8) if waits else self.settings.slots
            self._cache, self._slots, drawn = decode_chunk(
                self.graph,
                self.weights,
                self._cache,
                before,
                self._rows(self._table),
                jnp.int32(patience),
                self._shared(self._longest_prompt, self._max_pages, schedules[0].running) if shares else None,
                policy=self.policy,
                sampling=self._static_sampling,
                eos=self.eos,
                chunk=self.settings.chunk,
                backend=self.backend,
            )
            first, drawn, active = jax.device_get((before.token, drawn, self._slots.active))
            self._count(drawn, waits)
            new_tokens = 0
            going = active.copy()
            for schedule, (slot, running) in [(each, item) for each in schedules for item in each.running.items()]:
                fresh = [int(first[slot])] if not running.tokens else []
                fresh += drawn[slot][drawn[slot] >= 0].tolist()
                running.add(fresh)
                new_tokens += len(fresh)
                going[slot] &= not running.repeats
                if not going[slot]:
                    yield self._finished(schedule.finish(slot))
            if not np.array_equal(going, active):
                self._slots = dataclasses.replace(self._slots, active=self._rows(going))
            on_chunk(new_tokens)

    def _prepare(self, requests: list[Request]) -> None:
        """A fresh cache, wide enough for the longest request."""
        self._max_pages, num_pages = self._pool(requests)
        slots = self.settings.slots
        self._seed = seed_key(self.sampling.seed)
        self._schedules: list[Schedule] = []
        for shard in range(self.shards):
            self._schedules.append(
                Schedule(
                    requests,
                    slots=slots // self.shards,
                    num_pages=num_pages // self.shards,
                    page_size=self.page_size,
                    chunk=self.settings.chunk,
                    max_tokens=self.sampling.max_tokens,
                    repetition_window=self.sampling.repetition_window,
                    first_slot=shard * (slots // self.shards),
                    beside=self._schedules[0] if shard else None,
                )
            )
        try:
            self._cache = empty_cache(
                self.policy, self.config, num_pages=num_pages, dtype=self.cache_dtype, mesh=self.mesh
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise RequestError(
                f"{self._pool_size(num_pages)}, more than the device has left; {SMALLER_POOL}"
            ) from error
        self._slots = Slots.idle(slots, self._seed, self.mesh)
        self._table = np.full((slots, self._max_pages), -1, np.int32)
        self._longest_prompt = max(len(request.prompt) for request in requests)
        self.counts = Counts()

    def _count(self, drawn: np.ndarray, waits: bool) -> None:
        busy = drawn >= 0
        steps = int(np.any(busy, axis=0).sum())
        self.counts.steps += steps
        self.counts.drawn += int(busy.sum())
        if waits:
            self.counts.offered += steps * self.settings.slots
            self.counts.busy += int(busy.sum())

    def _pool(self, requests: Sequence[Request]) -> tuple[int, int]:
        """Pages that the longest request can have, and pages in the pool, those of all shards."""
        longest = max(len(request.prompt) for request in requests)
        slots = self.settings.slots // self.shards
        max_pages, enough = pool_pages(longest + self.sampling.max_tokens, self.page_size, slots)
        if self.settings.num_pages is not None:
            return max_pages, self.settings.num_pages // self.shards * self.shards
        if memory := device_memory(self.mesh):
            fits = memory[1] // self._pool_bytes(self.shards)
            enough = min(enough, whole_runs(max(fits, self._worst_case(longest))))
        return max_pages, enough * self.shards

    def _pool_bytes(self, num_pages: int) -> int:
        """Bytes of K and V on a device, summaries left out; `num_pages` are those of all shards."""
        elements = num_pages // self.shards * self.page_size * self.config.kv_elements_per_token
        if self.mesh is not None:
            elements = elements * kv_copies(self.config.num_kv_heads, self.mesh) // self.mesh.shape["tensor"]
        return elements * jnp.dtype(self.cache_dtype).itemsize

    def _pool_size(self, num_pages: int) -> str:
        gigabytes = self._pool_bytes(num_pages) / 1e9
        where = " on each device" if self.mesh is not None else ""
        return f"the KV pool of {num_pages} pages of {self.page_size} tokens needs {gigabytes:,.1f} GB{where}"

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _rows(self, array: np.ndarray) -> jax.Array:
        """A host's array with a row for each slot, or for each shard, on the devices."""
        return jnp.asarray(array) if self.mesh is None else jax.device_put(array, rows_sharding(self.mesh))

    def _make_room(self) -> None:
        """Sets the youngest samples aside until the pool holds the next chunk of all others."""
        for shard, schedule in enumerate(self._schedules):
            while (slot := schedule.victim()) is not None:
                running = schedule.running[slot]
                pages = running.pages[: self._pages_for(running.stored)]
                saved = [jax.device_get(save_pages(self._cache, jnp.int32(shard), ids)) for ids in _page_groups(pages)]
                active = np.array(self._slots.active)
                active[slot] = False
                self._slots = dataclasses.replace(self._slots, active=self._rows(active))
                schedule.set_aside(slot, saved)
                self.counts.set_aside += 1

    def _refill(self) -> None:
        """Samples set aside go on, waiting ones start, while there are slots and pages."""
        for shard, schedule in enumerate(self._schedules):
            for slot, running, places in schedule.resume():
                for ids, saved in zip(_page_groups(places), running.saved, strict=True):
                    self._cache = load_pages(self._cache, jnp.int32(shard), ids, saved)
                running.saved = None
                self._slots = resume_sample(
                    self._slots,
                    jnp.int32(slot),
                    jnp.int32(running.tokens[-1]),
                    jnp.int32(running.stored),
                    jnp.int32(len(running.tokens)),
                    jnp.int32(self.sampling.max_tokens),
                    self._seed,
                    jnp.uint32(problem_hash(running.request.problem)),
                    jnp.int32(running.sample),
                )
        # One prompt for each shard at a time: they are prefilled side by side.
        while admitted := [
            (shard, *found) for shard, schedule in enumerate(self._schedules) if (found := schedule.admit())
        ]:
            self._prefill({shard: prompt for shard, prompt, _ in admitted if prompt.logits is None})
            for shard, prompt, started in admitted:
                self._start(self._schedules[shard], prompt, started)
                self._schedules[shard].started(prompt)

    def _prefill(self, prompts: dict[int, Prompt]) -> None:
        """Computes K and V of prompts, by shard, into their pages, and the logits `[shards, vocab]` after the last
        token of each. Those of one shape go together: a prompt's shape is its own affair, so that its bits are.
        """
        asked = self.settings.prefill_chunk
        chunk = prefill_size(self.page_size, asked)
        alike: dict[int, dict[int, Prompt]] = {}
        for shard, prompt in prompts.items():
            length = len(prompt.request.prompt)
            shaped = self._longest_prompt if length > chunk else length  # one shape for all long prompts of a run
            alike.setdefault(prompt_shape(shaped, self.page_size, asked)[1], {})[shard] = prompt
        for bucket, group in alike.items():
            tokens = np.zeros((self.shards, bucket), np.int32)
            lengths = np.zeros(self.shards, np.int32)
            table = np.full((self.shards, bucket // self.page_size), -1, np.int32)
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
        part, rows = self._rows(tokens[:, start : start + size]), (self._rows(lengths), self._rows(table))
        if self.mesh is None:
            rows = jnp.int32(lengths[0]), jnp.asarray(table[0])
        if whole:
            self._cache, logits = prefill(self.graph, self.weights, self._cache, part, *rows)
        else:
            self._cache, logits = prefill_chunk(self.graph, self.weights, self._cache, part, jnp.int32(start), *rows)
        return logits

    def _worst_case(self, length: int) -> int:
        """Pages of one sequence at full length, beside the partial page of its prompt."""
        return self._pages_for(length + self.sampling.max_tokens) + 1

    def _start(self, schedule: Schedule, prompt: Prompt, started: dict[int, Running]) -> None:
        """Starts samples of a prompt on the device, by slot."""
        length = len(prompt.request.prompt)
        partial = length % self.page_size != 0
        slots = self.settings.slots
        chosen, samples, target = np.zeros(slots, bool), np.zeros(slots, np.int32), np.full(slots, -1, np.int32)
        for slot, running in started.items():
            chosen[slot], samples[slot] = True, running.sample
            if partial:
                schedule.grow(running, self._pages_for(length))
                target[slot] = running.pages[-1]
        self._cache, self._slots = start_samples(
            self._cache,
            self._slots,
            prompt.logits,
            self._rows(chosen),
            self._rows(samples),
            jnp.int32(self.sampling.max_tokens),
            jnp.int32(length),
            self._seed,
            jnp.uint32(problem_hash(prompt.request.problem)),
            jnp.int32(prompt.pages[-1]),
            self._rows(target),
            sampling=self._static_sampling,
            eos=self.eos,
        )

    def _finished(self, running: Running) -> Finished:
        reason = "stop" if running.tokens[-1] in self.eos else "repetition" if running.repeats else "length"
        return Finished(
            problem=running.request.problem,
            sample=running.sample,
            prompt_tokens=len(running.request.prompt),
            output_tokens=running.tokens,
            finish_reason=reason,
            seconds=time.perf_counter() - running.began,
        )


def _page_groups(pages: Sequence[int] | np.ndarray) -> Iterator[np.ndarray]:
    """Page ids `SAVED_AT_A_TIME` at a time, the last group padded with -1: one shape to compile."""
    for start in range(0, len(pages), SAVED_AT_A_TIME):
        group = np.full(SAVED_AT_A_TIME, -1, np.int32)
        part = pages[start : start + SAVED_AT_A_TIME]
        group[: len(part)] = part
        yield group
