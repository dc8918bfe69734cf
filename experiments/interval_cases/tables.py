"""The cells of the coverage experiment, summed up for the terminal and for the page."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

Row = dict[str, Any]
AIM = 0.93  # what the intervals promise to hold
BINS = (0.02, 0.05, 0.1, 0.3, 0.7, 0.9, 0.95, 0.98)  # of the true value


def summary(cells: pd.DataFrame, by: str) -> pd.DataFrame:
    """Coverage in percent and mean width by group; the ratio of widths where the bootstrap covers 93 % itself."""
    fair = np.where(cells["bootstrap held"] >= AIM, cells["ratio"], np.nan)
    percent = {name: 100 * cells[name].to_numpy(np.float64) for name in ("held", "bootstrap held")}
    columns: dict[str, tuple[str, str]] = {
        "cells": ("held", "size"),
        "least, %": ("held", "min"),
        "mean, %": ("held", "mean"),
        "bootstrap's least": ("bootstrap held", "min"),
        "bootstrap's mean": ("bootstrap held", "mean"),
        "width": ("width", "mean"),
        "bootstrap's width": ("bootstrap width", "mean"),
        "ratio, mean": ("fair", "mean"),
        "ratio, most": ("fair", "max"),
    }
    table: Any = cells.assign(fair=fair, **percent).groupby(by, sort=False, observed=True).agg(**columns)
    return table.round({name: 1 if value.endswith("held") else 3 for name, (value, _) in columns.items()})


def accuracies(rows: list[Row]) -> pd.DataFrame:
    return summary(pd.DataFrame(rows), "population")


def by_truth(rows: list[Row]) -> pd.DataFrame:
    """Real runs by their true value, over all numbers of problems and k."""
    cells = pd.DataFrame(rows).sort_values(by="truth")
    names = [f"{low:g} … {high:g}" for low, high in pairwise(BINS)]
    bins = pd.cut(cells["truth"], BINS, labels=names, include_lowest=True)
    return summary(cells.assign(**{"true value": bins}), "true value")


def by_size(rows: list[Row]) -> pd.DataFrame:
    return summary(pd.DataFrame(rows), "P")


def noninferiority(rows: list[Row]) -> pd.DataFrame:
    """Error and power in percent, a row for every loss, and columns for the numbers of problems."""
    cells = pd.DataFrame(rows)
    values = ["error", "bootstrap error", "power", "bootstrap power"]
    wide = cells.pivot_table(index=["population", "fail outright"], columns="P", values=values, sort=False)
    shown = {
        f"P = {problems}": [
            " / ".join(f"{100 * wide[value, problems].iloc[row]:.1f}" for value in values) for row in range(len(wide))
        ]
        for problems in sorted(cells["P"].unique())
    }
    return pd.DataFrame(shown, index=wide.index).reset_index().set_index("population")


def power_laws(rows: list[Row]) -> pd.DataFrame:
    cells = pd.DataFrame(rows).assign(law=lambda t: np.where(t["offset"], "with an offset", "without"))
    both = cells.assign(held=[f"{100 * e:.1f} / {100 * s:.1f}" for e, s in cells[["exponent", "scale"]].to_numpy()])
    return both.pivot_table(index="law", columns="points", values="held", aggfunc="first", sort=False)


TABLES = {
    "accuracies": accuracies,
    "Epoch runs": by_truth,
    "differences": accuracies,
    "Epoch pairs": by_size,
    "non-inferiority": noninferiority,
    "power laws": power_laws,
}


def show(tables: dict[str, list[Row]]) -> str:
    """Every table as plain text."""
    return "\n\n".join(f"{name}\n{TABLES[name](rows).to_string()}" for name, rows in tables.items())


def markdown(tables: dict[str, list[Row]]) -> dict[str, str]:
    """Every table in Markdown, by name."""
    return {name: _markdown(TABLES[name](rows)) for name, rows in tables.items()}


def _markdown(table: pd.DataFrame) -> str:
    table = table.reset_index()
    lines = [[str(name) for name in table.columns], ["---"] * len(table.columns)]
    lines += [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float | np.floating):
        return "–" if np.isnan(value) else f"{value:g}"
    return str(value)


def write(path: Path, plan: Row, tables: dict[str, list[Row]]) -> None:
    """JSON, a row a line, numbers to four decimals."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = []
    for name, rows in tables.items():
        short = [{key: round(float(v), 4) if isinstance(v, float) else v for key, v in row.items()} for row in rows]
        lines = ",\n".join(f"  {json.dumps(row)}" for row in short)
        texts.append(f' "{name}": [\n{lines}\n ]')
    head = ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in {**plan, "nominal": 0.95}.items())
    path.write_text("{\n" + head + ",\n" + ",\n".join(texts) + "\n}\n")


def read(path: Path) -> dict[str, list[Row]]:
    """The tables of a result."""
    result = json.loads(path.read_text())
    return {name: result[name] for name in TABLES if name in result}
