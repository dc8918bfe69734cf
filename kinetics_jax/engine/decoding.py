"""One run of an engine: its requests, its cache, its slots, and the loop that decodes them.

The device runs decode chunks, each one jitted while_loop; between chunks the host takes out what has finished, hands
out pages for the next steps and refills the slots. A sample's tokens depend on its key and its row alone, never on the
slot it sits in, its neighbours or when it was admitted.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from kinetics_jax.attention.cache import empty_cache
from kinetics_jax.attention.policies.base import PolicyError
from kinetics_jax.attention.reads import join_halves, policy_fault
from kinetics_jax.engine.capacity import SMALLER_POOL
from kinetics_jax.engine.diagnosis import hook_warning, nonfinite_warning
from kinetics_jax.engine.programs import (
    copy_page,
    decode_chunk,
    decode_open_chunk,
    load_carried,
    load_pages,
    prefill,
    prefill_chunk,
    resume_sample,
    save_carried,
    save_pages,
    start_open_samples,
    start_samples,
)
from kinetics_jax.engine.requests import NO_TOKEN, Prompt, Running
from kinetics_jax.engine.rows import RowTable
from kinetics_jax.engine.sampling import HOOK_NONFINITE, IDLE, problem_hash, sample_keys, seed_key
from kinetics_jax.engine.schedule import Schedule
from kinetics_jax.engine.setup import Counts, Finished, Job, Setup, shared_prefix
from kinetics_jax.engine.slots import Resumed, Slots, Starts
from kinetics_jax.padding import pages_for, prefill_size, prompt_shape
from kinetics_jax.settings import RequestError, patience
from kinetics_jax.sharding.mesh import rows_sharding

PAGES_PER_COPY = 64  # of a sample on their way to the host or back


@dataclasses.dataclass
class Chunk:
    """What one chunk did: the samples that `ended`, the `tokens` drawn, and a policy's fault, if there was one."""

    ended: list[Running] = dataclasses.field(default_factory=list)
    tokens: int = 0
    fault: PolicyError | None = None


