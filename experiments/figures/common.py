"""What the figures' scripts share: flags, the runs they read, and how a figure is written.

Every script writes `NAME.png` and its numbers, `NAME.csv` (or `NAME_PART.csv` for each of several tables).
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kinetics_jax.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kinetics_jax.economics.samples import RunData
    from kinetics_jax.figure_style import Look

DEMO = Path("demo")
QWEN3 = tuple(f"Qwen/Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B"))
WIDTH = 5.0  # inches; legible down to 3.3


def parser(doc: str | None, *, convention: str, hardware: str, runs: str = "") -> argparse.ArgumentParser:
    """The flags of every figure. `runs`: which graded samples it is drawn from when none are named; "" for none."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if runs:
        made.add_argument("runs", nargs="*", type=Path, metavar="RUN", help=f"graded samples (default: {runs})")
    made.add_argument("--out", type=Path, default=Path("figures"), help="folder of the PNG and the CSV (%(default)s)")
    made.add_argument("--convention", default=convention, help="traffic, paper or upstream (%(default)s)")
    made.add_argument("--hardware", default=hardware, help="whose FLOP/byte ratio prices memory (%(default)s)")
    made.add_argument("--width", type=float, default=WIDTH, help="inches (%(default)s)")
    made.add_argument("--json", action="store_true", help="print the numbers as JSON")
    return made


def run(main: Callable[[argparse.Namespace], None], made: argparse.ArgumentParser, argv: Sequence[str] | None) -> None:
    """Calls a script; a user's mistake is one line on standard error and exit code 2, warnings are lines too."""
    arguments = made.parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        try:
            main(arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


def read_runs(paths: Sequence[Path]) -> list[RunData]:
    """Graded samples, each run's; without paths those of the demo. Raises UserError when there are none."""
    from kinetics_jax.economics.samples import run_data
    from kinetics_jax.traces import read_run

    found = list(paths) or sorted(path.parent for path in DEMO.glob("*/run.json"))
    if not found:
        raise UserError(f"no runs named and none in {DEMO}/: make them (kinetics demo --out {DEMO}), or name runs")
    return [run_data(read_run(path)) for path in found]


def write(
    arguments: argparse.Namespace, name: str, figure: Figure, tables: pd.DataFrame | Mapping[str, pd.DataFrame]
) -> None:
    """Writes the figure and its tables; prints the tables as JSON when asked, otherwise what was written."""
    from kinetics_jax.figure_style import save
    from kinetics_jax.traces import write_whole

    arguments.out.mkdir(parents=True, exist_ok=True)
    parts = tables if isinstance(tables, Mapping) else {"": tables}
    save(figure, arguments.out / f"{name}.png")
    written = [f"{name}.png"]
    for part, table in parts.items():
        written.append(f"{name}{'_' if part else ''}{part}.csv")
        write_whole(arguments.out / written[-1], table.to_csv(index=False))
    if arguments.json:
        found = {part: json.loads(table.to_json(orient="records")) for part, table in parts.items()}
        print(json.dumps(found if isinstance(tables, Mapping) else found[""], indent=1))
    else:
        print(f"{arguments.out}/: {', '.join(written)}")


def panels(count: int, width: float, style: Look, *, height: float = 0.86) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, in two columns where it is wide enough; `height` of a panel by its width.

    The last of an odd number is as wide as the figure.
    """
    from kinetics_jax.figure_style import blank

    columns = 2 if width >= 4.5 and count > 1 else 1
    rows = -(-count // columns)
    figure = blank(width, rows * height * width / columns, style)
    grid = figure.add_gridspec(rows, columns)
    places = [grid[i // columns, i % columns] for i in range(count)]
    if count % columns:
        places[-1] = grid[rows - 1, :]
    return figure, [figure.add_subplot(place) for place in places]


def label_ends(
    axes: Axes, ends: Mapping[str, tuple[float, float]], colours: Mapping[str, str], *, gap: float = 8.5
) -> None:
    """Names lines at their right ends, in their colours, moved apart to `gap` points where they would overlap.

    `ends` holds the last (x, y) of each line, in data coordinates; call it when the axes' limits are set.
    """
    from kinetics_jax.figure_style import SMALL

    figure = axes.figure
    points = 72 / figure.dpi
    heights = {name: float(axes.transData.transform(end)[1]) * points for name, end in ends.items()}
    placed = dict(heights)
    names = sorted(heights, key=lambda name: heights[name])
    for _ in range(200):  # push neighbours apart by halves until all are clear
        clear = True
        for lower, upper in itertools.pairwise(names):
            overlap = gap - (placed[upper] - placed[lower])
            if overlap > 0.01:
                placed[lower] -= overlap / 2
                placed[upper] += overlap / 2
                clear = False
        if clear:
            break
    for name, end in ends.items():
        axes.annotate(
            name.replace("$", r"\$"),
            end,
            xytext=(4, placed[name] - heights[name]),
            textcoords="offset points",
            color=colours[name],
            fontsize=SMALL,
            va="center",
            annotation_clip=False,
        )


def title(axes: Axes, text: str) -> None:
    """A panel's title: small, on the left."""
    from kinetics_jax.figure_style import SMALL

    axes.set_title(text, fontsize=SMALL + 0.5, loc="left", pad=4)
