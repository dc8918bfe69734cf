"""The speeds that the kernels aim at, against what a suite measured."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence

from kernel_bench.byte_model import Workload

SLACK_US = 10  # microseconds that a selection may take beyond its byte floor


def aims(rows: Iterable[dict], checked: Iterable[dict], head: Workload) -> list[dict]:
    """One row per aim: the bound, the best right measurement, which backend or peer it is of, and whether it is met.

    `rows` of the sections timings and peers, `checked` of correctness: a backend that was wrong, crashed or hung there
    is named with the number of such cases. `met` is None if nothing was measured.
    """
    faults: dict[str, int] = {}
    for row in checked:
        if row.get("status") in ("wrong", "crashed", "hung"):
            faults[row["choice"]] = faults.get(row["choice"], 0) + 1
    right = [row for row in rows if row.get("status") == "ok" and "us" in row and not row["impossible"]]
    dense = _best(right, "dense", head)
    sparse = _best(right, "block_topk", head)
    select = _best(right, "select", head)
    fine = _best(right, "dense", dataclasses.replace(head, page_size=16))
    peer = min(
        (row for row in right if "peer" in row and row["op"] == "dense" and _at(row, head)),
        key=lambda row: row["us"],
        default=None,
    )
    aim_rows = [
        _aim("dense paged decode: fraction of read bandwidth", ">=", 0.85, lambda one: float(one["fraction"]), dense),
        _aim("block top-k: times own dense", ">=", 12, lambda one, other: other["us"] / one["us"], sparse, dense),
        _aim(
            "block top-k: times the best dense peer", ">=", 10, lambda one, other: other["us"] / one["us"], sparse, peer
        ),
        _aim("selection: us beyond its bytes", "<=", SLACK_US, lambda one: one["us"] - float(one["floor_us"]), select),
        _aim("dense at page 16: fraction of read bandwidth", ">=", 0.7, lambda one: float(one["fraction"]), fine),
    ]
    for row in aim_rows:
        wrong = sum(faults.get(name, 0) for name in {*re.findall(r"[^ +/]+", row["by"])})
        row["by"] += f" (WRONG in {wrong} cases)" if wrong else ""
    return aim_rows


def _aim(name: str, sign: str, wanted: float, value: Callable[..., float], *needed: dict | None) -> dict:
    rows = [row for row in needed if row is not None]
    measured = value(*rows) if len(rows) == len(needed) else math.nan  # NaN too if the bandwidth is not known
    if math.isnan(measured):
        return {"aim": name, "wanted": f"{sign} {wanted}", "measured": "not measured", "by": "", "met": None}
    by = " / ".join(row.get("choice") or row["peer"] for row in rows)
    met = measured >= wanted if sign == ">=" else measured <= wanted
    return {"aim": name, "wanted": f"{sign} {wanted}", "measured": round(measured, 3), "by": by, "met": met}


def _best(rows: Sequence[dict], op: str, load: Workload) -> dict | None:
    """The fastest own row of an op at a workload."""
    own = (row for row in rows if row["op"] == op and "choice" in row and _at(row, load))
    return min(own, key=lambda row: row["us"], default=None)


def _at(row: dict, load: Workload) -> bool:
    return all(row.get(name) == value for name, value in dataclasses.asdict(load).items())


def outcomes(rows: Iterable[dict]) -> dict[str, dict[str, int]]:
    """How many rows each choice (or peer) has of each status."""
    counts_by_name: dict[str, dict[str, int]] = {}
    for row in rows:
        counts = counts_by_name.setdefault(row.get("choice") or row.get("peer") or row["case"], {})
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    return counts_by_name
