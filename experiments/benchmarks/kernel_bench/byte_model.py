"""The fewest bytes a decode step can move through device memory, and the time they take: floors, not measurements."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from kinetics_kernels.summaries.registry import summary_kind

ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

# Bytes/s of device memory by the vendors' data sheets, as in kinetics_jax.costs.hardware.
DATA_SHEET = {"h100": 3.35e12, "h200": 4.8e12, "a100": 2.039e12, "v5e": 819e9, "v5p": 2.765e12, "v6e": 1.638e12}


@dataclasses.dataclass(frozen=True)
class Workload:
    """One decode step of one layer: `batch` sequences of `context` tokens; `budget` tokens attended when sparse."""

    batch: int = 64
    context: int = 32_768
    page_size: int = 64
    budget: int = 1024
    kv_heads: int = 8
    group: int = 4
    head_dim: int = 128
    dtype: str = "bfloat16"
    summary: str = "mean"
    run: int = 16  # pages of consecutive ids in the tables; as many as the engine's allocator gives

    @property
    def pages(self) -> int:
        """Pages attended per KV head when sparse."""
        return self.budget // self.page_size

    @property
    def table_pages(self) -> int:
        return self.context // self.page_size

    @property
    def q_heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def token_bytes(self) -> int:
        """K and V of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * ITEM_BYTES[self.dtype]

    def __str__(self) -> str:
        shape = f"B{self.batch} S{self.context} page{self.page_size} budget{self.budget} "
        return shape + f"{self.kv_heads}x{self.group}x{self.head_dim} {self.dtype} {self.summary} run{self.run}"


def floor_bytes(op: str, load: Workload) -> int:
    """Each input read once, each output written once, for `dense`, `select`, `attend`, `block_topk` or `append`.

    Per KV head and page a selection reads one summary (two vectors for `min_max` and `mean_std`) and one id; attention
    reads K, V and ids of what it attends to, and q, and writes out and log-sum-exp. `append` writes a token's K and V;
    the pages it closes are not counted. Raises ValueError for any other op.
    """
    row = load.head_dim * ITEM_BYTES[load.dtype]
    query, table = load.batch * load.q_heads * row, 4 * load.batch * load.table_pages
    chosen = 4 * load.batch * load.kv_heads * load.pages
    answer = query + 4 * load.batch * load.q_heads
    summaries = load.batch * load.kv_heads * load.table_pages * summary_kind(load.summary).vectors * row
    if op == "dense":
        return load.batch * load.context * load.token_bytes + query + table + answer
    if op == "select":
        return summaries + query + table + chosen
    if op == "attend":
        return load.batch * min(load.budget, load.context) * load.token_bytes + query + chosen + answer
    if op == "block_topk":
        return floor_bytes("select", load) + floor_bytes("attend", load)
    if op == "append":
        return 2 * load.batch * load.token_bytes
    raise ValueError(f"floor_bytes: op {op!r} is not known (known: dense, select, attend, block_topk, append)")


def floor_rows(loads: Iterable[Workload], chips: Sequence[str]) -> list[dict]:
    """One row per workload: bytes of every op, and microseconds at each chip's data-sheet bandwidth."""
    rows = []
    for load in loads:
        sizes = {op: floor_bytes(op, load) for op in ("dense", "select", "attend", "block_topk")}
        floors = {
            f"{op}_us_{chip}": round(1e6 * sizes[op] / DATA_SHEET[chip], 1)
            for chip in chips
            for op in ("dense", "block_topk")
        }
        rows.append(
            {
                "batch": load.batch,
                "context": load.context,
                "page_size": load.page_size,
                "budget": load.budget,
                **{f"{op}_bytes": size for op, size in sizes.items()},
                "ratio": round(sizes["dense"] / sizes["block_topk"], 1),
                **floors,
            }
        )
    return rows


def print_table(rows: Sequence[dict]) -> None:
    """Prints rows of equal keys, right-aligned under their names."""
    widths = {name: max(len(str(value)) for value in (name, *(row[name] for row in rows))) for name in rows[0]}
    for row in (dict(zip(widths, widths, strict=True)), *rows):
        print("  ".join(str(row[name]).rjust(width) for name, width in widths.items()))
