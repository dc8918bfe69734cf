"""What the figures' scripts share: flags, reading runs, writing figures, and parts of drawings.

Every script writes `NAME.png` and its numbers, `NAME.csv` (or `NAME_PART.csv` for each of several tables).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_jax.errors import UserError

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from kinetics_jax.analysis.samples import Pool, RunData
    from kinetics_jax.report.figure_style import Style

Table = Any  # a pandas DataFrame; its stubs do not say what indexing one returns
DEMO = Path("demo")
QWEN3 = tuple(f"Qwen/Qwen3-{size}" for size in ("0.6B", "1.7B", "4B", "8B", "14B", "32B"))
WIDTH = 5.0  # inches; legible down to 3.3


def parser(doc: str | None, *, convention: str, hardware: str, runs: str = "") -> argparse.ArgumentParser:
    """The flags of every figure. `runs` says which graded samples are the default; "" if the figure takes none."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if runs:
        samples = "graded samples: run folders, tables (problem, sample, prompt_tokens, tokens, correct, model, "
        samples += f"attention) or the paper's JSONL (default: {runs})"
        made.add_argument("runs", nargs="*", type=Path, metavar="RUN", help=samples)
        made.add_argument("--tokenizer", type=Path, help="tokenizer.json, to count the tokens of the paper's JSONL")
        made.add_argument(
            "--bare-questions",
            action="store_true",
            help="prompts of the paper's JSONL without the 80 tokens around a question, as its published code prices "
            "long chains of thought (with --convention upstream)",
        )
    made.add_argument("--out", type=Path, default=Path("figures"), help="folder of the PNG and the CSV (%(default)s)")
    made.add_argument("--convention", default=convention, help="traffic, paper or upstream (%(default)s)")
    made.add_argument("--hardware", default=hardware, help="whose FLOP/byte ratio prices memory (%(default)s)")
    made.add_argument("--width", type=float, default=WIDTH, help="inches (%(default)s)")
    made.add_argument("--json", action="store_true", help="print the numbers as JSON")
    return made


def run(main: Callable[[argparse.Namespace], None], made: argparse.ArgumentParser, argv: Sequence[str] | None) -> None:
    """Runs a script: prints a user's mistake as one line on standard error and exits with 2; warnings are lines too."""
    arguments = made.parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)
        try:
            main(arguments)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)


def read_runs(arguments: argparse.Namespace) -> list[RunData]:
    """Graded samples in any format, by default those of the demo. Raises UserError if there are none."""
    from kinetics_jax.analysis.readers import read_all

    if arguments.bare_questions and arguments.convention != "upstream":
        raise UserError("--bare-questions is what the published code does: it goes with --convention upstream")
    named = list(arguments.runs) or sorted(path.parent for path in DEMO.glob("*/run.json"))
    if not named:
        raise UserError(f"no runs named and none in {DEMO}/: make them (kinetics demo --out {DEMO}), or name runs")
    return read_all(named, tokenizer=arguments.tokenizer, bare_questions=arguments.bare_questions)


def write(
    arguments: argparse.Namespace, name: str, figure: Figure, tables: pd.DataFrame | Mapping[str, pd.DataFrame]
) -> None:
    """Writes the figure, which says below its edge how costs were counted, and its tables, whose column `weights` says
    whether they hold reads of the weights; prints the tables as JSON with --json, otherwise the names of the files."""
    from kinetics_jax.files import write_atomic
    from kinetics_jax.report.figure_style import SMALL, save_figure

    arguments.out.mkdir(parents=True, exist_ok=True)
    words = weights_words(arguments)
    parts = {
        part: table.assign(weights=words)
        for part, table in (tables if isinstance(tables, Mapping) else {"": tables}).items()
    }
    caption = f"costs: {arguments.convention}, {arguments.hardware}, {words}"
    figure.suptitle(caption, fontsize=SMALL - 1, x=0.01, ha="left", color="#555555")
    save_figure(figure, arguments.out / f"{name}.png")
    _shrink(arguments.out / f"{name}.png")
    written = [f"{name}.png"]
    for part, table in parts.items():
        written.append(f"{name}{'_' if part else ''}{part}.csv")
        write_atomic(arguments.out / written[-1], table.to_csv(index=False))
    if arguments.json:
        records = {part: json.loads(table.to_json(orient="records") or "[]") for part, table in parts.items()}
        print(json.dumps(records if isinstance(tables, Mapping) else records[""], indent=1))
    else:
        print(f"{arguments.out}/: {', '.join(written)}")


def weights_words(arguments: argparse.Namespace) -> str:
    """What the costs hold of the reads of the weights: nothing, as in the paper, or a share of them."""
    batch = getattr(arguments, "batch", None)
    return "weights free" if batch is None else f"weights at batch {batch}"


def _shrink(path: Path) -> None:
    """Rewrites a PNG with a palette, at less than half the size: a figure has few colours."""
    from PIL import Image

    partial = path.with_name(path.name + ".partial")
    with Image.open(path) as image:
        image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3).save(
            partial, format="PNG", optimize=True, dpi=image.info["dpi"]
        )
    os.replace(partial, path)


def panels(count: int, width: float, style: Style, *, height: float = 0.86) -> tuple[Figure, list[Axes]]:
    """A figure of `count` panels, in two columns where it is wide enough; `height` of a panel by its width.

    The last of an odd number is as wide as the figure.
    """
    from kinetics_jax.report.figure_style import blank

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
    from kinetics_jax.report.figure_style import SMALL

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


