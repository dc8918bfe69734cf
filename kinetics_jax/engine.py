"""Batched decoding: prompts are prefilled once, their samples share the prompt's pages and fill a fixed set of slots.

The device runs decode chunks, each one jitted while_loop; between chunks the host takes out what has finished, hands
out pages for the next steps and refills the slots. A sample's tokens depend on its key and its row alone, never on the
slot it sits in, its neighbours or when it was admitted.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from kinetics_jax.attention import empty_cache, paged_tile
from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import UserError
from kinetics_jax.pages import RUN
from kinetics_jax.policies import Policy, Sampling
from kinetics_jax.sampling import problem_hash, seed_key
from kinetics_jax.schedule import Prompt, Request, Running, Schedule
from kinetics_jax.steps import (
    Slots,
    decode_chunk,
    load_pages,
    prefill,
    prefill_chunk,
    resume_sample,
    save_pages,
    start_samples,
)


class RequestError(UserError):
    """A request, or engine settings, that cannot be run; the message names the problem or the setting and the cure."""


SMALLER_POOL = "lower slots, max_tokens or num_pages"
# Beyond these a setting is a slip of the hand.
MOST = {"slots": 1 << 16, "chunk": 1 << 16, "num_pages": 1 << 30, "prefill_chunk": 1 << 24}
PREFILL_CHUNK = 2048
SAVED_AT_A_TIME = 64  # pages of a sample on their way to the host or back


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """`slots` sequences decode side by side; a chunk is at most `chunk` steps, and ends early once an eighth of the
    slots has stopped while others wait. `num_pages` bounds the pool (default: every slot's worst case, or as much of it
    as the device's memory holds); when it runs dry, the youngest samples are set aside in the host's memory. Prompts of
    more than `prefill_chunk` tokens are prefilled so many at a time (rounded up to whole tiles of attention).
    """

    slots: int = 32
    chunk: int = 32
    num_pages: int | None = None
    prefill_chunk: int = PREFILL_CHUNK

    def __post_init__(self) -> None:
        for name, most in MOST.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise RequestError(f"engine: {name} must be in 1 … {most}, got {value}")


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


def device_memory() -> tuple[int, int] | None:
    """Bytes of memory of the default device, all of it and what a KV pool may take; None where it does not tell.

    A pool gets nine tenths of what an accelerator has left, half of a host's memory.
    """
    device = jax.devices()[0]
    if device.platform == "cpu":
        if not hasattr(os, "sysconf"):
            return None
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return memory, memory // 2
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"], (stats["bytes_limit"] - stats.get("bytes_in_use", 0)) * 9 // 10


def _rounded(pages: int) -> int:
    """At most an eighth more (or 7), so that prompts of similar length share one compiled program."""
    step = max(8, 1 << max(0, pages.bit_length() - 4))
    return -(-pages // step) * step


class Engine:
    """Decodes requests under one policy and one sampling; yields samples as they finish.

    `graph, weights` are `nnx.split(model)`; `backend` forces the kernels' backend.
    """

    def __init__(
        self,
        graph: nnx.GraphDef,
        weights: nnx.State,
        config: ModelConfig,
        *,
        policy: Policy,
        sampling: Sampling,
        settings: EngineSettings = EngineSettings(),
        cache_dtype: DTypeLike = jnp.float32,
        backend: str | None = None,
    ):
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
            if num_pages is not None and num_pages < worst:
                raise RequestError(
                    f"{where}: {num_pages} pages of {self.page_size} tokens cannot hold its {worst}; "
                    f"raise num_pages or lower max_tokens"
                )
        if requests:
            _, num_pages = self._pool(requests)
            memory = device_memory()
            if memory is not None and self._pool_bytes(num_pages) > memory[0]:
                raise RequestError(
                    f"{self._pool_size(num_pages)}, more than the device's {memory[0] / 1e9:,.1f} GB; {SMALLER_POOL}"
                )
            if self.backend:
                self._check_backend(requests)

    def _check_backend(self, requests: Sequence[Request]) -> None:
        """Traces a decode step: what a forced backend cannot do is told before anything is computed."""
        max_pages, num_pages = self._pool(requests)
        slots = self.settings.slots
        try:
            decode_chunk.eval_shape(
                self.graph,
                self.weights,
                jax.eval_shape(
                    lambda: empty_cache(self.policy, self.config, num_pages=num_pages, dtype=self.cache_dtype)
                ),
                jax.eval_shape(lambda: Slots.idle(slots, seed_key(0))),
                jax.ShapeDtypeStruct((slots, max_pages), jnp.int32),
                jax.ShapeDtypeStruct((), jnp.int32),
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
        schedule = self._schedule
        while schedule.unfinished:
            self._make_room()
            self._refill()
            schedule.reserve(self._table)
            before = self._slots
            waits = bool(schedule.waiting or schedule.aside)
            patience = max(1, self.settings.slots // 8) if waits else self.settings.slots
            self._cache, self._slots, drawn = decode_chunk(
                self.graph,
                self.weights,
                self._cache,
                before,
                jnp.asarray(self._table),
                jnp.int32(patience),
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
            for slot, running in list(schedule.running.items()):
                fresh = [int(first[slot])] if not running.tokens else []
                fresh += drawn[slot][drawn[slot] >= 0].tolist()
                running.add(fresh)
                new_tokens += len(fresh)
                going[slot] &= not running.repeats
                if not going[slot]:
                    yield self._finished(schedule.finish(slot))
            if not np.array_equal(going, active):
                self._slots = dataclasses.replace(self._slots, active=jnp.asarray(going))
            on_chunk(new_tokens)

    def _prepare(self, requests: list[Request]) -> None:
        """A fresh cache, wide enough for the longest request."""
        self._max_pages, num_pages = self._pool(requests)
        slots = self.settings.slots
        self._seed = seed_key(self.sampling.seed)
        self._schedule = Schedule(
            requests,
            slots=slots,
            num_pages=num_pages,
            page_size=self.page_size,
            chunk=self.settings.chunk,
            max_tokens=self.sampling.max_tokens,
            repetition_window=self.sampling.repetition_window,
        )
        try:
            self._cache = empty_cache(self.policy, self.config, num_pages=num_pages, dtype=self.cache_dtype)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise RequestError(
                f"{self._pool_size(num_pages)}, more than the device has left; {SMALLER_POOL}"
            ) from error
        self._slots = Slots.idle(slots, self._seed)
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
        """Pages that the longest request can have, and pages in the pool."""
        longest = max(len(request.prompt) for request in requests)
        max_pages = _rounded(self._pages_for(longest + self.sampling.max_tokens))
        if self.settings.num_pages is not None:
            return max_pages, self.settings.num_pages
        enough = self.settings.slots * (max_pages + 2)
        if memory := device_memory():
            fits = memory[1] // self._pool_bytes(1)
            enough = min(enough, max(fits, self._worst_case(longest)))
        return max_pages, -(-enough // RUN) * RUN  # some kernels take whole eights alone

    def _pool_bytes(self, num_pages: int) -> int:
        """Bytes of K and V, summaries left out."""
        elements = num_pages * self.page_size * self.config.kv_elements_per_token
        return elements * jnp.dtype(self.cache_dtype).itemsize

    def _pool_size(self, num_pages: int) -> str:
        gigabytes = self._pool_bytes(num_pages) / 1e9
        return f"the KV pool of {num_pages} pages of {self.page_size} tokens needs {gigabytes:,.1f} GB"

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _make_room(self) -> None:
        """Sets the youngest samples aside until the pool holds the next chunk of all others."""
        while (slot := self._schedule.victim()) is not None:
            running = self._schedule.running[slot]
            pages = running.pages[: self._pages_for(running.stored)]
            saved = [jax.device_get(save_pages(self._cache, ids)) for ids in _page_groups(pages)]
            self._slots = dataclasses.replace(self._slots, active=self._slots.active.at[slot].set(False))
            self._schedule.set_aside(slot, saved)
            self.counts.set_aside += 1

    def _refill(self) -> None:
        """Samples set aside go on, waiting ones start, while there are slots and pages."""
        for slot, running, places in self._schedule.resume():
            for ids, saved in zip(_page_groups(places), running.saved, strict=True):
                self._cache = load_pages(self._cache, ids, saved)
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
        while admitted := self._schedule.admit():
            prompt, started = admitted
            if prompt.logits is None:
                prompt.logits = self._prefill(prompt)
            self._start(prompt, started)
            self._schedule.started(prompt)

    def _prefill(self, prompt: Prompt) -> jax.Array:
        """Computes a prompt's K and V into its pages; the logits after its last token, `[1, vocab]`."""
        self.counts.prefills += 1
        length = len(prompt.request.prompt)
        tile = paged_tile(self.page_size)
        chunk = -(-self.settings.prefill_chunk // tile) * tile
        whole = length <= chunk
        if whole:
            bucket = self.page_size  # doubling lengths: few shapes to compile
            while bucket < length:
                bucket *= 2
        else:
            bucket = -(-self._longest_prompt // chunk) * chunk  # one shape for all prompts of a run
        tokens = np.zeros((1, bucket), np.int32)
        tokens[0, :length] = prompt.request.prompt
        table = np.full(bucket // self.page_size, -1, np.int32)
        table[: len(prompt.pages)] = prompt.pages
        if whole:
            self._cache, logits = prefill(
                self.graph, self.weights, self._cache, jnp.asarray(tokens), jnp.int32(length), jnp.asarray(table)
            )
            return logits
        for start in range(0, length, chunk):
            self._cache, logits = prefill_chunk(
                self.graph,
                self.weights,
                self._cache,
                jnp.asarray(tokens[:, start : start + chunk]),
                jnp.int32(start),
                jnp.int32(length),
                jnp.asarray(table),
            )
        return logits

    def _worst_case(self, length: int) -> int:
        """Pages of one sequence at full length, beside the partial page of its prompt."""
        return self._pages_for(length + self.sampling.max_tokens) + 1

    def _start(self, prompt: Prompt, started: dict[int, Running]) -> None:
        """Starts samples of a prompt on the device, by slot."""
        length = len(prompt.request.prompt)
        partial = length % self.page_size != 0
        slots = self.settings.slots
        chosen, samples, target = np.zeros(slots, bool), np.zeros(slots, np.int32), np.full(slots, -1, np.int32)
        for slot, running in started.items():
            chosen[slot], samples[slot] = True, running.sample
            if partial:
                self._schedule.grow(running, self._pages_for(length))
                target[slot] = running.pages[-1]
        self._cache, self._slots = start_samples(
            self._cache,
            self._slots,
            prompt.logits,
            jnp.asarray(chosen),
            jnp.asarray(samples),
            jnp.int32(self.sampling.max_tokens),
            jnp.int32(length),
            self._seed,
            jnp.uint32(problem_hash(prompt.request.problem)),
            jnp.int32(prompt.pages[-1]),
            jnp.asarray(target),
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
