"""A row of a timing: one op by one backend at one workload, checked at that shape, then timed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from kinetics_kernels import reference

from kernel_bench.byte_model import Workload, floor_bytes
from kernel_bench.choices import Choice
from kernel_bench.oracle import close, close_lse
from kernel_bench.states import DeviceState, make_state, paged, sets_needed
from kernel_bench.timing import ROTATE_BYTES, Timing, time_calls, time_queue

CHECKED_SEQUENCES = 2  # sequences of a timed batch that are compared with the reference
MIN_OVERLAP = 0.99  # share of the reference's pages: sums in another order may swap near ties


@dataclasses.dataclass
class Bench:
    """What the rows of a run share. `memory`: bytes a state may take; `bandwidth`: bytes/s that floors assume."""

    memory: int
    bandwidth: float
    seconds: float = 0.08  # of a repeat
    rotate_bytes: int = ROTATE_BYTES
    max_calls: int = 16  # of one program
    held: DeviceState | None = None
    expected: dict = dataclasses.field(default_factory=dict)

    def state(self, op: str, load: Workload) -> DeviceState:
        """A state with enough sets for this op; the held one if it will do. Raises MemoryError if none fits."""
        sets = sets_needed(op, load, self.rotate_bytes, self.memory)
        if not self._serves(load, sets):
            held_tokens = 0 if self.held is None else self.held.keys.shape[1]
            self.drop(keep_pools=held_tokens == sets * load.batch * load.context)  # before the new one takes memory
            self.held = make_state(load, sets, like=self.held)
        assert self.held is not None
        return dataclasses.replace(self.held, load=load, tables=self.held.tables[:sets])

    def _serves(self, load: Workload, sets: int) -> bool:
        held = self.held
        return (
            held is not None and dataclasses.replace(held.load, budget=load.budget) == load and len(held.tables) >= sets
        )

    def drop(self, *, keep_pools: bool = False) -> None:
        """Frees the held state: before another is made, or if a donating program may have used it up."""
        self.expected.clear()
        if not keep_pools:
            self.held = None

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The reference's result for the held state, computed once."""
        if key not in self.expected:
            self.expected[key] = compute()
        return self.expected[key]


def measure(bench: Bench, op: str, load: Workload, choices: tuple[Choice, ...]) -> dict:
    """Times `dense`, `select`, `attend`, `block_topk` (two choices: selection, attention) or `append`.

    Returns the row: `status` ok with the error, bytes, floor and timing, or wrong with the error and `why`, untimed.
    """
    state = bench.state(op, load)
    error, why = CHECKS[op](bench, state, choices)
    if why:
        return {"status": "wrong", "error": error, "why": why}
    step, start, arguments, tables = STEPS[op](bench, state, choices)
    reference_too = any(choice.backend == "xla" for choice in choices)
    timing, _ = time_calls(
        step,
        start,
        arguments,
        tables,
        seconds=bench.seconds,
        max_calls=min(bench.max_calls, 4 if reference_too else 16),
        donate=op == "append",
    )
    row = {"status": "ok", "error": error, "sets": len(tables)}
    return row | against_floor(floor_bytes(op, load), timing, bench.bandwidth)


def measure_two_programs(bench: Bench, load: Workload, choices: tuple[Choice, ...]) -> dict:
    """`block_topk` with selection and attention jitted apart: two launches by the host per step."""
    state = bench.state("block_topk", load)
    error, why = _check_block_topk(bench, state, choices)
    if why:
        return {"status": "wrong", "error": error, "why": why}
    select, decode, page_size = (
        choices[0].function("select_pages"),
        choices[-1].function("paged_decode"),
        load.page_size,
    )
    first = jax.jit(lambda q, summaries, table, lengths: select(q, summaries, table, lengths, **_selection(load)))
    second = jax.jit(lambda q, k, v, *chosen: decode(q, paged(k, page_size), paged(v, page_size), *chosen)[0])
    tables, held = itertools.cycle(state.tables), [state.q]

    def call() -> None:
        chosen = first(held[0], state.summaries, next(tables), state.lengths)
        held[0] = second(held[0], state.keys, state.values, *chosen)

    timing = time_queue(call, lambda: held[0].block_until_ready(), seconds=bench.seconds)
    row = {"status": "ok", "error": error, "sets": len(state.tables)}
    return row | against_floor(floor_bytes("block_topk", load), timing, bench.bandwidth)


