"""The paper's own AIME24 curves of Long-CoT, and, beside them, those of traces.

    python experiments/figures/published_curves.py CURVES.csv
    python experiments/figures/published_curves.py CURVES.csv TRACES/AIME24 --tokenizer tokenizer.json

CURVES.csv holds the curves of the paper's figure (model, attention, tera_eflops, accuracy), read from the vector
graphic AIME24-topk-genlen.pdf of its repository: six sizes of Qwen3, dense attention and oracle top-k, 100 costs each.
This package's own envelope goes over them: heavy lines are the best model at every cost. Stated are the largest gap at
equal cost, in the paper's way (what cannot be afforded counts 0 in these curves), and the saving at dense attention's
best accuracy, which is that of the last cost drawn.

With traces in the paper's format, their curves by the published rule (best length and budget for every problem, chosen
and scored on the same samples, costs by the upstream convention with bare questions) are drawn beside, and how far they
are from the published ones is printed, the farthest first. Cut texts count as graded where `kinetics grade TRACES
--caps` has graded them; elsewhere an answer counts only where it ends within the cap, which a warning says.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from paper_figures.common import Table, cost_ticks, model_legend, note, panels, parser, run, runs_of_equal, title, write
from paper_figures.published import (
    CAPS,
    KINDS,
    TERA_PER_SECOND,
    curves_of_traces,
    deviations,
    envelopes,
    headline,
    points_of,
    read_curves,
    switches,
)

from kinetics_jax.analysis.readers import read_all
from kinetics_jax.analysis.samples import Pool, pooled
from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import UserError
from kinetics_jax.files import write_atomic
from kinetics_jax.report.figure_style import SMALL, Style, handle, plain, style_for

LOOKS = {"oracle_topk": ("oracle top-k", "o", "-"), "dense": ("dense", "^", (0, (4, 1.5)))}  # name, marker, dashes


def draw(published: Table, ours: Table | None, numbers: Mapping[str, float], *, width: float) -> Figure:
    sizes = sorted(published["model"].unique(), key=lambda model: ModelConfig.named(model).active_parameters)
    rows = [{"model": size, "parameters": i, "attention": "dense"} for i, size in enumerate(sizes)]
    style = style_for(pd.DataFrame(rows), dark=False)
    count = 1 if ours is None else 2
    figure, axes = panels(count, width, style, height=0.8 if count == 1 or width < 4.5 else 1.05)
    _curves(axes[0], published, style)
    _arrows(axes[0], numbers)
    title(axes[0], "AIME24, Long-CoT, published" if ours is None else "(a) published")
    if ours is not None:
        _curves(axes[1], ours, style)
        axes[1].set_xlim(axes[0].get_xlim())
        title(axes[1], "(b) from the traces given")
    model_legend(figure, style)
    return figure


def _curves(axes: Axes, curves: Table, style: Style) -> None:
    best = envelopes(curves)
    for kind, (_, mark, dash) in LOOKS.items():
        mine: Table = curves[curves["attention"] == kind]
        for model, rows in mine.groupby("model"):
            x = rows["tera_eflops"] / TERA_PER_SECOND
            axes.plot(x, 100 * rows["accuracy"], color=style.colours[str(model)], ls=dash, lw=0.7, alpha=0.75)
        top: Table = best[best["attention"] == kind]
        x, y = (top["tera_eflops"] / TERA_PER_SECOND).to_numpy(), 100 * top["accuracy"].to_numpy()
        x, y = np.append(x, mine["tera_eflops"].max() / TERA_PER_SECOND), np.append(y, y[-1])
        for model, start, end in runs_of_equal(top["model"]):
            axes.plot(x[start : end + 1], y[start : end + 1], color=style.colours[model], ls=dash, lw=2.2, zorder=4)
            axes.plot(x[start], y[start], mark, color=style.colours[model], ms=4.5, mew=0, zorder=5)
    axes.set(xlabel="Cost per problem (B200-seconds)", ylabel="Right within the cap (%)")
    axes.set_ylim(-2, 102)
    cost_ticks(axes)
    plain(axes, style)
    ink = style.theme["ink"]
    lines = [
        handle(color=ink, ls=dash, marker=mark, ms=4, mew=0, lw=1.8, label=name) for name, mark, dash in LOOKS.values()
    ]
    axes.legend(handles=lines, fontsize=SMALL, frameon=False, loc="upper left", handlelength=3)


def _arrows(axes: Axes, numbers: Mapping[str, float]) -> None:
    arrow = {"arrowstyle": "<->", "color": "#222222", "lw": 1.0, "shrinkA": 0, "shrinkB": 0}
    x = numbers["paper_gain_b200_seconds"]
    ends = [100 * numbers[f"paper_gain_{kind}"] for kind in ("dense", "sparse")]
    axes.annotate("", (x, ends[0]), (x, ends[1]), arrowprops=arrow, zorder=6)
    note(axes, f"+{100 * numbers['paper_gain']:.1f} points", (x, sum(ends) / 2), (4, 0), va="center")
    if "saving_at_dense_best" in numbers:
        y = 100 * numbers["dense_best"]
        start, stop = (numbers[f"dense_best_{kind}_b200_seconds"] for kind in ("oracle_topk", "dense"))
        axes.annotate("", (start, y), (stop, y), arrowprops=arrow, zorder=6)
        note(axes, f"{numbers['saving_at_dense_best']:.1f}×", (np.sqrt(start * stop), y), (0, 3), ha="center")


def script(arguments: argparse.Namespace) -> None:
    if arguments.smooth < 1 or arguments.smooth % 2 == 0:
        raise UserError(f"--smooth {arguments.smooth}: an odd number of costs, 1 for none")
    published = read_curves(arguments.curves)
    numbers = headline(published)
    tables: dict[str, pd.DataFrame] = {
        "numbers": pd.DataFrame([numbers]),
        "switches": switches(published),
        "curves": published.assign(source="published"),
    }
    ours = None
    if arguments.runs:
        pools = pooled(read_all(arguments.runs, tokenizer=arguments.tokenizer, bare_questions=True))
        _tell_of_rule(pools)
        ours = curves_of_traces(pools, points_of(published), smooth=arguments.smooth)
        tables["deviations"] = deviations(ours, published)
        tables["curves"] = pd.concat([tables["curves"], ours.assign(source="traces")], ignore_index=True)
    if arguments.results:
        record = {"numbers": numbers, "switches": json.loads(tables["switches"].to_json(orient="records") or "[]")}
        write_atomic(arguments.results, json.dumps(record, indent=1) + "\n")
    if not arguments.json:
        print("\n".join(f"{name} {value:.6g}" for name, value in numbers.items()))
        if ours is not None:
            print(tables["deviations"].to_string(index=False))
    write(arguments, "published_curves", draw(published, ours, numbers, width=arguments.width), tables)


def _tell_of_rule(pools: Sequence[Pool]) -> None:
    drawn = [pool for pool in pools if pool.attention.kind in KINDS.values()]
    ungraded = [pool for pool in drawn if any(not p.knows(cap) for p in pool.problems.values() for cap in CAPS)]
    if ungraded:
        warnings.warn(
            f"{len(ungraded)} of {len(drawn)} configurations (such as {ungraded[0]}): cut texts were not graded at the "
            "published lengths, so an answer counts only where it ends within the cap; grade them (kinetics grade "
            f"TRACES --caps {CAPS[0]} {CAPS[1]} … {CAPS[-1]})",
            stacklevel=2,
        )


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__, convention="upstream", hardware="b200-fp8")
    made.add_argument("curves", type=Path, help="table of the published curves")
    made.add_argument(
        "runs", nargs="*", type=Path, metavar="TRACES", help="files of the paper's format, or their folders"
    )
    made.add_argument("--tokenizer", type=Path, help="tokenizer.json that counts the tokens of the traces")
    made.add_argument(
        "--smooth", type=int, default=3, help="costs that a curve of traces is averaged over (%(default)s)"
    )
    made.add_argument("--results", type=Path, help="write the numbers and switches to this JSON file")
    run(script, made, argv)


if __name__ == "__main__":
    main()