class Decoding:
    """One run over a job's requests, with a cache and slots of its own, which go when it goes.

    `cache` and `slots` are on the device. `table [slots, table_width]` int32 names every slot's pages, -1 unused.
    `schedules` has one for each shard; `counts` fill as the run goes. With `rows`, every sample draws as its own
    request says (`engine.open`); else all draw as the engine's sampling says. Raises RequestError where the device has
    no room for the cache.
    """

    def __init__(self, setup: Setup, job: Job, rows: RowTable | None = None):
        self.setup, self.job, self.rows = setup, job, rows
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
                    repetition_window=0 if rows else setup.sampling.repetition_window,
                    first_slot=shard * (slots // shards),
                    beside=self.schedules[0] if shard else None,
                )
            )
        self._warned: set[int] = set()
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

    @property
    def unfinished(self) -> bool:
        """Whether anything is left to do."""
        return any(schedule.unfinished for schedule in self.schedules)

    def run(self, on_chunk: Callable[[int], None] = lambda tokens: None) -> Iterator[Finished]:
        """Decodes to the end; yields every sample as it finishes.

        `on_chunk` is called with the number of tokens that each chunk drew, after what finished in it was yielded.
        Raises PolicyError for a policy that chooses what it may not, after the other samples of that chunk.
        """
        while self.unfinished:
            chunk = self.step()
            yield from map(self._finished, chunk.ended)
            if chunk.fault is not None:  # what finished beside it is kept
                raise chunk.fault
            on_chunk(chunk.tokens)

    def step(self) -> Chunk:
        """Takes samples into free slots, decodes one chunk, and takes out what has ended."""
        self._preempt()
        self._refill()
        first, drawn, active, counts, faults, chances = self._decode()
        done = Chunk()
        going = active.copy()
        running = [(shard, *item) for shard, each in enumerate(self.schedules) for item in each.running.items()]
        for shard, slot, sample in running:
            if faults[slot]:
                where = f"{sample.request.where}, sample {sample.sample}"
                done.fault = done.fault or policy_fault(self.setup.policy, int(faults[slot]), where)
                self.schedules[shard].finish(slot)
                going[slot] = False
                continue
            new = drawn[slot][drawn[slot] != IDLE].tolist()
            fresh = new if sample.tokens else [int(first[slot]), *new]
            if chances is not None and sample.request.draw and sample.request.draw.rules.log_probs:
                given = min(len(sample.forced), len(fresh))  # drawn from nothing
                sample.log_probs += [(own, math.nan) for own, _ in chances[slot][:given]] + chances[slot][given:]
            sample.add(fresh)
            sample.reads = np.concatenate([sample.reads, counts[slot, : len(new)]])
            done.tokens += len(fresh) - sample.nonfinite
            going[slot] &= not sample.ended
            if not going[slot]:
                self._end(shard, slot)
                done.ended.append(sample)
        if not np.array_equal(going, active):
            self.slots = dataclasses.replace(self.slots, active=self.place(going))
        return done

    def _end(self, shard: int, slot: int) -> None:
        """Takes an ended sample out of its slot."""
        schedule = self.schedules[shard]
        sample = schedule.running[slot]
        if sample.failed:
            self._warn_once(sample)
        if not sample.kept:
            schedule.finish(slot)
            return
        sample.carried, sample.shard = self._carried(slot), shard
        schedule.keep(slot)

    def _decode(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, list | None]:
        """Decodes a chunk. Returns the token that each slot began with, those it drew, whether it goes on, what each
        step read (int64 `[slots, chunk, 2]`), the policy's faults, and log-probabilities if a sample wants them
        (`RowTable.chances`).
        """
        for schedule in self.schedules:
            schedule.reserve(self.table)
        setup, before = self.setup, self.slots
        waits = any(schedule.waiting or schedule.preempted for schedule in self.schedules)
        most = jnp.int32(patience(setup.settings.slots) if waits else setup.settings.slots)
        shared = shared_prefix(setup, self.job, self.schedules[0].running)
        state = setup.graph, setup.weights, self.cache, before, self.place(self.table), most
        chances = None
        if self.rows is None:
            chunk = decode_chunk(*state, shared, setup.known_ids, **setup.decodes)
            self.cache, self.slots, drawn, reads = chunk
        else:
            running = {slot: run for schedule in self.schedules for slot, run in schedule.running.items()}
            rows, forced = self.rows.rows(running), self.place(self.rows.forced(running, setup.settings.chunk))
            options = {name: value for name, value in setup.decodes.items() if name != "sampling"}
            chunk = decode_open_chunk(*state, rows, forced, shared, setup.known_ids, **options)
            self.cache, self.slots, drawn, reads, chances = chunk
        first, drawn, active, reads, chances = jax.device_get((before.token, drawn, self.slots.active, reads, chances))
        self._count(drawn, waits)
        if self.rows is not None and chances is not None:
            chances = self.rows.chances(chances, drawn)
        return first, drawn, active, join_halves(reads.counts), reads.fault, chances

    def _count(self, drawn: np.ndarray, waits: bool) -> None:
        busy = drawn != IDLE
        steps = int(np.any(busy, axis=0).sum())
        self.counts.steps += steps
        self.counts.drawn += int((drawn >= 0).sum())
        if waits:
            self.counts.offered += steps * self.setup.settings.slots
            self.counts.busy += int(busy.sum())

    def place(self, array: np.ndarray) -> jax.Array:
        """A host's array with a row for each slot, or for each shard, on the devices."""
        mesh = self.setup.mesh
        return jnp.asarray(array) if mesh is None else jax.device_put(array, rows_sharding(mesh))

    def _preempt(self) -> None:
        """Makes room in the pool for the next chunk of what runs: pages that are only kept go to the host, then the
        youngest samples are preempted.
        """
        for shard, schedule in enumerate(self.schedules):
            while schedule.crowded and self._park(shard):
                pass
            while (slot := schedule.victim()) is not None:
                running = schedule.running[slot]
                saved, running.carried = self._saved(shard, running, running.stored), self._carried(slot)
                active = np.array(self.slots.active)
                active[slot] = False
                self.slots = dataclasses.replace(self.slots, active=self.place(active))
                schedule.preempt(slot, saved)
                self.counts.preempted += 1

    def _park(self, shard: int) -> bool:
        """Takes the pages of one sample that does not run to the host. Returns whether there was one."""
        running = self.schedules[shard].parkable()
        if running is None:
            return False
        self.schedules[shard].park(running, self._saved(shard, running, running.filled))
        return True

    def _saved(self, shard: int, running: Running, tokens: int) -> list[tuple[np.ndarray, ...]]:
        """A copy on the host of the pages of a sample's first tokens, in groups."""
        pages = running.pages[: pages_for(tokens, self.setup.policy.page_size)]
        return [jax.device_get(save_pages(self.cache, jnp.int32(shard), ids)) for ids in _page_groups(pages)]

    def _carried(self, slot: int) -> dict[str, np.ndarray]:
        """A copy on the host of what the policy carries for a slot."""
        return jax.device_get(save_carried(self.cache, jnp.int32(slot))) if self.cache.carried else {}

    def _resume(self, shard: int, slot: int, running: Running, places: np.ndarray) -> None:
        """Lets a sample go on in a slot, with its pages at `places` (-1: there already)."""
        if running.saved is not None:
            for ids, saved in zip(_page_groups(places), running.saved, strict=False):  # more, if tokens were cut
                self.cache = load_pages(self.cache, jnp.int32(shard), ids, saved)
        if running.copy:
            pairs = np.full((2, self.setup.shards), -1, np.int32)
            pairs[:, shard] = running.copy
            self.cache = copy_page(self.cache, *(self.place(ids) for ids in pairs))
        if running.carried:
            self.cache = load_carried(self.cache, jnp.int32(slot), running.carried)
        running.saved, running.carried, running.copy = None, None, None
        resumed = Resumed(
            slot=jnp.int32(slot),
            token=jnp.int32(running.tokens[-1]),
            stored=jnp.int32(running.stored),
            produced=jnp.int32(len(running.tokens)),
            limit=jnp.int32(running.limit),
            key=self.key(running),
        )
        self.slots = resume_sample(self.slots, resumed)

    def key(self, running: Running) -> jax.Array:
        """The key of a sample, of which those of its tokens are made."""
        if running.key is not None:
            return running.key
        draw = running.request.draw
        seed = self.seed if draw is None else seed_key(draw.sampling.seed)
        problem = jnp.uint32(problem_hash(running.request.problem))
        return sample_keys(seed, problem, jnp.array([running.sample], jnp.int32))[0]

    def _refill(self) -> None:
        """Lets samples that began go on and waiting ones start, while there are slots and pages."""
        for shard, schedule in enumerate(self.schedules):
            more = True
            while more:
                for slot, running, places in schedule.resume():
                    self._resume(shard, slot, running, places)
                more = schedule.may_resume and self._park(shard)
        # One prompt for each shard at a time: they are prefilled side by side.
        while admitted := [
            (shard, *samples) for shard in range(len(self.schedules)) if (samples := self._admitted(shard))
        ]:
            self._prefill({shard: prompt for shard, prompt, _ in admitted if prompt.logits is None})
            for shard, prompt, started in admitted:
                self._start(self.schedules[shard], prompt, started)
                self.schedules[shard].started(prompt)

    def _admitted(self, shard: int) -> tuple[Prompt, dict[int, Running]] | None:
        """`Schedule.admit`; pages that are only kept make room."""
        schedule = self.schedules[shard]
        while (admitted := schedule.admit()) is None and schedule.may_admit and self._park(shard):
            pass
        return admitted

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
        part, rows = self.place(tokens[:, start : start + size]), (self.place(lengths), self.place(table))
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
        limits = {running.limit for running in started.values()}  # of one request: the same
        draw = next(iter(started.values())).request.draw
        for slot, running in started.items():
            chosen[slot], samples[slot] = True, running.sample
            if partial:
                schedule.grow(running, pages_for(length, schedule.page_size))
                target[slot] = running.pages[-1]
        starts = Starts(
            logits=prompt.logits,
            chosen=self.place(chosen),
            samples=self.place(samples),
            limit=jnp.int32(min(limits)),
            length=jnp.int32(length),
            seed=self.seed if draw is None else seed_key(draw.sampling.seed),
            problem=jnp.uint32(problem_hash(prompt.request.problem)),
            source=jnp.int32(prompt.pages[-1]),
            target=self.place(target),
        )
        if self.rows is None:
            begun = start_samples(self.cache, self.slots, starts, self.setup.known_ids, **self.setup.draws)
            self.cache, self.slots = begun
            return
        keys = None if draw is None or draw.key is None else jnp.broadcast_to(draw.key, (slots,))
        rows, forced = self.rows.rows(started), self.place(self.rows.first_forced(started))
        state = self.cache, self.slots, starts, rows, forced, keys, self.setup.known_ids
        self.cache, self.slots, chances = start_open_samples(*state, eos=self.setup.config.eos_token_ids)
        if chances is not None:
            self.rows.first.append((chosen, chances))

    def _warn_once(self, sample: Running) -> None:
        """Warns of the run's first sample of which the model's logits, or a hook's, were not finite, and says where
        that began.
        """
        if sample.failed in self._warned:
            return
        self._warned.add(sample.failed)
        where = f"{sample.request.where}, sample {sample.sample}, token {len(sample.tokens)}"
        if sample.nonfinite:
            tokens = [*sample.request.prompt, *sample.tokens]
            warnings.warn(nonfinite_warning(self.setup.graph, self.setup.weights, tokens, where), stacklevel=4)
        elif sample.failed == HOOK_NONFINITE and sample.request.draw:
            warnings.warn(hook_warning(sample.request.draw.rules.hook, where), stacklevel=4)

    def finish_reason(self, running: Running) -> str:
        """Why a sample ended; see `Finished`."""
        if running.failed:
            return NO_TOKEN[running.failed]
        ends = set(self.setup.config.eos_token_ids)
        if running.request.draw is not None:
            ends |= set(running.request.draw.rules.stop_ids)
        return "stop" if running.tokens and running.tokens[-1] in ends else running.ended or "length"

    def _finished(self, running: Running) -> Finished:
        return Finished(
            problem=running.request.problem,
            sample=running.sample,
            prompt_tokens=len(running.request.prompt),
            output_tokens=running.tokens,
            finish_reason=self.finish_reason(running),
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
