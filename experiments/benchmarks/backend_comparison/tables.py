"""A comparison as text."""

from __future__ import annotations

from collections import Counter
from typing import Any, TextIO

from .compare_model import LOGITS
from .compare_ops import LSE_ULPS, ROW_ULPS
from .recording import Recording

ATTENTION = ("max_ulp", "mean_ulp", "row_ulp", "error_a", "error_b", "equal_rows", "lse_ulp", "lse_difference")
SELECTION = ("overlap_mean", "overlap_worst", "overlap_float64_a", "overlap_float64_b", "equal_rows", "score_gap")
COLUMNS = {
    "append_kv": ATTENTION[:6],
    "select_pages": (*SELECTION, "score_gap_bound"),
    "paged_decode": ATTENTION,
    "block_topk_decode": (*ATTENTION, "undecided_rows"),
}
LOGIT, TOKEN = ("difference", "largest", "from_full_a", "from_full_b"), ("identical", "least_lead_a", "least_lead_b")
ACCURACY = ("accuracy_a", "low_a", "high_a", "accuracy_b", "low_b", "high_b", "apart", "apart_low", "apart_high")
LEGEND = """
max_ulp, mean_ulp: elements of A from B, in their own ulps. row_ulp: in ulps of the row's largest element; error_a,
error_b: from float64, likewise (bound of the three: {rows}). lse_ulp: float32, of
max(1, |lse|) (bound {lse}, also from float64). K and V pools after append: equal to the bit. Selections: equal, or the
scores of the pages that differ lie within score_gap_bound, which is what rounding can change."""


def print_tables(
    a: Recording, b: Recording, ops: list[dict[str, Any]], model: list[dict[str, Any]], file: TextIO
) -> None:
    """A table for every op and one for the model, the refused cases by reason, and the verdict."""
    for side, recording in (("A", a), ("B", b)):
        index = recording.index
        versions = ", ".join(f"{name} {version}" for name, version in index["versions"].items())
        print(f"{side}: {recording.path}: {index['device']['kind']}, {versions}", file=file)
        print(f"   {index.get('revision', 'revision not recorded')}", file=file)
        for op, chosen in index["ops"]["backends"].items():
            print(f"   {op}: {chosen['backend']} ({chosen['why']})", file=file)
        for how, count in Counter(case["how"] for case in index["ops"]["cases"] if case["how"]).items():
            print(f"   {count} cases: {how}", file=file)
    rows = ", ".join(f"{bound} in {dtype}" for dtype, bound in ROW_ULPS.items())
    print(LEGEND.format(rows=rows, lse=LSE_ULPS), file=file)
    for op, columns in COLUMNS.items():
        of_op = [row for row in ops if row["op"] == op and row["status"] == "compared"]
        if of_op:
            print(f"\n{op}", file=file)
            _print_rows(of_op, ("state", "variant", *columns), file)
    if model and model[0]["status"] == "compared":
        bounds = ", ".join(f"{dtype} {bound:.2g}" for dtype, bound in LOGITS.items())
        print(f"\n{model[0]['model']}, {model[0]['dtype']}. Bound of logits, over the largest: {bounds}; a token may "
              "differ where it leads by at most twice that.", file=file)  # fmt: skip
        _print_rows(
            [row for row in model if "accuracy_a" not in row], ("what", *LOGIT, "samples", *TOKEN, "bound"), file
        )
        if graded := [row for row in model if "accuracy_a" in row]:
            print("\nAccuracy, with 95% intervals over problems; apart: B minus A", file=file)
            _print_rows(graded, ("what", "task", "problems", "samples", *ACCURACY), file)
        for row in model:
            for each in row.get("diverged", []):
                print(f"  {row['what']}: problem {each['problem']} sample {each['sample']} from token "
                      f"{each['position']}, which leads by {each['lead']:.3g}", file=file)  # fmt: skip
    elif not model:
        print("\nno model: one recording or both were made without", file=file)
    refused = [row for row in (*ops, *model) if row["status"] == "refused"]
    named = [(f"reason_{side}", side.upper(), row) for side in "ab" for row in refused]
    reasons = [f"{side}: {row[name]}" for name, side, row in named if name in row]
    for reason, count in Counter(reasons).items():
        print(f"refused in {count} cases by {reason}", file=file)
    beyond = [(row, reason) for row in (*ops, *model) for reason in row["beyond"]]
    print(file=file)
    for row, reason in beyond:
        where = f"{row['op']} {row['variant']} {row['state']}" if "op" in row else f"{row['model']} {row['what']}"
        print(f"BEYOND: {where}: {reason}", file=file)
    compared = sum(row["status"] == "compared" for row in (*ops, *model))
    print(f"{compared} rows compared: " + (f"{len(beyond)} beyond the bounds" if beyond else "all within"), file=file)


def _print_rows(rows: list[dict[str, Any]], columns: tuple[str, ...], file: TextIO) -> None:
    def text(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    cells = [columns, *([text(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), file=file)
