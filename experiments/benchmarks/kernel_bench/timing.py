"""Device time by the host's clock: many calls in one program, many programs in the queue.

A program holds several calls, 16 of the short ones, each fed by the last one's result, so that none can be left out,
merged or run beside another; programs are enqueued without waiting and the last one is waited for. The launch of a
program is thus hidden behind the one before it while the program takes longer than its launch, which every row says.
Each call of a program reads through another page table, and programs take turns over sets of tables, so that what a
call reads has left the cache since it was last read. Medians over repeats; nothing is subtracted.
"""

from __future__ import annotations

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
ROTATE_BYTES = 256 << 20  # read between two reads of the same bytes: several times any cache


def time_calls(
    step: Callable[..., Any],
    state: Any,
    arguments: Sequence[Any],
    tables: Sequence[jax.Array],
    *,
    seconds: float = 0.08,
    repeats: int = 5,
    most_calls: int = 16,
    donate: bool = False,
) -> tuple[dict, Any]:
    """Microseconds of `state = step(state, table, *arguments)`, and the last state.

    `step` is traced; `state` and what it returns have the same shapes and dtypes. `seconds`: what a repeat should take;
    `most_calls`: of one program, for steps that take long to compile.
    """
    tables = list(tables)
    began = time.perf_counter()
    one = _program(step, 1, donate)
    state = _wait(one(state, arguments, tables[:1]))
    compile_seconds = time.perf_counter() - began
    alone = []
    for _ in range(3):
        began = time.perf_counter()
        state = _wait(one(state, arguments, tables[:1]))
        alone.append(time.perf_counter() - began)
        if alone[0] > seconds:
            break
    once = min(alone)
    calls = min(1 if once > 2e-3 else 4 if once > 300e-6 else 16, most_calls)
    tables *= -(-calls // len(tables))
    blocks = [tables[start : start + calls] for start in range(0, len(tables) - calls + 1, calls)]
    program = one if calls == 1 else _program(step, calls, donate)
    began = time.perf_counter()
    state = _wait(program(state, arguments, blocks[0]))
    compile_seconds += time.perf_counter() - began
    began = time.perf_counter()
    state = _wait(program(state, arguments, blocks[-1]))
    expected = time.perf_counter() - began
    programs = max(2, min(2000, round(seconds / expected)))
    repeats = repeats if programs * expected < 1 else 3
    found, enqueued = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        for index in range(programs):
            state = program(state, arguments, blocks[index % len(blocks)])
            if index == 0:
                enqueued.append(time.perf_counter() - began)
        _wait(state)
        found.append((time.perf_counter() - began) / (programs * calls))
    median = statistics.median(found)
    launch = statistics.median(enqueued)
    return {
        "us": 1e6 * median,
        "us_least": 1e6 * min(found),
        "us_most": 1e6 * max(found),
        "calls": calls,
        "programs": programs,
        "repeats": repeats,
        "launch_us": 1e6 * launch,
        "launch_bound": launch > 0.5 * median * calls,
        "compile_seconds": compile_seconds,
    }, state


def _program(step: Callable[..., Any], calls: int, donate: bool) -> Callable[..., Any]:
    one = jax.jit(step)  # traced and lowered once, whatever the calls

    def run(state, arguments, tables):
        for index in range(calls):
            state = one(state, tables[index], *arguments)
        return state

    return jax.jit(run, donate_argnums=(0,) if donate else ())


def _wait(state: Any) -> Any:
    return jax.block_until_ready(state)


def time_queue(call: Callable[[], Any], wait: Callable[[], Any], *, seconds: float = 0.1, repeats: int = 5) -> dict:
    """Microseconds of a host function that enqueues device work, `wait` being what waits for all of it."""
    for _ in range(2):
        call()
        wait()
    began = time.perf_counter()
    call()
    wait()
    calls = max(2, min(2000, round(seconds / (time.perf_counter() - began))))
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        found.append((time.perf_counter() - began) / calls)
    return {"us": 1e6 * statistics.median(found), "us_least": 1e6 * min(found), "us_most": 1e6 * max(found)}


def bandwidths(num_bytes: int, *, seconds: float = 0.2) -> dict:
    """Bytes per second that this device reads (the best of three reductions) and copies (bytes read plus written)."""
    reductions = {
        "sum of float32": (jnp.float32, jnp.sum),
        "sums of rows of float32": (jnp.float32, functools.partial(jnp.sum, axis=1)),
        "maxima of rows of bfloat16": (jnp.bfloat16, functools.partial(jnp.max, axis=1)),
    }
    read, arrays = {}, []
    for name, (dtype, reduce) in reductions.items():
        if not arrays or arrays[0].dtype != dtype:
            shape = (num_bytes // (1024 * jnp.dtype(dtype).itemsize), 1024)
            arrays.clear()  # before others are made
            arrays += [random_array(jax.random.key(index), shape, dtype) for index in range(2)]
        read[name] = num_bytes / (1e-6 * _over(jax.jit(reduce), arrays, seconds)["us"])
    copied = _over(jax.jit(lambda x: x + 1), arrays, seconds)
    return {"read": read, "read_best": max(read.values()), "copy": 2 * num_bytes / (1e-6 * copied["us"])}


def _over(function: Callable[[jax.Array], jax.Array], arrays: Sequence[jax.Array], seconds: float) -> dict:
    """`time_queue` of a function over arrays in turn."""
    turn, last = itertools.cycle(arrays), [arrays[0]]

    def call() -> None:
        last[0] = function(next(turn))

    return time_queue(call, lambda: last[0].block_until_ready(), seconds=seconds)


def launch_overhead() -> dict:
    """Microseconds of a call of a program that does next to nothing, of one waited for, and of one small kernel."""
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
    return {"program_queued_us": queued["us"], "program_waited_us": alone["us"], "kernel_us": chain["us"]}


def random_array(key: jax.Array, shape: Sequence[int], dtype: Any) -> jax.Array:
    """Standard normal numbers, drawn in parts, so that the bits they are made from never take the array's size.

    A part is whole rows: of numbers in a line a TPU would make the array by a copy.
    """
    *_, columns = shape
    rows = math.prod(shape) // columns
    parts = next(parts for parts in (64, 32, 16, 8, 4, 2, 1) if rows % parts == 0)

    def draw(key: jax.Array) -> jax.Array:
        one_part = lambda key: jax.random.normal(key, (rows // parts, columns), dtype)  # noqa: E731
        return jax.lax.map(one_part, jax.random.split(key, parts)).reshape(shape)

    return jax.jit(draw)(key)
