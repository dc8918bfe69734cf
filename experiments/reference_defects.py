"""What each known defect of the paper's published code does to a number: as published, corrected, and the ratio.

    python experiments/reference_defects.py [--json | --markdown] [--out experiments/results/reference_defects.json]

Costs are those of kinetics_jax.costs: its "upstream" convention reproduces the published code to the digit. Choices and
groupings are computed on a synthetic set that defects/choices.py describes. docs/economics.md has the table.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from defects.choices import CHOICES
from defects.costs import COSTS
from defects.rows import BEHAVIOURS, DEFECTS, Row

from kinetics_jax.files import write_atomic

RESULTS = Path(__file__).parent / "results" / "reference_defects.json"


def defect_table() -> dict[str, Any]:
    """The whole table: `defects`, `rows` with their ratio, `behaviours` with the tests that hold the right ones."""
    rows = [row for make in (*COSTS, *CHOICES) for row in make()]
    return {
        "defects": {number: {"wrong": wrong, "right": right} for number, (wrong, right) in DEFECTS.items()},
        "rows": [row_record(row) for row in sorted(rows, key=lambda row: row.defect)],
        "behaviours": {what: list(tests) for what, tests in BEHAVIOURS.items()},
    }


def row_record(row: Row) -> dict[str, Any]:
    """A row as JSON, to eight digits, with the ratio of published to right; None if right is zero."""
    ratio = row.published / row.right if row.right else None
    numbers = {"published": row.published, "right": row.right, "ratio": ratio}
    written = {name: None if value is None else float(f"{value:.8g}") for name, value in numbers.items()}
    return {**dataclasses.asdict(row), **written}


def markdown(table: dict[str, Any]) -> str:
    """The rows, as the documentation has them."""
    lines = ["| # | case | quantity | published | right | published ÷ right |", "|---|---|---|---|---|---|"]
    for row in table["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.3g}"
        lines.append(
            f"| {row['defect']} | {row['case']} | {row['quantity']} | {row['published']:.6g} | {row['right']:.6g} | "
            f"{ratio} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print the table as JSON")
    how.add_argument("--markdown", action="store_true", help="print the table of docs/economics.md")
    parser.add_argument("--out", type=Path, default=RESULTS, help="write the table here as JSON (%(default)s)")
    options = parser.parse_args(arguments)
    table = defect_table()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out, json.dumps(table, indent=1, ensure_ascii=False) + "\n")
    if options.json:
        print(json.dumps(table, indent=1, ensure_ascii=False))
    elif options.markdown:
        print(markdown(table), end="")
    else:
        for number, (wrong, right) in DEFECTS.items():
            print(f"{number}. {wrong} → {right}")
            for row in table["rows"]:
                if row["defect"] == number:
                    print(f"   {row['case']}; {row['quantity']}: {row['published']:.6g} → {row['right']:.6g}")
            for what, tests in BEHAVIOURS.items():
                if what.startswith(f"{number}:"):
                    print(f"   {what.partition(': ')[2]}: {', '.join(tests)}")


if __name__ == "__main__":
    main()
