"""What differs between two recordings of the op cases, case by case, and whether it stays within bounds."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import oracle
from .cases import Case, all_states, cases_of
from .recording import ComparisonError, Recording
from .ulps import row_ulps, same_bits, ulp_distance

# Between two backends, and of each from float64. Outputs and summaries: ulps of the row's largest element, in the
# output's dtype. Float32 results differ by the order of summation, bfloat16 ones by rounding (in some kernels, of the
# weights too). lse is always float32.
ROW_ULPS = {"float32": 64, "bfloat16": 2}
LSE_ULPS = 64


def compare_ops(a: Recording, b: Recording) -> list[dict[str, Any]]:
    """A row per case; its `beyond` lists what is out of bounds. Raises ComparisonError if the inputs differ."""
    for what in ("seed", "states", "inputs_sha256"):
        if a.index["ops"][what] != b.index["ops"][what]:
            raise ComparisonError(f"{a.path} and {b.path} have different inputs: {what} of the op cases")
    statuses = [{case["case"]: case for case in side.index["ops"]["cases"]} for side in (a, b)]
    known = {state.name: state for state in all_states()}
    rows = []
    for name in a.index["ops"]["states"]:
        if name not in known:
            raise ComparisonError(f"{a.path}: state {name} is not of this set; record it again")
        inputs = a.group(f"inputs/{name}")
        for case in cases_of(known[name]):
            pair = [status.get(case.name) for status in statuses]
            if None in pair:
                raise ComparisonError(f"{(a, b)[pair.index(None)].path} is incomplete: {case.name} is missing")
            rows.append(_case_row(case, inputs, a, b, pair))
    return rows


def _case_row(case: Case, inputs: dict[str, np.ndarray], a: Recording, b: Recording, pair: list) -> dict[str, Any]:
    state = case.state
    row: dict[str, Any] = {"op": case.op, "variant": case.variant, "state": state.name, "dtype": state.dtype}
    row |= {"status": "compared", "beyond": []}
    for side, status in zip("AB", pair, strict=True):
        if status["status"] == "ok":
            row[f"how_{side.lower()}"] = status["how"]
        else:
            row["status"] = status["status"] if row["status"] != "failed" else "failed"
            row[f"reason_{side.lower()}"] = status["reason"]
            if status["status"] == "failed":
                row["beyond"].append(f"{side} failed: {status['reason']}")
    if row["status"] != "compared":
        return row
    outputs = [side.group(f"outputs/{case.name}") for side in (a, b)]
    for name, array in outputs[0].items():
        other = outputs[1][name]
        if (array.shape, array.dtype) != (other.shape, other.dtype):
            row["beyond"].append(f"{name} is {array.dtype} {array.shape} in A, {other.dtype} {other.shape} in B")
    if row["beyond"]:
        return row
    wanted = oracle.expected(case, inputs)
    if case.op == "select_pages":
        return row | _selection(case, inputs, outputs[0], outputs[1], wanted)
    if case.op == "append_kv":
        return row | _append(state.dtype, outputs[0], outputs[1], wanted)
    return row | _attention(case, outputs[0], outputs[1], wanted)


def _numbers(a: np.ndarray, b: np.ndarray, wanted: np.ndarray, dtype: str) -> dict[str, Any]:
    """How far two arrays differ, row by row, and each from float64."""
    if not a.size:
        return {"max_ulp": 0.0, "mean_ulp": 0.0, "row_ulp": 0.0, "error_a": 0.0, "error_b": 0.0, "equal_rows": 1.0}
    distance = ulp_distance(a, b)
    return {
        "max_ulp": float(distance.max()),
        "mean_ulp": float(distance.mean()),
        "row_ulp": float(row_ulps(a, b, dtype).max()),
        "error_a": float(row_ulps(a, wanted, dtype).max()),
        "error_b": float(row_ulps(b, wanted, dtype).max()),
        "equal_rows": float(same_bits(a, b).all(axis=-1).mean()),
    }


def _append(dtype: str, a: dict, b: dict, wanted: dict) -> dict[str, Any]:
    row = _numbers(a["summaries"], b["summaries"], wanted["summaries"], dtype)
    beyond = []
    for name in ("k_pages", "v_pages"):
        for side, pools in (("A", a), ("B", b)):
            wrong = int((~same_bits(pools[name], wanted[name])).sum())
            if wrong:
                beyond.append(f"{name} of {side}: {wrong} elements were wrongly written or overwritten (bound 0)")
    return row | {"beyond": beyond + _beyond_row_ulps("summaries", row, dtype)}


def _beyond_row_ulps(name: str, row: dict[str, Any], dtype: str) -> list[str]:
    clauses = {"row_ulp": "A and B lie", "error_a": "A lies from float64", "error_b": "B lies from float64"}
    bound = ROW_ULPS[dtype]
    far = {which: row[which] for which in clauses if not row[which] <= bound}
    return [f"{name}: {clauses[which]} {value:.3g} row ulps apart (bound {bound})" for which, value in far.items()]


def _attention(case: Case, a: dict, b: dict, wanted: dict) -> dict[str, Any]:
    """Rows of block_topk_decode whose selection rounding may decide are counted but not compared."""
    dtype = case.state.dtype
    kept = np.ones(wanted["out"].shape[:2], bool)
    if "margin" in wanted:
        kept = np.repeat(wanted["margin"] > 0, case.state.group, axis=1)
    row: dict[str, Any] = _numbers(a["out"][kept], b["out"][kept], wanted["out"][kept], dtype)
    lses = {"a": a["lse"][kept], "b": b["lse"][kept], "true": wanted["lse"][kept]}
    # In ulps of max(1, |lse|): near 0 a log-sum-exp's own ulps mean nothing.
    rows = {name: np.stack([x, np.ones_like(x)], axis=-1) for name, x in lses.items()}
    beyond = _beyond_row_ulps("out", row, dtype)
    for name, (one, other) in {"lse_ulp": "ab", "lse_error_a": ("a", "true"), "lse_error_b": ("b", "true")}.items():
        row[name] = float(row_ulps(rows[one], rows[other], np.float32).max(initial=0.0))
        if not row[name] <= LSE_ULPS:
            beyond.append(f"lse: {name} is {row[name]:.3g} ulps (bound {LSE_ULPS})")
    row["lse_difference"] = float(_difference(lses["a"], lses["b"]).max(initial=0.0))
    return row | {"undecided_rows": int((~kept).sum()), "beyond": beyond}


def _difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b| in float64; equal infinities do not differ, NaN differs from all."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    return np.where(finite, np.abs(np.where(finite, a, 0) - np.where(finite, b, 0)), np.where(a == b, 0.0, np.inf))


def _selection(case: Case, inputs: dict, a: dict, b: dict, wanted: dict) -> dict[str, Any]:
    overlaps, against, equal, beyond = [], {"a": [], "b": []}, [], []
    worst: dict[str, Any] = {}
    for row, head in np.ndindex(*wanted["selected"].shape[:2]):
        sides = {"a": a["selected"][row, head], "b": b["selected"][row, head]}
        sets = {side: {int(page) for page in ids if page >= 0} for side, ids in sides.items()}
        true = {int(page) for page in wanted["selected"][row, head] if page >= 0}
        for side, pages in sets.items():
            against[side].append(_overlap(pages, true))
            if wanted["margin"][row, head] > 0 and not np.array_equal(sides[side], wanted["selected"][row, head]):
                beyond.append(
                    f"sequence {row} KV head {head}: {side.upper()} lists {sides[side].tolist()}, float64 "
                    f"{wanted['selected'][row, head].tolist()}, by more than rounding can move (bound: equal)"
                )
        overlaps.append(_overlap(sets["a"], sets["b"]))
        equal.append(np.array_equal(sides["a"], sides["b"]))
        if equal[-1]:
            continue
        other = sets["a"] ^ sets["b"]
        if not other:
            beyond.append(f"sequence {row} KV head {head}: the same pages in another order")
            continue
        gap, allowed = oracle.score_gap(case, inputs, case.variant, row, head, other)
        if not worst or gap - allowed > worst["score_gap"] - worst["score_gap_bound"]:
            worst = {"score_gap": gap, "score_gap_bound": allowed}
        if not gap <= allowed or len(sets["a"]) != len(sets["b"]) or case.state.kind == "ties":
            beyond.append(
                f"sequence {row} KV head {head}: pages {sorted(other)} differ, whose scores lie {gap:.3g} apart "
                f"(bound {allowed:.3g}: what rounding can move)"
            )
    for side, outputs in (("A", a), ("B", b)):
        if wrong := int((outputs["covered"] != wanted["covered"]).sum()):
            beyond.append(f"covered of {side} is wrong in {wrong} rows (bound 0)")
    return {
        "overlap_mean": float(np.mean(overlaps)),
        "overlap_worst": float(min(overlaps)),
        "overlap_float64_a": float(np.mean(against["a"])),
        "overlap_float64_b": float(np.mean(against["b"])),
        "equal_rows": float(np.mean(equal)),
        **worst,
        "beyond": beyond,
    }


def _overlap(a: set[int], b: set[int]) -> float:
    return len(a & b) / max(len(a), len(b)) if a or b else 1.0
