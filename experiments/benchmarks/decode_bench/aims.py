"""The speeds that whole-model decoding aims at on an H100, against what was measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

CONTEXT = 16_384  # of the aims; their batch is the largest that was measured there
PEER_BATCH = 32


def aims(table: Sequence[dict[str, Any]], device: str) -> list[dict[str, Any]]:
    """A row per aim; none on other devices, which have no aims. `met` is None if nothing was measured."""
    if "H100" not in device:
        return []
    rows = []
    for model in dict.fromkeys(line["model"] for line in table):
        largest = max(
            (
                line
                for line in table
                if (line["model"], line["context"]) == (model, CONTEXT) and _number(line["of limit"])
            ),
            key=lambda line: line["batch"],
            default=None,
        )
        rows.append(_aim(f"{model}: dense, of its byte limit", 0.8, largest, lambda line: line["of limit"]))
        rows.append(_aim(f"{model}: sparse, of its byte limit", 0.6, largest, lambda line: line["of its limit"]))
        if wanted := {"1.7B": 4.0, "8B": 2.0}.get(model):
            rows.append(_aim(f"{model}: sparse / dense", wanted, largest, lambda line: line["sparse/dense"]))
        beside = [line for line in table if (line["model"], line["batch"]) == (model, PEER_BATCH)]
        for line in beside:
            name = f"{model}: times transformers at batch {PEER_BATCH}, context {line['context']}"
            rows.append(_aim(name, 5.0, line, _against_peer))
    return rows


def _against_peer(line: dict[str, Any]) -> Any:
    return max(
        (line[name] for name in ("dense/transformers", "sparse/transformers") if _number(line[name])), default="-"
    )


def _aim(
    name: str, wanted: float, line: dict[str, Any] | None, value: Callable[[dict[str, Any]], Any]
) -> dict[str, Any]:
    measured: Any = value(line) if line else "-"
    known = _number(measured)
    at = f"batch {line['batch']}, context {line['context']}" if line else ""
    return {
        "aim": name,
        "wanted": f">= {wanted:g}",
        "measured": measured if known else "not measured",
        "at": at,
        "met": measured >= wanted if known else None,
    }


def _number(value: Any) -> bool:
    return isinstance(value, int | float)
