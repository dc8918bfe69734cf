"""From rows to a table: one line for each model, batch and context, all runners side by side."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from decode_bench.points import ENGINE, PEERS, Point, Settings

# Columns to print; the table has more.
COLUMNS = (
    "model",
    "layers",
    "batch",
    "context",
    "dense tok/s",
    "of limit",
    "sparse tok/s",
    "of its limit",
    "sparse/dense",
    "by bytes",
    "transformers tok/s",
    "dense/transformers",
)
HOST_COLUMNS = (*COLUMNS, "by CPU time")  # dense/transformers in CPU seconds, which other work disturbs less


def table(rows: Sequence[dict[str, Any]], settings: Settings, bandwidth: float) -> list[dict[str, Any]]:
    """`rows` are points with their status, of which the last row of a point counts; limits are at `bandwidth`, bytes/s.

    Ratios are medians over turns, paired in order. `transformers` is the faster of its two ways, if both ran. A cell
    that was not measured is `-`; one that did not run is its status.
    """
    last = {_point(row): row for row in rows}
    places = dict.fromkeys((point.model, point.layers, point.batch, point.context) for point in last)
    lines = []
    for model, layers, batch, context in sorted(places):
        by_runner = {
            p.runner: row
            for p, row in last.items()
            if (p.model, p.layers, p.batch, p.context) == (model, layers, batch, context)
        }
        line: dict[str, Any] = {"model": model, "layers": layers, "batch": batch, "context": context}
        limits = {}
        for runner in ENGINE:
            size = settings.step_bytes(Point(model, layers, runner, batch, context))
            limits[runner] = size / bandwidth
            row = by_runner.get(runner)
            line |= {
                f"{runner} tok/s": _speed(row),
                f"{runner} seconds": row.get("seconds") if row else None,
                f"{runner} bytes": size,
                f"{runner} limit seconds": limits[runner],
                "of limit" if runner == "dense" else "of its limit": _fraction(row, limits[runner]),
            }
        peers = [by_runner[name] for name in PEERS if name in by_runner]
        ran = [row for row in peers if "seconds" in row]
        peer = min(ran, key=lambda row: row["seconds"]) if ran else next(iter(peers), None)
        line |= {
            "sparse/dense": _ratio(by_runner.get("dense"), by_runner.get("sparse")),
            "by bytes": round(limits["dense"] / limits["sparse"], 2),
            "transformers tok/s": _speed(peer),
            "transformers way": peer["runner"] if peer else None,
            "transformers seconds": peer.get("seconds") if peer else None,
            "dense/transformers": _ratio(peer, by_runner.get("dense")),
            "sparse/transformers": _ratio(peer, by_runner.get("sparse")),
            "by CPU time": _cpu_ratio(peer, by_runner.get("dense")),
        }
        lines.append(line)
    return lines


def _point(row: dict[str, Any]) -> Point:
    return Point(*(row[name] for name in ("model", "layers", "runner", "batch", "context")))


def _speed(row: dict[str, Any] | None) -> Any:
    if row is None:
        return "-"
    return round(row["batch"] / row["seconds"], 2) if "seconds" in row else row["status"]


def _fraction(row: dict[str, Any] | None, limit: float) -> Any:
    return round(limit / row["seconds"], 3) if row and "seconds" in row else "-"


def _cpu_ratio(slow: dict[str, Any] | None, fast: dict[str, Any] | None) -> Any:
    """CPU seconds of `slow` over those of `fast`."""
    if not (slow and fast and "cpu_seconds" in slow and "cpu_seconds" in fast):
        return "-"
    return round(slow["cpu_seconds"] / fast["cpu_seconds"], 2)


def _ratio(slow: dict[str, Any] | None, fast: dict[str, Any] | None) -> Any:
    """Seconds of `slow` over those of `fast`, the median over turns."""
    if not (slow and fast and "seconds" in slow and "seconds" in fast):
        return "-"
    turns = zip(slow["turns"], fast["turns"], strict=False)
    return round(statistics.median(one / other for one, other in turns), 2)
