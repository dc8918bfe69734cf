"""Figure 1b: what sparse attention adds to the frontier of Best-of-N.

    kinetics demo --out demo && python experiments/figures/figure_1b.py
    python experiments/figures/figure_1b.py RUN... --long-cot --in-sample --convention upstream --hardware b200-fp8

The paper's figure: accuracy over cost on AIME24, sparse (oracle top-k) against dense attention; thin lines are models,
heavy ones what the best model achieves, a marker where the best model changes. Sparse attention gains up to 65 points
there at equal cost, counting what cannot be afforded as 0, and reaches an accuracy of dense attention 10.67 times
cheaper. Here a gain is stated at costs at which both sides afford a whole sample of every problem (--paper-gain: the
paper's own beside it). Every problem gets the best N (--long-cot: the best cap on tokens) and KV budget within a cost,
in every model; all sparse kinds of the runs together, unless --sparse KIND names one (token_topk is the paper's oracle,
whose search costs nothing). Bands and brackets: 95 % intervals from redrawing problems, choices as they are.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from paper_figures.common import (
    Table,
    cost_ticks,
    look_of,
    model_legend,
    pools_and_costs,
    run,
    runs_of_equal,
    spoken,
    trace_parser,
    unit,
    write,
)
from paper_figures.frontiers import Choice, best_of_n, kinds, long_cot
from paper_figures.sparse_gain import KINDS, arrows, gain, gain_flag, sparse_and_dense, sparse_members

from kinetics_jax.report.figure_style import SMALL, Style, blank, handle, plain


def draw(
    table: Table,
    gains: Mapping[str, float],
    style: Style,
    names: str,
    *,
    ylabel: str,
    width: float,
) -> Figure:
    ink = style.theme["ink"]
    figure = blank(width, 0.8 * width, style)
    axes = figure.add_subplot()
    scale, prefix = unit(table["budget"])
    for kind, (mark, dash) in KINDS.items():
        mine = table[table["kind"] == kind]
        for model, rows in mine.groupby("model"):
            axes.plot(
                scale * rows["budget"],
                100 * rows["accuracy"],
                color=style.colours[str(model)],
                ls=dash,
                lw=0.7,
                alpha=0.75,
            )
        best = mine[mine["chosen"]].sort_values(by="budget")
        x, y = scale * best["budget"].to_numpy(), 100 * best["accuracy"].to_numpy()
        axes.fill_between(x, 100 * best["low"], 100 * best["high"], color=ink, alpha=0.09, lw=0, zorder=1)
        for model, start, end in runs_of_equal(best["model"]):
            stop = min(end + 1, len(x))
            axes.plot(x[start:stop], y[start:stop], color=style.colours[model], ls=dash, lw=2.2, zorder=4)
            axes.plot(x[start], y[start], mark, color=style.colours[model], ms=4.5, mew=0, zorder=5)
    cost_ticks(axes)
    axes.set(xlabel=f"Cost per problem ({prefix}eFLOPs)", ylabel=ylabel)
    axes.set_ylim(-2, 102)
    axes.set_xlim(0.9 * scale * table["budget"][table["chosen"]].min(), scale * table["budget"].max())
    arrows(axes, gains, scale)
    plain(axes, style)
    lines = [
        handle(color=ink, ls=dash, marker=mark, ms=4, mew=0, lw=1.8, label="dense" if kind == "dense" else names)
        for kind, (mark, dash) in KINDS.items()
    ]
    axes.legend(handles=lines, fontsize=SMALL, frameon=False, loc="upper left", handlelength=3)
    model_legend(figure, style)
    return figure


def script(arguments: argparse.Namespace) -> None:
    pools, costs = pools_and_costs(arguments)
    splits = (long_cot if arguments.long_cot else best_of_n)(pools, Choice(arguments.in_sample, arguments.fixed), costs)
    sparse = sparse_members(splits, arguments.sparse)
    table, sides = sparse_and_dense(splits, "eFLOPs", sparse)
    gains = gain(np.unique(table["budget"]), sides, unaffordable_as_zero=arguments.paper_gain)
    names = sorted({spoken(kind) for kind in kinds(splits[0].select)[sparse]})
    words = names[0] if len(names) == 1 else f"sparse ({', '.join(names)})"
    ylabel = "Right within the cap (%)" if arguments.long_cot else "Problems solved, pass@N (%)"
    figure = draw(table, gains, look_of(pools), words, ylabel=ylabel, width=arguments.width)
    write(arguments, "figure_1b", figure, {"frontier": table, "gain": pd.DataFrame([gains])})


def main(argv: Sequence[str] | None = None) -> None:
    made = trace_parser(__doc__)
    made.add_argument("--long-cot", action="store_true", help="over the length instead of N")
    made.add_argument("--sparse", metavar="KIND", help="block_topk, token_topk, … (default: all that are not dense)")
    gain_flag(made)
    run(script, made, argv)


if __name__ == "__main__":
    main()
