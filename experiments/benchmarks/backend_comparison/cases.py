"""The fixed set of op cases, and their inputs from a seed, equal to the bit on every machine.

Page sizes 8, 16 and 64 with groups 1, 4, 5 and 8: twelve states whose dtype (float32, bfloat16) and head_dim (64, 128)
alternate so that every pair of settings occurs. Each has six sequences: two long ones, one that fills its last page, an
idle one, one of one token, one shorter than the budget. What no sequence may read is NaN. Two more states: `ties`, for
selection alone, whose scores are small whole numbers, exact in any order of summation, many of them equal; and `long`,
two sequences of a few thousand tokens.

The numbers are sums of three uniform integers (nearly normal), as multiples of 2^-20 that float32 holds exactly, so
that they depend on no library's logarithm; keys of a page share an offset, so that pages differ.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import float64_ops
import jax.numpy as jnp
import numpy as np

DTYPES = {"float32": np.dtype(np.float32), "bfloat16": jnp.dtype(jnp.bfloat16)}
SUMMARIES = ("mean", "min_max", "mean_std")
KV_HEADS, SPARE_PAGES = 2, 5
PAGES, SINK_PAGES, RECENT_PAGES = 8, 1, 1  # of a selection, forced ones included
ONE = 1 << 20  # in fixed point


@dataclasses.dataclass(frozen=True)
class State:
    """One paged state: `lengths` are the sequences' tokens, after the step's append."""

    dtype: str
    page_size: int
    group: int
    head_dim: int
    lengths: tuple[int, ...]
    kind: str = "ragged"

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.dtype}-page{self.page_size}-group{self.group}-dim{self.head_dim}"


@dataclasses.dataclass(frozen=True)
class Case:
    """One op on one state: `arrays` are the names of its inputs, in the op's order."""

    state: State
    op: str
    variant: str
    arrays: tuple[str, ...]
    options: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.state.name}/{self.op}-{self.variant}"


