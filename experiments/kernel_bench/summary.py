"""The aims of the kernels against what a suite measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from kernel_bench.byte_model import Workload

SLACK_US = 10  # that a selection may take beyond the reading of its bytes


def aims(rows: Iterable[dict], head: Workload) -> list[dict]:
    """One row per aim: what is wanted, the best that was measured with a right result, by whom, and whether it is met.

    `rows` of the sections timings and peers; `met` is None where nothing was measured.
    """
    right = [row for row in rows if row.get("status") == "ok" and "us" in row and not row["impossible"]]
    dense = _best(right, "dense", head)
    sparse = _best(right, "block_topk", head)
    select = _best(right, "select", head)
    fine = _best(right, "dense", dataclasses.replace(head, page_size=16))
    peer = min(
        (row for row in right if "peer" in row and row["op"] == "dense" and row["load"] == str(head)),
        key=lambda row: row["us"],
        default=None,
    )
    return [
        _aim("dense paged decode: fraction of read bandwidth", ">=", 0.85, [dense], lambda: dense["fraction"]),
        _aim("block top-k: times own dense", ">=", 12, [sparse, dense], lambda: dense["us"] / sparse["us"]),
        _aim("block top-k: times the best dense peer", ">=", 10, [sparse, peer], lambda: peer["us"] / sparse["us"]),
        _aim(
            "selection: us beyond its bytes at read bandwidth",
            "<=",
            SLACK_US,
            [select],
            lambda: select["us"] - select["floor_us"],
        ),
        _aim("dense at page 16: fraction of read bandwidth", ">=", 0.7, [fine], lambda: fine["fraction"]),
    ]


def _aim(name: str, sign: str, wanted: float, needed: Sequence[dict | None], value: Any) -> dict:
    if any(row is None for row in needed):
        return {"aim": name, "wanted": f"{sign} {wanted}", "measured": "not measured", "by": "", "met": None}
    found = value()
    by = " / ".join(row.get("choice") or row["peer"] for row in needed if row is not None)
    met = found >= wanted if sign == ">=" else found <= wanted
    return {"aim": name, "wanted": f"{sign} {wanted}", "measured": round(found, 3), "by": by, "met": met}


def _best(rows: Sequence[dict], op: str, load: Workload) -> dict | None:
    """The fastest own row of an op at a workload."""
    wanted = dataclasses.asdict(load)
    own = (row for row in rows if row["op"] == op and "choice" in row)
    same = (row for row in own if all(row.get(name) == value for name, value in wanted.items()))
    return min(same, key=lambda row: row["us"], default=None)


def failures(rows: Iterable[dict]) -> dict[str, dict[str, int]]:
    """Rows by choice (or peer) and status."""
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        counts = found.setdefault(row.get("choice") or row.get("peer") or row["case"], {})
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    return found
