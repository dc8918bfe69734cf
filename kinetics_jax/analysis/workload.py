"""How long an engine takes for many samples: when each runs in a number of slots, and the seconds of all steps."""

from __future__ import annotations

import dataclasses
import heapq
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num

from kinetics_jax.analysis.samples import Pool
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.costs.architectures.architecture import PricedModel
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.costs.step_time import (
    prefill_amounts,
    prefill_joules,
    prefill_seconds,
    step_amounts,
    step_joules,
    step_seconds,
)
from kinetics_jax.settings import EngineSettings, patience

MOMENTS = 48  # steps of a workload at which contexts are sampled


@dataclasses.dataclass(frozen=True, eq=False)
class Workload:
    """Samples to be drawn, problem by problem: lengths of their prompts and outputs, in tokens."""

    prompts: Num[np.ndarray, " problems"]
    lengths: Num[np.ndarray, "problems trials"]


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Seconds of a workload: of prefill and the starts of samples, of decode, and how many decode steps those are; and
    the `joules` of all chips over them, None where the hardware's energy was not measured.
    """

    prefill: float
    decode: float
    steps: int
    joules: float | None = None

    @property
    def total(self) -> float:
        return self.prefill + self.decode


def workload(pool: Pool, *, problems: int | None = None, trials: int = 1, cap: int | None = None) -> Workload:
    """`trials` samples of each of `problems` problems like the pool's, none longer than `cap` tokens.

    A problem's lengths are evenly spaced quantiles of its samples', in an order that does not depend on them; for
    fewer problems than the pool's they are evenly spaced by their mean length, for more they repeat. Raises
    SamplesError if a token count is missing.
    """
    pool.priced()
    stored = list(pool.problems.values())
    by_length = sorted(range(len(stored)), key=lambda i: (float(np.mean(stored[i].lengths)), i))
    count = len(stored) if problems is None else problems
    if count < len(stored):
        middles = (np.arange(count) + 0.5) * len(stored) / count - 0.5
        chosen = sorted(by_length[int(i)] for i in np.rint(middles))
    else:
        chosen = [i % len(stored) for i in range(count)]
    rng = np.random.default_rng(0)
    lengths = np.empty((count, trials))
    for row, i in enumerate(chosen):
        known = np.maximum(stored[i].lengths, 1)
        lengths[row] = rng.permutation(np.rint(np.quantile(known, (np.arange(trials) + 0.5) / trials)))
    if cap is not None:
        lengths = np.minimum(lengths, cap)
    return Workload(np.array([stored[i].prompt_tokens for i in chosen]), lengths)


def busiest_share(work: Workload, replicas: int) -> Workload:
    """What the busiest of `replicas` copies of the model has to do when problems are dealt out to them in turn.

    Copies share nothing, so a workload takes as long as this one's share; each has as many chips and slots as one copy
    alone. The busiest is the one with the most tokens. Problems are whole: more copies than problems stand idle.
    """
    if replicas == 1:
        return work
    shares = [slice(first, None, replicas) for first in range(min(replicas, len(work.prompts)))]
    most = max(shares, key=lambda share: float(np.sum(work.lengths[share])))
    return Workload(work.prompts[most], work.lengths[most])


def simulate_schedule(
    lengths: Num[np.ndarray, " samples"], slots: int, *, chunk: int = EngineSettings.chunk
) -> tuple[Int[np.ndarray, " samples"], int]:
    """The decode step at which each sample starts, and the number of steps.

    As the engine schedules: samples start in order, and only between chunks; a chunk is `chunk` steps, or ends once an
    eighth of the slots has stopped while others wait. A sample takes a step for every token but its first.
    """
    steps = np.maximum(np.asarray(lengths, np.int64) - 1, 0)
    start = np.zeros(len(steps), np.int64)
    running: list[int] = []  # ends
    now = following = 0
    most_stopped = patience(slots)
    while following < len(steps):
        for _ in range(min(slots - len(running), len(steps) - following)):
            start[following] = now
            if steps[following]:
                heapq.heappush(running, now + int(steps[following]))
            following += 1
        if following == len(steps):
            break
        if not running:
            continue
        if len(running) == slots:  # chunks in which nothing stops change nothing
            now += (running[0] - now - 1) // chunk * chunk
        stopped = [heapq.heappop(running) for _ in range(min(most_stopped, len(running)))]
        end = min(now + chunk, stopped[-1])
        for left in stopped:
            if left > end:
                heapq.heappush(running, left)
        while running and running[0] <= end:
            heapq.heappop(running)
        now = end
    return start, int(np.max(start + steps, initial=0))


def simulate_decode(work: Workload, slots: int) -> tuple[Float[np.ndarray, "moments slots"], int, int]:
    """How `slots` slots decode a workload: contexts of the batch, the number of steps, and the number of starts.

    The contexts are those of MOMENTS steps, evenly spaced, longest first; 0 for an idle slot. A start is one prompt's
    samples that begin between the same two chunks: what the engine starts by one program.
    """
    lengths = work.lengths.ravel()
    trials = work.lengths.shape[1]
    prompts = np.repeat(work.prompts, trials)
    start, steps = simulate_schedule(lengths, slots)
    starts = len(np.unique(np.stack([np.repeat(np.arange(len(work.prompts)), trials), start]), axis=1).T)
    moments = np.floor((np.arange(min(MOMENTS, steps)) + 0.5) * steps / max(min(MOMENTS, steps), 1))[:, None]
    contexts = np.where((start <= moments) & (moments < start + lengths - 1), prompts + moments - start + 1, 0)
    contexts = -np.sort(-contexts, axis=1)[:, :slots]  # never more than the slots are at work
    return np.pad(contexts, ((0, 0), (0, slots - contexts.shape[1]))), steps, starts


def workload_seconds(
    config: PricedModel,
    policy: AttentionPolicy,
    hardware: Hardware,
    work: Workload,
    *,
    slots: int,
    cap: int,
    chips: int = 1,
    kv_bytes: float = 2,
    weight_bytes: float = 2,
    held_tokens: float = np.inf,
) -> Seconds:
    """Seconds of all samples of a workload, decoded in `slots` slots; `cap` is the most tokens a sample may get.

    The contexts of the batch are those of MOMENTS steps; compilation and loading are left out. Where they are more than
    the `held_tokens` that memory has room for, the engine sets samples aside until others have ended: as many times
    more steps are charged (what it takes to set them aside and back is not).
    """
    prompts: dict[str, Any] = {"prompt_tokens": work.prompts, "page_size": policy.page_size}
    prompts |= {"chips": chips, "weight_bytes": weight_bytes}
    amounts = prefill_amounts(config, prompt_tokens=work.prompts, page_size=policy.page_size, weight_bytes=weight_bytes)
    prefill = prefill_seconds(config, hardware, **prompts, amounts=amounts)
    contexts, steps, starts = simulate_decode(work, slots)
    starting = float(np.sum(prefill)) + hardware.start_seconds * (starts - len(work.prompts))
    joules = prefill_joules(config, hardware, prefill, **prompts, amounts=amounts)
    drawn = None if joules is None else float(np.sum(joules))
    if not steps:
        return Seconds(starting, 0.0, 0, drawn)
    step: dict[str, Any] = {"contexts": contexts, "width": np.max(work.prompts) + cap}
    step |= {"kv_bytes": kv_bytes, "weight_bytes": weight_bytes}
    step["amounts"] = step_amounts(config, policy, padded=hardware.padded, **step)  # once for seconds and joules
    step["chips"] = chips
    each = step_seconds(config, policy, hardware, **step)
    in_turns = np.maximum(contexts.sum(axis=1) / held_tokens, 1.0)
    if drawn is not None:
        drawn += float(np.mean(step_joules(config, policy, hardware, each, **step) * in_turns)) * steps
    return Seconds(starting, float(np.mean(each * in_turns)) * steps, steps, drawn)