def all_states() -> list[State]:
    """Every state of the set."""
    states = []
    for row, page in enumerate((8, 16, 64)):
        for column, group in enumerate((1, 4, 5, 8)):
            dtype = ("float32", "bfloat16")[(row + column // 2) % 2]
            lengths = (20 * page - 3, 12 * page, 9 * page, 0, 1, 2 * page + 1)
            states.append(State(dtype, page, group, (64, 128)[(row + column) % 2], lengths))
    states.append(State("float32", 16, 4, 128, (40 * 16, 33 * 16 + 5), kind="ties"))
    states.append(State("bfloat16", 16, 4, 128, (3000, 1025), kind="long"))
    return states


def cases_of(state: State) -> list[Case]:
    """The cases of a state: append, selection by every kind of summary, decode over both forms of table, and both."""
    choice = {"pages": PAGES, "sink_pages": SINK_PAGES, "recent_pages": RECENT_PAGES}
    table, pools = ("page_table", "lengths"), ("k_pages", "v_pages")

    def select(summary: str) -> Case:
        options = {"page_size": state.page_size, "summary": summary, **choice}
        return Case(state, "select_pages", summary, ("q", f"{summary}_summaries", *table), options)

    if state.kind == "ties":
        return [select("mean"), select("min_max")]
    summary = SUMMARIES[(state.group + state.page_size // 8) % 3]
    append = (*pools, f"{summary}_summaries", "k_new", "v_new", *table)
    return [
        Case(state, "append_kv", summary, append, {"summary": summary}),
        *map(select, SUMMARIES),
        Case(state, "paged_decode", "table_per_sequence", ("q", *pools, *table), {}),
        Case(state, "paged_decode", "table_per_head", ("q", *pools, "head_table", "head_lengths"), {}),
        Case(state, "block_topk_decode", "mean", ("q", *pools, "mean_summaries", *table), choice),
    ]


class _Draws:
    """Integers from PCG64's raw stream, which NumPy guarantees not to change."""

    def __init__(self, seed: int, name: str):
        self.bits = np.random.PCG64([seed, zlib.crc32(name.encode())])

    def raw(self, *shape: int) -> np.ndarray:
        return self.bits.random_raw(int(np.prod(shape))).reshape(shape)

    def normal(self, *shape: int) -> np.ndarray:
        """Nearly normal int64 in fixed point: the sum of three uniform numbers of 21 bits, standard deviation ONE."""
        raw = self.raw(*shape)
        parts = [(raw >> np.uint64(shift)) & np.uint64((1 << 21) - 1) for shift in (0, 21, 42)]
        return np.sum(parts, axis=0).astype(np.int64) - 3 * ONE

    def order(self, count: int) -> np.ndarray:
        return np.argsort(self.raw(count), kind="stable")


def inputs_of(state: State, seed: int) -> dict[str, np.ndarray]:
    """The arrays that the cases of a state name.

    `q [batch, q_heads, head_dim]`, `k_pages, v_pages [kv_heads, num_pages, page_size, head_dim]`, three kinds of
    `…_summaries [kv_heads, num_pages, (2,) head_dim]`, `k_new, v_new [batch, kv_heads, head_dim]` in the state's
    dtype; `page_table [batch, max_pages]`, `lengths [batch]`; `head_table [batch, kv_heads, PAGES]` with `head_lengths
    [batch, kv_heads]`: pages drawn for each KV head, the current one last. int32.
    """
    draws, dtype, size = _Draws(seed, state.name), DTYPES[state.dtype], state.page_size
    batch, dims = len(state.lengths), state.head_dim
    counts = [-(-length // size) for length in state.lengths]
    num_pages = -(-(sum(counts) + SPARE_PAGES) // 8) * 8  # TPU kernels write summaries in tiles of 8
    order = draws.order(num_pages)
    table = np.full((batch, max(counts) + 3), -1, np.int32)
    head_table = np.full((batch, KV_HEADS, PAGES), -1, np.int32)
    head_lengths = np.zeros((batch, KV_HEADS), np.int32)
    used = np.zeros((num_pages, size), bool)
    for row, (length, count) in enumerate(zip(state.lengths, counts, strict=True)):
        table[row, :count], order = order[:count], order[count:]
        used[table[row, :count]] = (np.arange(count * size) < length).reshape(count, size)
        for head in range(KV_HEADS):
            earlier = np.sort(draws.order(max(count - 1, 0))[: PAGES - 1])
            chosen = [*table[row, earlier], *table[row, max(count - 1, 0) : count]]
            head_table[row, head, : len(chosen)] = chosen
            head_lengths[row, head] = length - (count - len(chosen)) * size
    pool = (KV_HEADS, num_pages, size, dims)

    def stored(numbers: np.ndarray) -> np.ndarray:
        return (numbers / ONE).astype(np.float32).astype(dtype)

    if state.kind == "ties":  # whole numbers: -1, 0, 1
        few = lambda *shape: (draws.raw(*shape) % np.uint64(3)).astype(np.int64) * ONE - ONE  # noqa: E731
        q, keys, values = few(batch, 1, dims), few(KV_HEADS, num_pages, 1, dims), few(*pool)
        q, keys = np.repeat(q, KV_HEADS * state.group, axis=1), np.repeat(keys, size, axis=2)
        q[..., 4:] = 0  # a score is one of nine numbers
    else:
        q, values = draws.normal(batch, KV_HEADS * state.group, dims), draws.normal(*pool)
        keys = draws.normal(*pool) + draws.normal(KV_HEADS, num_pages, 1, dims)
    arrays = {"q": stored(q), "page_table": table, "lengths": np.array(state.lengths, np.int32)}
    arrays |= {"head_table": head_table, "head_lengths": head_lengths}
    for name, numbers in (("k_pages", keys), ("v_pages", values)):
        arrays[name] = stored(numbers)
        arrays[name][:, ~used] = np.nan
    full = used.all(axis=1)
    for summary in SUMMARIES:
        summaries = summary_of(arrays["k_pages"][:, full], summary).astype(np.float32).astype(dtype)
        arrays[f"{summary}_summaries"] = np.full((KV_HEADS, num_pages, *summaries.shape[2:]), np.nan, dtype)
        arrays[f"{summary}_summaries"][:, full] = summaries
    arrays |= {name: stored(draws.normal(batch, KV_HEADS, dims)) for name in ("k_new", "v_new")}
    return arrays


def summary_of(pages: np.ndarray, summary: str) -> np.ndarray:
    """Summaries of whole pages, `[..., page_size, head_dim]` → `[..., (2,) head_dim]` float64, by exact integers."""
    float64_ops.check_kind(summary)
    keys = (pages.astype(np.float64) * ONE).astype(np.int64)
    size, total = keys.shape[-2], keys.sum(axis=-2)
    mean = total / (size * ONE)
    if summary == "mean":
        return mean
    if summary == "min_max":
        return np.stack([keys.min(axis=-2) / ONE, keys.max(axis=-2) / ONE], axis=-2)
    return np.stack([mean, np.sqrt((size * (keys * keys).sum(axis=-2) - total * total) / (size * ONE) ** 2)], axis=-2)
