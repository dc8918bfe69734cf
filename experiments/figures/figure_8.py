"""Figure 8: kinds of sparse attention against each other and against dense, for one model.

    kinetics demo --out demo && python experiments/figures/figure_8.py
    python experiments/figures/figure_8.py RUN... --model Qwen/Qwen3-8B --long-cot

Illustrates the statement that block top-k, which can be computed, follows oracle top-k (token_topk, whose search is
free by the paper's idealisation) closely, while a sliding window does badly. Within a cost every problem gets the best
N (--long-cot: the best cap on tokens) and KV budget of a kind. Bands: 95 % from redrawing problems. The demo has no run
of the oracle; make them with
    kinetics sample chase-550k --task builtin --limit 96 --n 8 --slots 64 --max-tokens 72 \\
        --attention token_topk:budget=16,dense_layers=none --out demo/chase-550k-oracle16
The page of the paper's authors shows this comparison for 8B on AIME24; the caption of figure 8 was not available.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure
from paper_figures.common import Table, cost_ticks, pools_and_costs, run, spoken, trace_parser, unit, write
from paper_figures.frontiers import Choice, best_of_n, budgets_of, frontier_table, kinds, long_cot

from kinetics_jax.analysis.samples import Pool
from kinetics_jax.errors import UserError
from kinetics_jax.report.figure_style import LIGHT_COLOURS, SMALL, blank, plain, style_for

ORDER = ("dense", "token_topk", "block_topk", "litesys_block_topk", "random_blocks", "sliding_window")
DASHES = ((0, (4, 1.5)), (0, (1, 1)), "-", (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (7, 1.5)))
MARKS = "^DosPv"


def draw(table: Table, *, ylabel: str, heading: str, width: float) -> Figure:
    style = style_for(pd.DataFrame([{"model": "", "parameters": 1, "attention": "dense"}]), dark=False)
    figure = blank(width, max(0.7 * width, 2.8), style)
    axes = figure.add_subplot()
    scale, prefix = unit(table["budget"])
    looks = zip(*map(itertools.cycle, (DASHES, MARKS, LIGHT_COLOURS)), strict=False)
    for kind, (dash, mark, colour) in zip(dict.fromkeys((*ORDER, *table["kind"])), looks, strict=False):
        rows = table[table["kind"] == kind]
        if rows.empty:
            continue
        x = scale * rows["budget"]
        line = {"color": colour, "ls": dash, "lw": 1.6, "marker": mark, "ms": 3.6, "mew": 0, "markevery": 10}
        axes.plot(x, 100 * rows["accuracy"], label=spoken(kind), **line)
        axes.fill_between(x, 100 * rows["low"], 100 * rows["high"], color=colour, alpha=0.12, lw=0)
    axes.set_xlim(0.9 * scale * table["budget"][table["accuracy"] > 0].min(), scale * table["budget"].max())
    axes.set_ylim(-2, 102)
    axes.set(xlabel=f"Cost per problem ({prefix}eFLOPs)", ylabel=ylabel)
    cost_ticks(axes)
    plain(axes, style)
    axes.set_title(heading, fontsize=SMALL + 0.5, loc="left", pad=4)
    figure.legend(
        loc="outside lower center", ncols=3 if width >= 4 else 2, fontsize=SMALL, frameon=False, handlelength=3
    )
    return figure


def script(arguments: argparse.Namespace) -> None:
    pools, costs = pools_and_costs(arguments)
    model = arguments.model or max(pools, key=lambda pool: (_kinds_of(pools, pool.model), pool.parameters)).model
    pools = [pool for pool in pools if pool.model == model]
    if _kinds_of(pools, model) < 2:
        raise UserError(f"figure 8 compares kinds of attention; the runs of model {model!r} have only one")
    splits = (long_cot if arguments.long_cot else best_of_n)(pools, Choice(arguments.in_sample, arguments.fixed), costs)
    kind_of = kinds(splits[0].select)
    groups = {kind: kind_of == kind for kind in dict.fromkeys((*ORDER, *kind_of)) if kind in kind_of}
    table, _ = frontier_table(splits, "eFLOPs", groups, budgets=budgets_of(splits, "eFLOPs"))
    table = table.rename(columns={"group": "kind"})
    ylabel = "Right within the cap (%)" if arguments.long_cot else "Problems solved, pass@N (%)"
    write(arguments, "figure_8", draw(table, ylabel=ylabel, heading=model, width=arguments.width), table)


def _kinds_of(pools: Sequence[Pool], model: str) -> int:
    """How many kinds of attention a model was run with."""
    return len({pool.attention.kind for pool in pools if pool.model == model})


def main(argv: Sequence[str] | None = None) -> None:
    made = trace_parser(__doc__)
    made.add_argument("--model", help="default: the one with the most kinds of attention, the largest of those")
    made.add_argument("--long-cot", action="store_true", help="over the length instead of N")
    run(script, made, argv)


if __name__ == "__main__":
    main()