def against_floor(num_bytes: int, timing: Timing, bandwidth: float) -> dict:
    """A row of the timing, its bytes, its floor and the fraction of the bandwidth it reaches.

    A fraction above 1.05 means that the program read less than the op must: the row is `impossible`.
    """
    floor = 1e6 * num_bytes / bandwidth
    fraction = floor / timing.us
    row = {"bytes": num_bytes, "floor_us": floor, "fraction": fraction, "impossible": fraction > 1.05}
    return row | dataclasses.asdict(timing)


def _dense(bench: Bench, state: DeviceState, choices: tuple[Choice, ...]) -> tuple:
    decode, page_size = choices[-1].function("paged_decode"), state.load.page_size

    def step(q, table, keys, values, lengths):
        return decode(q, paged(keys, page_size), paged(values, page_size), table, lengths)[0]

    return step, state.q, (state.keys, state.values, state.lengths), state.tables


def _select(bench: Bench, state: DeviceState, choices: tuple[Choice, ...]) -> tuple:
    select, load = choices[0].function("select_pages"), state.load

    def step(q, table, summaries, lengths):
        selected, _ = select(q, summaries, table, lengths, **_selection(load))
        # Makes the next query depend on this selection: one more small kernel, which is part of the time.
        tail = jnp.repeat(selected[..., -1], load.group, axis=1)[..., None]
        return q + (tail * 1e-30).astype(q.dtype)

    return step, state.q, (state.summaries, state.lengths), state.tables


def _attend(bench: Bench, state: DeviceState, choices: tuple[Choice, ...]) -> tuple:
    decode, load = choices[-1].function("paged_decode"), state.load

    def step(q, chosen, keys, values):
        selected, covered = chosen
        return decode(q, paged(keys, load.page_size), paged(values, load.page_size), selected, covered)[0]

    return step, state.q, (state.keys, state.values), _chosen(bench, state)


def _block_topk(bench: Bench, state: DeviceState, choices: tuple[Choice, ...]) -> tuple:
    select, decode, load = choices[0].function("select_pages"), choices[-1].function("paged_decode"), state.load

    def step(q, table, keys, values, summaries, lengths):
        selected, covered = select(q, summaries, table, lengths, **_selection(load))
        return decode(q, paged(keys, load.page_size), paged(values, load.page_size), selected, covered)[0]

    return step, state.q, (state.keys, state.values, state.summaries, state.lengths), state.tables


def _append(bench: Bench, state: DeviceState, choices: tuple[Choice, ...]) -> tuple:
    append, load = choices[-1].function("append_kv"), state.load
    new = state.q[:, :: load.group]

    def step(pools, table, k_new, v_new, lengths):
        keys, values, summaries = pools
        pages = paged(keys, load.page_size), paged(values, load.page_size)
        *written, summaries = append(*pages, summaries, k_new, v_new, table, lengths, summary=load.summary)
        return (*(pool.reshape(keys.shape) for pool in written), summaries)

    return step, (state.keys, state.values, state.summaries), (new, -new, state.lengths - 1), state.tables


STEPS = {"dense": _dense, "select": _select, "attend": _attend, "block_topk": _block_topk, "append": _append}


def _selection(load: Workload) -> dict:
    return {"page_size": load.page_size, "pages": load.pages, "summary": load.summary}


def _chosen(bench: Bench, state: DeviceState) -> list[tuple[jax.Array, jax.Array]]:
    """The reference's `(selected, covered)` for every set."""

    def select_all() -> list:
        select = jax.jit(lambda *arrays: reference.select_pages(*arrays, **_selection(state.load)))
        return [select(state.q, state.summaries, table, state.lengths) for table in state.tables]

    return bench.once(("chosen", state.load, len(state.tables)), select_all)


def _check_dense(bench: Bench, state: DeviceState, choices: tuple[Choice, ...]) -> tuple[float, str]:
    table, lengths = state.tables[0], state.lengths
    expected = bench.once(("dense", state.load), lambda: attended(state, table, lengths))
    return _compare_decode(choices[-1], state, table, lengths, expected)


def _check_select(bench: Bench, state: DeviceState, choices: tuple[Choice, ...]) -> tuple[float, str]:
    overlap, _ = _select_and_compare(bench, state, choices[0])
    why = (
        f"{overlap:.4f} of the pages are the reference's, at least {MIN_OVERLAP} must be"
        if overlap < MIN_OVERLAP
        else ""
    )
    return 1 - overlap, why


def _check_attend(bench: Bench, state: DeviceState, choices: tuple[Choice, ...]) -> tuple[float, str]:
    selected, covered = _chosen(bench, state)[0]
    expected = bench.once(("attend", state.load), lambda: attended(state, selected, covered))
    return _compare_decode(choices[-1], state, selected, covered, expected)


