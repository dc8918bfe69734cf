"""The numbers of docs/results/figures.md, from the tables that the scripts of figures wrote.

    python experiments/figures/headlines.py "weights free=figures" "batch 64=figures-64" "batch that fits=figures-fit"

Each NAME=FOLDER is a folder that figure_1a.py, figure_1b.py (and, into its folder block/, figure_1b.py with block
top-k) and figure_14.py were told to write to with one --batch; where figure_6_laws.csv and figure_7_laws.csv are, the
exponents are kept too. Of 1a the row of the largest ratio is kept, and how many of the accuracies have a ratio whose
interval excludes 1.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from paper_figures.common import Table, run

from kinetics_jax.errors import UserError
from kinetics_jax.files import write_atomic

RESULTS = Path(__file__).parents[1] / "results" / "figure_headlines.json"
DIGITS = 6


def headlines(folder: Path) -> dict[str, Any]:
    """The numbers of one folder, by figure. Raises UserError for a table that is not there."""
    ratio = _table(folder / "figure_1a_ratio.csv")
    best = ratio.loc[ratio["ratio"].idxmax()]
    found: dict[str, Any] = {
        "1a": {
            **_numbers(best),
            "accuracies": len(ratio),
            "excluding_1": int(((ratio["low"] > 1) | (ratio["high"] < 1)).sum()),
        },
        "1b oracle": _gain(folder),
        "1b block top-k": _gain(folder / "block"),
        "14": {
            f"{row['strategy']} {row['law']}": _numbers(row)
            for _, row in _table(folder / "figure_14_gain.csv").iterrows()
        },
    }
    for name in ("6", "7"):
        if (path := folder / f"figure_{name}_laws.csv").exists():
            found[name] = {row["quantity"]: _numbers(row) for _, row in _table(path).dropna().iterrows()}
    return found


def _gain(folder: Path) -> dict[str, Any]:
    frontier = _table(folder / "figure_1b_frontier.csv")
    ends = frontier[frontier["chosen"]].groupby("kind")["accuracy"].max()
    most = {f"most_{kind}": round(float(ends[kind]), DIGITS) for kind in ("sparse", "dense")}
    return {**_numbers(_table(folder / "figure_1b_gain.csv").iloc[0]), **most}


def _numbers(row: Table) -> dict[str, Any]:
    """A row, without what says how it was made and without gaps; six digits."""
    kept = {name: value for name, value in row.items() if name not in ("weights", "quantity", "strategy", "law")}
    return {
        name: value if isinstance(value, str) else float(f"{value:.{DIGITS}g}")
        for name, value in kept.items()
        if isinstance(value, str) or pd.notna(value)
    }


def _table(path: Path) -> Table:
    try:
        return pd.read_csv(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: not there; write it with the script of its figure") from error


def markdown(record: dict[str, Any]) -> str:
    """The table of the page: a column per folder."""

    def ratio(of: dict[str, Any], name: str = "saving") -> str:
        low, high = (of[f"{name}_{side}" if name == "saving" else side] for side in ("low", "high"))
        at = of["saving_accuracy" if name == "saving" else "accuracy"]
        return f"{of[name]:.1f} × [{low:.1f}, {high:.1f}] at {100 * at:.0f} %"

    def points(of: dict[str, Any]) -> str:
        gain, low, high = (round(100 * of[name]) for name in ("gain", "gain_low", "gain_high"))
        ends = " → ".join(f"{100 * of[f'gain_{kind}']:.0f}" for kind in ("dense", "sparse"))
        return f"{gain} [{low}, {high}], {ends} %"

    max_law = "Best-of-N max"
    rows = {
        "1a: what the previous law pays more, at most": lambda of: ratio(of["1a"], "ratio"),
        "1b, oracle: points more at equal cost": lambda of: points(of["1b oracle"]),
        "1b, oracle: cheaper at equal accuracy": lambda of: ratio(of["1b oracle"]),
        "1b, block top-k: points more at equal cost": lambda of: points(of["1b block top-k"]),
        "1b, block top-k: cheaper at equal accuracy": lambda of: ratio(of["1b block top-k"]),
        "14, larger of both: points more at equal cost": lambda of: points(of["14"][max_law]),
        "14, larger of both: cheaper at equal accuracy": lambda of: ratio(of["14"][max_law]),
    }
    lines = [f"| | {' | '.join(record)} |", "|---" * (1 + len(record)) + "|"]
    lines += [f"| {name} | {' | '.join(words(of) for of in record.values())} |" for name, words in rows.items()]
    return "\n".join(lines) + "\n"


def script(arguments: argparse.Namespace) -> None:
    named = dict(each.split("=", 1) for each in arguments.folders if "=" in each)
    if len(named) != len(arguments.folders):
        raise UserError("every folder is named once: NAME=FOLDER")
    record = {name: headlines(Path(folder)) for name, folder in named.items()}
    text = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    write_atomic(arguments.out, text)
    print(text if arguments.json else markdown(record), end="")


def main(argv: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folders", nargs="+", metavar="NAME=FOLDER")
    made.add_argument("--out", type=Path, default=RESULTS, help="(%(default)s)")
    made.add_argument("--json", action="store_true", help="print the numbers, not the page's table")
    run(script, made, argv)


if __name__ == "__main__":
    main()
