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

from kinetics_jax.attention import empty_cache
from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import UserError
from kinetics_jax.pages import RUN, PageAllocator
from kinetics_jax.policies import Policy, Sampling
from kinetics_jax.repetition import RepetitionWatch
from kinetics_jax.sampling import problem_hash, seed_key
from kinetics_jax.steps import Slots, decode_chunk, prefill, start_samples


class RequestError(UserError):
    """A request, or engine settings, that cannot be run; the message names the problem or the setting and the cure."""


SMALLER_POOL = "lower slots, max_tokens or num_pages"
MOST = {"slots": 1 << 16, "chunk": 1 << 16, "num_pages": 1 << 30}  # beyond these a setting is a slip of the hand


@dataclasses.dataclass(frozen=True)
class EngineSettings:
    """`slots` sequences decode side by side; a chunk is at most `chunk` steps, and ends early once an eighth of the
    slots has stopped while others wait. `num_pages` bounds the pool (default: enough for every slot's worst case).
    """

    slots: int = 32
    chunk: int = 32
    num_pages: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("slots", self.slots), ("chunk", self.chunk), ("num_pages", self.num_pages)):
            if value is not None and not 1 <= value <= MOST[name]:
                raise RequestError(f"engine: {name} must be in 1 … {MOST[name]}, got {value}")


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt and which of its samples are wanted. `problem` names it: with the seed it fixes every draw."""

    problem: str
    prompt: Sequence[int]
    samples: Sequence[int]


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


def device_memory() -> int | None:
    """Bytes of memory of the default device; None where it does not tell."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else None
    return (device.memory_stats() or {}).get("bytes_limit")