def _check_block_topk(bench: Bench, state: DeviceState, choices: tuple[Choice, ...]) -> tuple[float, str]:
    error, why = _check_select(bench, state, choices)
    if why:
        return error, why
    _, (selected, covered) = _select_and_compare(bench, state, choices[0])
    wanted, _ = _chosen(bench, state)[0]
    if np.array_equal(selected, wanted):
        return _check_attend(bench, state, choices)
    return _compare_decode(choices[-1], state, selected, covered, attended(state, selected, covered))


def _check_append(bench: Bench, state: DeviceState, choices: tuple[Choice, ...]) -> tuple[float, str]:
    """On donated pools, as in the timing: there may be no room for a copy. `state` gets the pools that come back."""
    load, (step, pools, new, tables) = state.load, _append(bench, state, choices)
    bench.drop()  # bench.held has the same pools

    def written(pools, table, k_new, v_new, lengths):
        keys, values, summaries = step(pools, table, k_new, v_new, lengths)
        page = jnp.take_along_axis(table, ((lengths - 1) // load.page_size)[:, None], axis=1)[:, 0]
        rows = page * load.page_size + (lengths - 1) % load.page_size
        good = jnp.all(keys[:, rows] == k_new.swapaxes(0, 1)) & jnp.all(values[:, rows] == v_new.swapaxes(0, 1))
        return good, (keys, values, summaries)

    good, pools = jax.jit(written, donate_argnums=0)(pools, tables[0], *new)
    state.keys, state.values, state.summaries = pools
    return 0.0, "" if good else "the new rows are not in the pools"


CHECKS = {
    "dense": _check_dense,
    "select": _check_select,
    "attend": _check_attend,
    "block_topk": _check_block_topk,
    "append": _check_append,
}


def attended(state: DeviceState, table: jax.Array, lengths: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """The reference's `(out, lse)` of the first CHECKED_SEQUENCES, in float32 from the stored values."""
    page_size = state.load.page_size

    def run(q, keys, values, table, lengths):
        pools = paged(keys, page_size), paged(values, page_size)
        return reference.paged_decode(
            q[:CHECKED_SEQUENCES].astype(jnp.float32), *pools, table[:CHECKED_SEQUENCES], lengths[:CHECKED_SEQUENCES]
        )

    out, lse = jax.jit(run)(state.q, state.keys, state.values, table, lengths)
    return np.asarray(out), np.asarray(lse)


def _compare_decode(
    choice: Choice, state: DeviceState, table: jax.Array, lengths: jax.Array, expected: tuple[np.ndarray, np.ndarray]
) -> tuple[float, str]:
    """Runs the whole batch and compares its first CHECKED_SEQUENCES: the error, and why it is too large or ""."""
    decode, page_size = choice.function("paged_decode"), state.load.page_size

    def run(q, keys, values, table, lengths):
        out, lse = decode(q, paged(keys, page_size), paged(values, page_size), table, lengths)
        return out[:CHECKED_SEQUENCES], lse[:CHECKED_SEQUENCES], jnp.all(jnp.isfinite(out))

    out, lse, finite = jax.jit(run)(state.q, state.keys, state.values, table, lengths)
    if not finite:
        return np.inf, "out: not finite somewhere in the batch"
    (error, why), (lse_error, lse_why) = close(out, expected[0], state.load.dtype), close_lse(lse, expected[1])
    return max(error, lse_error), why or lse_why


def _select_and_compare(bench: Bench, state: DeviceState, choice: Choice) -> tuple[float, tuple[jax.Array, jax.Array]]:
    """The share of the first sequences' pages that are the reference's, and `(selected, covered)` of the batch."""
    select = choice.function("select_pages")
    run = jax.jit(lambda *arrays: select(*arrays, **_selection(state.load)))
    selected, covered = run(state.q, state.summaries, state.tables[0], state.lengths)
    wanted, tokens = _chosen(bench, state)[0]
    if not np.array_equal(covered, tokens):
        return 0.0, (selected, covered)
    ids, wanted = np.asarray(selected), np.asarray(wanted)
    same = [len({*a} & {*b}) / len({*b}) for a, b in zip(_rows(ids), _rows(wanted), strict=True)]
    return float(np.mean(same)), (selected, covered)


def _rows(ids: np.ndarray) -> list[list[int]]:
    return ids.reshape(-1, ids.shape[-1]).tolist()
