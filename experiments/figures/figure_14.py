"""Figure 14: does the message depend on adding computation and memory up? Sparse against dense under both cost models.

    kinetics demo --out demo && python experiments/figures/figure_14.py
    python experiments/figures/figure_14.py RUN... --in-sample --convention upstream --hardware b200-fp8

The ablation of the paper: eFLOPs as the sum of computation and memory (equation 4), and as the larger of the two, as if
they overlapped in full (a roofline); there sparse attention still gains 52.8 points or 15.71 times (Best-of-N), 69.4
points or 19.64 times (Long-CoT). As figure 1b, what the best model achieves: (a, b) over N, (c, d) over the cap on
tokens. Gains are stated as in figure 1b. Costs are means over the samples, and of two means the larger is taken. Bands
and brackets: 95 % from redrawing problems. The caption was not available.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from paper_figures.common import Table, cost_ticks, panels, pools_and_costs, run, title, trace_parser, unit, write
from paper_figures.frontiers import Choice, best_of_n, long_cot
from paper_figures.sparse_gain import KINDS, arrows, gain, gain_flag, sparse_and_dense, sparse_members

from kinetics_jax.report.figure_style import LIGHT_COLOURS, SMALL, plain, style_for

STRATEGIES = {"Best-of-N": best_of_n, "Long-CoT": long_cot}
LAWS = {"eFLOPs": "sum of both", "max": "larger of both"}


def draw(table: Table, gains: Table, *, width: float) -> Figure:
    style = style_for(pd.DataFrame([{"model": "", "parameters": 1, "attention": "dense"}]), dark=False)
    figure, all_axes = panels(4, width, style, height=0.8)
    places = [(strategy, law) for strategy in STRATEGIES for law in LAWS]
    for axes, (strategy, law), letter in zip(all_axes, places, "abcd", strict=True):
        rows = table[(table["strategy"] == strategy) & (table["law"] == law)]
        scale, prefix = unit(rows["budget"])
        for (kind, (mark, dash)), colour in zip(KINDS.items(), LIGHT_COLOURS, strict=False):
            mine = rows[(rows["kind"] == kind) & rows["chosen"]].sort_values(by="budget")
            x = scale * mine["budget"]
            line = {"color": colour, "ls": dash, "marker": mark, "ms": 3.2, "mew": 0, "lw": 1.5, "markevery": 12}
            axes.plot(x, 100 * mine["accuracy"], label=kind, **line)
            axes.fill_between(x, 100 * mine["low"], 100 * mine["high"], color=colour, alpha=0.13, lw=0)
        axes.set_xlim(0.9 * scale * rows["budget"][rows["accuracy"] > 0].min(), scale * rows["budget"].max())
        axes.set_ylim(-2, 102)
        ylabel = "Solved, pass@N (%)" if strategy == "Best-of-N" else "Right within cap (%)"
        axes.set(xlabel=f"Cost per problem ({prefix}eFLOPs)", ylabel=ylabel)
        cost_ticks(axes)
        gain_here = gains[(gains["strategy"] == strategy) & (gains["law"] == law)].iloc[0].to_dict()
        arrows(axes, gain_here, scale)
        plain(axes, style)
        title(axes, f"({letter}) {strategy}, {LAWS[law]}")
    all_axes[0].legend(fontsize=SMALL, frameon=False, loc="lower right", handlelength=3)
    return figure


def script(arguments: argparse.Namespace) -> None:
    pools, costs = pools_and_costs(arguments)
    tables, gains = [], []
    for strategy, make in STRATEGIES.items():
        splits = make(pools, Choice(arguments.in_sample, arguments.fixed), costs)
        for law in LAWS:
            table, sides = sparse_and_dense(splits, law, sparse_members(splits, arguments.sparse))
            tables.append(table.assign(strategy=strategy))
            gains_here = gain(np.unique(table["budget"]), sides, unaffordable_as_zero=arguments.paper_gain)
            gains.append({"strategy": strategy, "law": law, **gains_here})
    table, all_gains = pd.concat(tables, ignore_index=True), pd.DataFrame(gains)
    write(arguments, "figure_14", draw(table, all_gains, width=arguments.width), {"frontier": table, "gain": all_gains})


def main(argv: Sequence[str] | None = None) -> None:
    made = trace_parser(__doc__)
    made.add_argument("--sparse", metavar="KIND", help="block_topk, token_topk, … (default: all that are not dense)")
    gain_flag(made)
    run(script, made, argv)


if __name__ == "__main__":
    main()
