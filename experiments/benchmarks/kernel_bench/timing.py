"""Device time by the host's clock: many calls in one program, many programs in the queue.

A program holds several calls, 16 if they are short. Each takes the last one's result, so that the compiler can leave
none out, merge none and run no two at once. Programs are enqueued without waiting, and the last one is waited for: the
launch of a program hides behind the one before it if the program takes longer than its launch; every row says whether
it does. Each call reads through another page table and programs take turns over sets of tables, so that what a call
reads has left the cache since it was last read. Times are medians over repeats; nothing is subtracted.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

METHOD = " ".join((__doc__ or "").split())
ROTATE_BYTES = 256 << 20  # read between two reads of the same bytes: several times the size of any cache


@dataclasses.dataclass(frozen=True)
class Timing:
    """Microseconds of a call: the median, the least and the most of the repeats."""

    us: float
    us_least: float
    us_most: float


@dataclasses.dataclass(frozen=True)
class ProgramTiming(Timing):
    """How a `Timing` was taken: `programs` of `calls` each in a repeat.

    `launch_us` is what enqueueing a program takes; `launch_bound` says that this is more than half of what the program
    takes, so that the time may be the launches'. `compile_seconds` cover both programs, that of a single call too.
    """

    calls: int
    programs: int
    repeats: int
    launch_us: float
    launch_bound: bool
    compile_seconds: float


def time_calls(
    step: Callable[..., Any],
    state: Any,
    arguments: Sequence[Any],
    tables: Sequence[jax.Array],
    *,
    seconds: float = 0.08,
    repeats: int = 5,
    max_calls: int = 16,
    donate: bool = False,
) -> tuple[ProgramTiming, Any]:
    """Times `state = step(state, table, *arguments)`; returns the timing and the last state.

    `step` is traced; `state` and what it returns have the same shapes and dtypes. `seconds`: what a repeat should take;
    `max_calls`: of one program, for steps that take long to compile.
    """
    run = _Run(state, arguments)
    one = _program(step, 1, donate)
    compile_seconds = run.timed(one, tables[:1])
    calls = min(_calls_worth_chaining(run.alone(one, tables[:1], seconds)), max_calls)
    program = one if calls == 1 else _program(step, calls, donate)
    blocks = _blocks(tables, calls)
    compile_seconds += run.timed(program, blocks[0])
    expected = run.timed(program, blocks[-1])
    programs = max(2, min(2000, round(seconds / expected)))
    repeats = repeats if programs * expected < 1 else 3
    taken, enqueued = zip(*(run.queued(program, blocks, programs) for _ in range(repeats)), strict=True)
    spread, launch = _spread(taken, programs * calls), statistics.median(enqueued)
    return ProgramTiming(
        **dataclasses.asdict(spread),
        calls=calls,
        programs=programs,
        repeats=repeats,
        launch_us=1e6 * launch,
        launch_bound=1e6 * launch > 0.5 * spread.us * calls,
        compile_seconds=compile_seconds,
    ), run.state


@dataclasses.dataclass
class _Run:
    """A state that programs replace, and the arguments they all take. Every method gives seconds."""

    state: Any
    arguments: Sequence[Any]

    def timed(self, program: Callable[..., Any], tables: Sequence[jax.Array]) -> float:
        """One program, waited for."""
        began = time.perf_counter()
        self.state = jax.block_until_ready(program(self.state, self.arguments, tables))
        return time.perf_counter() - began

    def alone(self, program: Callable[..., Any], tables: Sequence[jax.Array], enough: float) -> float:
        """The least of three programs one by one, or the first where that takes more than `enough`."""
        first = self.timed(program, tables)
        return first if first > enough else min(first, *(self.timed(program, tables) for _ in range(2)))

    def queued(
        self, program: Callable[..., Any], blocks: Sequence[Sequence[jax.Array]], programs: int
    ) -> tuple[float, float]:
        """Programs enqueued over the blocks in turn, the last one waited for: all of them, and enqueueing the first."""
        enqueued = 0.0
        began = time.perf_counter()
        for index in range(programs):
            self.state = program(self.state, self.arguments, blocks[index % len(blocks)])
            if index == 0:
                enqueued = time.perf_counter() - began
        jax.block_until_ready(self.state)
        return time.perf_counter() - began, enqueued


def _calls_worth_chaining(seconds: float) -> int:
    """Calls of one program, by what one takes alone: short ones need company to hide the launch."""
    return 1 if seconds > 2e-3 else 4 if seconds > 300e-6 else 16


def _blocks(tables: Sequence[jax.Array], calls: int) -> list[list[jax.Array]]:
    """The tables over and over, cut into one block for each program."""
    repeated = list(tables) * -(-calls // len(tables))
    return [repeated[start : start + calls] for start in range(0, len(repeated) - calls + 1, calls)]


def _program(step: Callable[..., Any], calls: int, donate: bool) -> Callable[..., Any]:
    one = jax.jit(step)  # traced and lowered once, whatever the calls

    def run(state, arguments, tables):
        for index in range(calls):
            state = one(state, tables[index], *arguments)
        return state

    return jax.jit(run, donate_argnums=(0,) if donate else ())


def _spread(taken: Sequence[float], calls: int) -> Timing:
    """Microseconds of a call from the seconds that repeats of so many calls took."""
    each = [1e6 * seconds / calls for seconds in taken]
    return Timing(statistics.median(each), min(each), max(each))


def time_queue(call: Callable[[], Any], wait: Callable[[], Any], *, seconds: float = 0.1, repeats: int = 5) -> Timing:
    """Times a host function that enqueues device work; `wait` waits for all of it."""
    for _ in range(2):
        call()
        wait()

    def repeat(calls: int) -> float:
        began = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        return time.perf_counter() - began

    calls = max(2, min(2000, round(seconds / repeat(1))))
    return _spread([repeat(calls) for _ in range(repeats)], calls)


def bandwidths(num_bytes: int, *, seconds: float = 0.2) -> dict:
    """Bytes/s that this device reads (the best of three reductions) and copies (bytes read plus written)."""
    reductions = {
        "sum of float32": (jnp.float32, jnp.sum),
        "sums of rows of float32": (jnp.float32, functools.partial(jnp.sum, axis=1)),
        "maxima of rows of bfloat16": (jnp.bfloat16, functools.partial(jnp.max, axis=1)),
    }
    read, arrays = {}, []
    for name, (dtype, reduce) in reductions.items():
        if not arrays or arrays[0].dtype != dtype:
            shape = (num_bytes // (1024 * jnp.dtype(dtype).itemsize), 1024)
            arrays.clear()  # frees them before the next are made
            arrays += [random_array(jax.random.key(index), shape, dtype) for index in range(2)]
        read[name] = num_bytes / (1e-6 * _over(jax.jit(reduce), arrays, seconds).us)
    copied = _over(jax.jit(lambda x: x + 1), arrays, seconds)
    return {"read": read, "read_best": max(read.values()), "copy": 2 * num_bytes / (1e-6 * copied.us)}


def _over(function: Callable[[jax.Array], jax.Array], arrays: Sequence[jax.Array], seconds: float) -> Timing:
    """`time_queue` of a function over arrays in turn."""
    turn, last = itertools.cycle(arrays), [arrays[0]]

    def call() -> None:
        last[0] = function(next(turn))

    return time_queue(call, lambda: last[0].block_until_ready(), seconds=seconds)


def launch_overhead() -> dict:
    """Microseconds of a nearly empty program, enqueued and waited for, and of one small kernel."""
    small = jnp.ones(1024)
    tick = jax.jit(lambda x: x * 0.5 + 1)
    held = [small]

    def call() -> None:
        held[0] = tick(held[0])

    queued = time_queue(call, lambda: held[0].block_until_ready())

    def waited() -> None:
        call()
        held[0].block_until_ready()

    alone = time_queue(waited, lambda: None)
    # Products of matrices chained: XLA fuses elementwise steps, these stay kernels.
    factor = jnp.eye(128, dtype=jnp.float32)
    chain, _ = time_calls(lambda x, _, y: jnp.dot(x, y), factor, (factor,), [jnp.zeros(1)])
    return {"program_queued_us": queued.us, "program_waited_us": alone.us, "kernel_us": chain.us}


def random_array(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Standard normal numbers, drawn in parts, so that their random bits never take as much memory as the array.

    A part is whole rows: reshaping flat parts would cost a TPU another copy of the array.
    """
    *_, columns = shape
    rows = math.prod(shape) // columns
    parts = next(parts for parts in (64, 32, 16, 8, 4, 2, 1) if rows % parts == 0)

    def draw(key: jax.Array) -> jax.Array:
        one_part = lambda key: jax.random.normal(key, (rows // parts, columns), dtype)  # noqa: E731
        return jax.lax.map(one_part, jax.random.split(key, parts)).reshape(shape)

    return jax.jit(draw)(key)