def look_of(pools: Sequence[Pool]) -> Style:
    """The style of a figure of these pools' models: a colour for each, in order of size."""
    import pandas as pd

    from kinetics_jax.report.figure_style import style_for

    rows = [{"model": pool.model, "parameters": pool.parameters, "attention": "dense"} for pool in pools]
    return style_for(pd.DataFrame(rows), dark=False)


def model_legend(figure: Figure, style: Style) -> None:
    """Adds a legend of the models' colours below the panels."""
    from kinetics_jax.report.figure_style import SMALL, handle

    figure.legend(
        handles=[handle(lw=4, color=colour, label=name.rpartition("/")[2]) for name, colour in style.colours.items()],
        loc="outside lower center",
        ncols=min(len(style.colours), 3),
        fontsize=SMALL,
        frameon=False,
        handlelength=1.2,
    )


def cost_ticks(axes: Axes, which: str = "x") -> None:
    """Makes an axis logarithmic: ticks at 1, 2 and 5 of each decade within two decades, at powers of ten beyond, and at
    round numbers within a factor of 4.
    """
    from matplotlib.ticker import (
        FixedLocator,
        FuncFormatter,
        LogFormatterSciNotation,
        LogLocator,
        MaxNLocator,
        NullFormatter,
    )

    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    low, high = axis.get_view_interval()
    plain_numbers = low > 2e-3 and high < 2e4
    if high < 4 * low:
        axis.set_major_locator(FixedLocator(list(MaxNLocator(5).tick_values(low, high))))
        axis.set_minor_locator(FixedLocator([]))
    else:
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high < 100 * low else (1,)))
    words = FuncFormatter(lambda value, _: f"{value:g}")
    axis.set_major_formatter(words if plain_numbers else LogFormatterSciNotation(10, minor_thresholds=(9, 9)))
    axis.set_minor_formatter(NullFormatter())


def note(axes: Axes, text: str, at: tuple[float, float], offset: tuple[float, float], **how: Any) -> None:
    """Writes text beside a point, `offset` in points, legible over lines."""
    from matplotlib.patheffects import withStroke

    from kinetics_jax.report.figure_style import SMALL

    halo = [withStroke(linewidth=2.5, foreground="white")]
    style = {"fontsize": SMALL, "path_effects": halo, "zorder": 8, **how}
    axes.annotate(text, at, offset, textcoords="offset points", **style).set_in_layout(False)


def title(axes: Axes, text: str) -> None:
    """Sets a panel's title: small, on the left."""
    from kinetics_jax.report.figure_style import SMALL

    axes.set_title(text, fontsize=SMALL + 0.5, loc="left", pad=4)


def trace_parser(doc: str | None, *, convention: str = "traffic", hardware: str = "h100") -> argparse.ArgumentParser:
    """The flags of figures drawn from graded samples."""
    made = parser(doc, convention=convention, hardware=hardware, runs=f"those in {DEMO}/")
    made.add_argument(
        "--in-sample",
        action="store_true",
        help="choose and score on the same samples, as the paper does (optimistic); by default choose on one half of "
        "every problem's samples, score on the other, and vice versa",
    )
    made.add_argument(
        "--fixed",
        action="store_true",
        help="one configuration for all problems, as one could choose without their answers; by default, as in the "
        "paper, the best one for every problem",
    )
    made.add_argument(
        "--batch",
        type=_batch,
        default="none",
        metavar="fit|N|none",
        help="sequences that decode side by side and share every read of the weights: a number, as many as fit the "
        "hardware, or none: weights are free, as the paper counts (%(default)s)",
    )
    return made


def _batch(text: str) -> int | str | None:
    if text == "none":
        return None
    if text == "fit":
        return text
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r:.40} is not fit, none, or a number from 1 up")
    return int(text)


def pools_and_costs(arguments: argparse.Namespace) -> tuple[list[Pool], dict[str, Any]]:
    """The samples that a trace figure is drawn from, pooled by model and attention, and how to count their costs."""
    from kinetics_jax.analysis.samples import pooled

    if arguments.batch is not None and arguments.convention != "traffic":
        raise UserError(f"--batch {arguments.batch}: only the traffic convention knows weights; leave it out")
    return pooled(read_runs(arguments)), {
        "convention": arguments.convention,
        "hardware": arguments.hardware,
        "batch": arguments.batch,
    }


def unit(values: npt.ArrayLike) -> tuple[float, str]:
    """The factor from units of 1e12 to those of the axis, and their prefix, which suits the median."""
    import numpy as np

    positive = np.asarray(values, np.float64)
    middle = float(np.median(positive[positive > 0]))
    for prefix, size in (("Peta-", 1e3), ("Tera-", 1.0), ("Giga-", 1e-3), ("Mega-", 1e-6)):
        if middle >= size:
            return 1 / size, prefix
    return 1e6, "Mega-"


def spoken(kind: str) -> str:
    """A kind of attention in words; token top-k by what it is."""
    from kinetics_jax.report.attention_names import spoken_kind

    return "oracle top-k" if kind == "token_topk" else spoken_kind(kind)


def runs_of_equal(names: Sequence[str]) -> Iterator[tuple[str, int, int]]:
    """(name, first, end) of every run of equal names."""
    start = 0
    for name, members in itertools.groupby(names):
        end = start + len(list(members))
        yield name, start, end
        start = end