def _rounded(pages: int) -> int:
    """At most an eighth more (or 7), so that prompts of similar length share one compiled program."""
    step = max(8, 1 << max(0, pages.bit_length() - 4))
    return -(-pages // step) * step


@dataclasses.dataclass
class _Prompt:
    """A prefilled prompt: its pages, the logits after it, and how many of its samples have not started yet."""

    request: Request
    pages: list[int]
    logits: jax.Array
    waiting: int


@dataclasses.dataclass
class _Running:
    """A sample in a slot: its pages so far, how many more it was promised, its tokens so far."""

    request: Request
    sample: int
    pages: list[int]
    promised: int
    began: float
    tokens: list[int] = dataclasses.field(default_factory=list)
    repetition: RepetitionWatch | None = None
    repeats: bool = False

    def add(self, tokens: list[int]) -> None:
        """Appends new tokens; those after the point where the sample repeats were drawn in vain."""
        kept = self.repetition.feed(tokens) if self.repetition else None
        self.repeats = kept is not None
        self.tokens += tokens[:kept]


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
            if memory is not None and self._pool_bytes(num_pages) > memory:
                raise RequestError(
                    f"{self._pool_size(num_pages)}, more than the device's {memory / 1e9:,.1f} GB; {SMALLER_POOL}"
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
        waiting = collections.deque((request, sample) for request in requests for sample in request.samples)
        while waiting or self._running:
            self._refill(waiting)
            self._reserve()
            before = self._slots
            patience = max(1, self.settings.slots // 8) if waiting else self.settings.slots
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
            new_tokens = 0
            going = active.copy()
            for slot, running in list(self._running.items()):
                fresh = [int(first[slot])] if not running.tokens else []
                fresh += drawn[slot][drawn[slot] >= 0].tolist()
                running.add(fresh)
                new_tokens += len(fresh)
                going[slot] &= not running.repeats
                if not going[slot]:
                    yield self._finish(slot)
            if not np.array_equal(going, active):
                self._slots = dataclasses.replace(self._slots, active=jnp.asarray(going))
            on_chunk(new_tokens)

    def _prepare(self, requests: list[Request]) -> None:
        """A fresh cache, wide enough for the longest request."""
        self._max_pages, num_pages = self._pool(requests)
        slots = self.settings.slots
        self._seed = seed_key(self.sampling.seed)
        self._allocator = PageAllocator(num_pages)
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
        self._prompts: dict[str, _Prompt] = {}
        self._running: dict[int, _Running] = {}

    def _pool(self, requests: Sequence[Request]) -> tuple[int, int]:
        """Pages that the longest request can have, and pages in the pool."""
        longest = max(len(request.prompt) for request in requests)
        max_pages = _rounded(self._pages_for(longest + self.sampling.max_tokens))
        enough = self.settings.slots * (max_pages + 2)
        return max_pages, self.settings.num_pages or -(-enough // RUN) * RUN  # some kernels take whole eights alone

    def _pool_bytes(self, num_pages: int) -> int:
        """Bytes of K and V, summaries left out."""
        elements = num_pages * self.page_size * self.config.kv_elements_per_token
        return elements * jnp.dtype(self.cache_dtype).itemsize

    def _pool_size(self, num_pages: int) -> str:
        gigabytes = self._pool_bytes(num_pages) / 1e9
        return f"the KV pool of {num_pages} pages of {self.page_size} tokens needs {gigabytes:,.1f} GB"

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.page_size)

    def _refill(self, waiting: collections.deque[tuple[Request, int]]) -> None:
        """Starts waiting samples in order while a slot is idle and the pool can promise their worst case."""
        idle = [slot for slot in range(self.settings.slots) if slot not in self._running]
        while waiting and idle:
            request = waiting[0][0]
            prompt = self._prompts.get(request.problem) or self._prefill(request)
            if prompt is None:
                return
            started: dict[int, int] = {}
            while waiting and idle and waiting[0][0] is request and self._admit(request, waiting[0][1], idle[0]):
                started[idle.pop(0)] = waiting.popleft()[1]
            if started:
                self._start(prompt, started)
            if waiting and waiting[0][0] is request:
                return

    def _prefill(self, request: Request) -> _Prompt | None:
        """Prefills a prompt once for all its samples; None when its pages and one sample's do not fit yet."""
        length = len(request.prompt)
        if self._allocator.available < self._pages_for(length) + self._private_pages(length):
            return None
        pages = self._allocator.take(self._pages_for(length))
        bucket = self.page_size  # doubling lengths: few shapes to compile
        while bucket < length:
            bucket *= 2
        tokens = np.zeros((1, bucket), np.int32)
        tokens[0, :length] = request.prompt
        table = np.full(bucket // self.page_size, -1, np.int32)
        table[: len(pages)] = pages
        self._cache, logits = prefill(
            self.graph, self.weights, self._cache, jnp.asarray(tokens), jnp.int32(length), jnp.asarray(table)
        )
        prompt = self._prompts[request.problem] = _Prompt(request, pages, logits, len(request.samples))
        return prompt

    def _worst_case(self, length: int) -> int:
        """Pages of one sequence at full length, beside the partial page of its prompt."""
        return self._pages_for(length + self.sampling.max_tokens) + 1

    def _private_pages(self, length: int) -> int:
        """Pages a sample may need beyond the full pages of its prompt."""
        return self._pages_for(length + self.sampling.max_tokens) - length // self.page_size

    def _admit(self, request: Request, sample: int, slot: int) -> bool:
        """Shares the prompt's full pages with a new sample and promises it the rest of its worst case."""
        length = len(request.prompt)
        private = self._private_pages(length)
        if not self._allocator.promise(private):
            return False
        shared = self._prompts[request.problem].pages[: length // self.page_size]
        self._allocator.share(shared)
        self._running[slot] = running = _Running(request, sample, list(shared), private, time.perf_counter())
        if self.sampling.repetition_window:
            running.repetition = RepetitionWatch(self.sampling.repetition_window)
        return True

    def _start(self, prompt: _Prompt, started: dict[int, int]) -> None:
        """Starts samples `{slot: sample}` of a prompt on the device; lets go of the prompt after its last sample."""
        length = len(prompt.request.prompt)
        partial = length % self.page_size != 0
        slots = self.settings.slots
        chosen, samples, target = np.zeros(slots, bool), np.zeros(slots, np.int32), np.full(slots, -1, np.int32)
        for slot, sample in started.items():
            chosen[slot], samples[slot] = True, sample
            if partial:
                self._grow(slot, length)
                target[slot] = self._running[slot].pages[-1]
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
        prompt.waiting -= len(started)
        if not prompt.waiting:
            self._allocator.release(prompt.pages)
            del self._prompts[prompt.request.problem]

    def _reserve(self) -> None:
        """Pages for the next chunk of every running slot, into the page table."""
        self._table[:] = -1
        for slot, running in self._running.items():
            stored = len(running.request.prompt) + max(len(running.tokens) - 1, 0)
            most = len(running.request.prompt) + self.sampling.max_tokens
            self._grow(slot, min(stored + self.settings.chunk, most))
            self._table[slot, : len(running.pages)] = running.pages

    def _grow(self, slot: int, tokens: int) -> None:
        running = self._running[slot]
        count = self._pages_for(tokens) - len(running.pages)
        if count > 0:
            running.pages += self._allocator.take(count, sequence=running.pages, promised=True)
            running.promised -= count

    def _finish(self, slot: int) -> Finished:
        running = self._running.pop(slot)
        self._allocator.release(running.pages)
        self._allocator.unpromise(running.promised)
        return Finished(
            problem=running.request.problem,
            sample=running.sample,
            prompt_tokens=len(running.request.prompt),
            output_tokens=running.tokens,
            finish_reason=self._reason(running),
            seconds=time.perf_counter() - running.began,
        )

    def _reason(self, running: _Running) -> str:
        if running.tokens[-1] in self.eos:
            return "stop"
        return "repetition" if running.repeats else "length"
