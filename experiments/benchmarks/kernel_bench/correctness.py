"""Small cases of every op against float64, one row each: dtypes, groups, head_dims, page sizes, lengths, summaries."""

from __future__ import annotations

import dataclasses
import zlib

import jax
import numpy as np

from kernel_bench.choices import Choice
from kernel_bench.oracle import Paged, check_append, check_decode, check_selection, random_state

OPS = ("paged_decode", "sparse_decode", "select_pages", "append_kv")
PAGES = 5  # of a selection


@dataclasses.dataclass(frozen=True)
class Shape:
    """One state: sequences of no token, one, a page, a page and one, all but one of the table's, and all of them."""

    group: int = 4
    head_dim: int = 128
    page_size: int = 64
    dtype: str = "bfloat16"
    summary: str = "mean"
    table_pages: int = 9
    kv_heads: int = 2
    repeated: int = 1  # how often the batch repeats the sequences

    def state(self) -> Paged:
        size, most = self.page_size, self.page_size * self.table_pages
        lengths = [0, 1, size, size + 1, 3 * size - 1, most - 1, most, most // 2] * self.repeated
        rng = np.random.default_rng(zlib.crc32(repr(self).encode()))
        return random_state(
            rng,
            lengths,
            kv_heads=self.kv_heads,
            group=self.group,
            head_dim=self.head_dim,
            page_size=size,
            max_pages=self.table_pages,
            dtype=self.dtype,
            summary=self.summary,
        )

    def __str__(self) -> str:
        shape = f"{self.kv_heads}x{self.group}x{self.head_dim} page {self.page_size} table {self.table_pages} "
        return shape + f"batch {8 * self.repeated} {self.dtype} {self.summary}"


# A common shape first, then one field changed at a time, then several at once.
BASE = Shape()
SHAPES = (
    BASE,
    *(dataclasses.replace(BASE, group=group) for group in (1, 2, 5, 8, 16)),
    *(dataclasses.replace(BASE, page_size=size) for size in (8, 16, 32, 128)),
    *(dataclasses.replace(BASE, head_dim=dim) for dim in (64, 256)),
    *(dataclasses.replace(BASE, dtype=dtype) for dtype in ("float16", "float32")),
    *(dataclasses.replace(BASE, summary=summary) for summary in ("min_max", "mean_std")),
    Shape(table_pages=130, repeated=1),
    Shape(page_size=16, table_pages=600, kv_heads=8, group=5),
    Shape(page_size=16, repeated=8, kv_heads=8, group=2),
    Shape(group=5, head_dim=64, page_size=16, dtype="float16", summary="mean_std"),
    Shape(group=1, head_dim=256, page_size=32, dtype="float32", summary="min_max"),
    Shape(group=16, head_dim=64, page_size=8, dtype="float32"),
    Shape(group=8, head_dim=256, page_size=128, dtype="float16", summary="min_max"),
    Shape(group=2, head_dim=64, page_size=128, dtype="bfloat16", summary="mean_std"),
)
# Small enough for a CPU.
TINY_SHAPES = (
    Shape(group=2, head_dim=16, page_size=8, dtype="float32", table_pages=7, kv_heads=1),
    Shape(group=1, head_dim=16, page_size=8, dtype="bfloat16", table_pages=7, summary="min_max"),
)


def kernel_of(op: str) -> str:
    """The op of kinetics_kernels that a case of this name runs."""
    return "paged_decode" if op == "sparse_decode" else op


def check(op: str, shape: Shape, choice: Choice) -> dict:
    """Runs one case: the row with `status` ok or wrong, the error and, if wrong, why.

    Raises NotImplementedError if the backend refuses the case.
    """
    state = shape.state()
    function = choice.function(kernel_of(op))
    error, why = _run(op, state, shape, function)
    return {"status": "wrong", "error": error, "why": why} if why else {"status": "ok", "error": error}


def _run(op: str, state: Paged, shape: Shape, function) -> tuple[float, str]:
    q, k_pages, v_pages, summaries, table, lengths = state.arrays(shape.dtype)
    kv_heads, batch = shape.kv_heads, len(state.lengths)
    if op == "paged_decode":
        results = jax.jit(function)(q, k_pages, v_pages, table, lengths)
        tables = np.broadcast_to(state.page_table[:, None], (batch, kv_heads, shape.table_pages))
        return check_decode(state, shape.dtype, results, tables, np.tile(state.lengths[:, None], (1, kv_heads)))
    if op == "sparse_decode":
        selected, covered = _random_selection(state)
        results = jax.jit(function)(q, k_pages, v_pages, selected, covered)
        return check_decode(state, shape.dtype, results, selected, covered)
    if op == "select_pages":
        settings = {"page_size": shape.page_size, "pages": PAGES, "summary": shape.summary}
        results = jax.jit(lambda *arrays: function(*arrays, **settings))(q, summaries, table, lengths)
        return check_selection(state, results, pages=PAGES)
    if op == "append_kv":
        rng = np.random.default_rng(1)
        drawn = (rng.standard_normal((batch, kv_heads, shape.head_dim)).astype(q.dtype) for _ in range(2))
        k_new, v_new = drawn
        run = jax.jit(lambda *arrays: function(*arrays, summary=shape.summary), donate_argnums=(0, 1, 2))
        results = run(k_pages, v_pages, summaries, k_new, v_new, table, lengths)
        new = k_new.astype(np.float32), v_new.astype(np.float32)
        return check_append(state, shape.dtype, results, *new)
    raise ValueError(f"check: op {op!r} is not known (known: {', '.join(OPS)})")


def _random_selection(state: Paged) -> tuple[np.ndarray, np.ndarray]:
    """Another table per KV head: up to PAGES pages of each row in logical order, the current one last, and -1."""
    rng = np.random.default_rng(2)
    batch, kv_heads, page_size = len(state.lengths), state.k_pages.shape[0], state.k_pages.shape[2]
    selected = np.full((batch, kv_heads, PAGES), -1, np.int32)
    covered = np.zeros((batch, kv_heads), np.int32)
    for row, length in enumerate(state.lengths):
        count = -(-int(length) // page_size)
        for head in range(kv_heads):
            kept = min(count, PAGES)
            if kept:
                places = [*sorted(rng.choice(count - 1, kept - 1, replace=False)), count - 1]
                selected[row, head, :kept] = state.page_table[row, places]
                covered[row, head] = length - (count - kept) * page_size
    return selected, covered
