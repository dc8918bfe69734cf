"""A comparison as tables to cite, in Markdown or LaTeX: a column for each recording, beside the first of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .compare_ops import LSE_ULPS, ROW_ULPS
from .recording import Recording

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {mark: f"\\{mark}" for mark in "&%$#_{}"}
NOT_RECORDED = "not recorded"
Table = list[list[str]]  # the first row is its head


def cited(recordings: Sequence[Recording], compared: Sequence[list[dict[str, Any]]], form: str) -> str:
    """Two tables: where the recordings were made, and what differs from the first of them.

    `compared` holds the rows of each recording but the first; `form` is `markdown` or `latex`.
    """
    tables = {
        "Where the recordings were made": circumstances_table(recordings),
        f"Differences from {recordings[0].path.name}. {bounds()}": differences_table(recordings, compared),
    }
    return "\n".join({"markdown": markdown, "latex": latex}[form](title, table) for title, table in tables.items())


def bounds() -> str:
    """What counts as the same, in a sentence."""
    rows = " and ".join(f"{bound} in {dtype}" for dtype, bound in ROW_ULPS.items())
    return f"Bounds: {rows} ulps of a row's largest element, {LSE_ULPS} ulps for log-sum-exps; selections equal."


def circumstances_table(recordings: Sequence[Recording]) -> Table:
    """A row per circumstance; recordings of an earlier schema lack some."""

    def cells(index: dict[str, Any]) -> dict[str, str]:
        device, variables, threads = index["device"], index.get("variables"), index.get("threads")
        unset = "unset" if variables is not None else NOT_RECORDED
        chosen = index["ops"]["backends"].items()
        backends = {
            op: str(each["backend"]) for op, each in chosen if op != "block_topk_decode"
        }  # which is two of them
        alike = {*backends.values()}
        hows = sorted({how for case in index["ops"]["cases"] for how in case["how"].split("; ") if how})
        others = [f"{name}={value}" for name, value in (variables or {}).items() if name != "XLA_FLAGS"]
        return {
            "revision": index.get("revision", NOT_RECORDED),
            "device": f"{device['kind']} ({device['platform']}, {device['machine']})",
            "driver": str(device.get("driver") or ("none" if "driver" in device else NOT_RECORDED)),
            "versions": ", ".join(f"{name} {version}" for name, version in index["versions"].items()),
            "backend": alike.pop() if len(alike) == 1 else ", ".join(f"{op} {each}" for op, each in backends.items()),
            "run": ", ".join(hows) or "nothing",
            "XLA flags": (variables or {}).get("XLA_FLAGS", unset),
            "other variables": ", ".join(others) or unset,
            "matmul precision": index.get("matmul_precision", NOT_RECORDED),
            "threads": f"{threads['usable']} of {threads['of']}" if threads else NOT_RECORDED,
            "seed": str(index["ops"]["seed"]),
        }

    columns = [cells(recording.index) for recording in recordings]
    head = ["", *(recording.path.name for recording in recordings)]
    return [head, *([name, *(column[name] for column in columns)] for name in columns[0])]


def differences_table(recordings: Sequence[Recording], compared: Sequence[list[dict[str, Any]]]) -> Table:
    """A row per op and quantity: the worst over its cases."""
    columns = [differences(rows) for rows in compared]
    names = list(dict.fromkeys(name for column in columns for name in column))
    head = ["", *(recording.path.name for recording in recordings[1:])]
    return [head, *([name, *(column.get(name, "–") for column in columns)] for name in names)]


def differences(rows: list[dict[str, Any]]) -> dict[str, str]:
    """What one recording differs in, by quantity."""
    found: dict[str, str] = {}
    for op in dict.fromkeys(row["op"] for row in rows if "op" in row):
        of_op = [row for row in rows if row.get("op") == op]
        done = [row for row in of_op if row["status"] == "compared" and "equal_rows" in row]
        found[f"{op}: cases"] = f"{len(done)} of {len(of_op)}"
        worst = {
            "ulps from the first": ("row_ulp", max),
            "ulps of the first from float64": ("error_a", max),
            "ulps from float64": ("error_b", max),
            "pages in common, worst": ("overlap_worst", min),
            "rows equal to the bit": ("equal_rows", min),
        }
        for label, (name, over) in worst.items():
            if values := [row[name] for row in done if name in row]:
                found[f"{op}: {label}"] = f"{over(values):.3g}"
    for row in rows:
        what = row.get("what", "")
        if row["status"] != "compared" or "op" in row:
            continue
        if "difference" in row:
            found[f"{what}: largest difference"] = f"{row['difference']:.3g} (of {row['largest']:.3g})"
        elif "identical" in row:
            found[f"{what}: identical samples"] = f"{row['identical']:.0%} of {row['samples']}"
        elif "accuracy_a" in row:
            of = f"{row['problems']} problems of {row['task']}, {row['samples']} samples each"
            found[f"{what}, the first ({of})"] = _interval(row, "accuracy_a", "low_a", "high_a")
            found[what] = _interval(row, "accuracy_b", "low_b", "high_b")
            found[f"{what}, apart"] = _interval(row, "apart", "apart_low", "apart_high")
    found["refused cases"] = str(sum(row["status"] == "refused" for row in rows))
    found["beyond the bounds"] = str(sum(len(row["beyond"]) for row in rows))
    return found


def _interval(row: dict[str, Any], middle: str, low: str, high: str) -> str:
    return f"{row[middle]:.3f} [{row[low]:.3f}, {row[high]:.3f}]"


def markdown(title: str, table: Table) -> str:
    """A Markdown table under its title."""
    lines = [f"**{title}**", ""]
    for number, row in enumerate(table):
        lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in row) + " |")
        if number == 0:
            lines.append("|" + "---|" * len(row))
    return "\n".join(lines) + "\n"


def latex(title: str, table: Table) -> str:
    """A LaTeX table with booktabs' rules and its title as caption."""
    lines = [r"\begin{table}", rf"\caption{{{escaped(title)}}}", rf"\begin{{tabular}}{{l{'l' * (len(table[0]) - 1)}}}"]
    lines.append(r"\toprule")
    for number, row in enumerate(table):
        lines.append(" & ".join(map(escaped, row)) + r" \\")
        if number == 0:
            lines.append(r"\midrule")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def escaped(text: str) -> str:
    """Text as LaTeX has it."""
    marks = "".join(LATEX.get(mark, mark) for mark in text.replace("\n", " "))
    return marks.replace("--", "-{}-").replace("–", "--")  # two hyphens are a dash in LaTeX
