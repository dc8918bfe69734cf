"""The frontiers of every model under both laws, and the N or length that the best model uses: figures 4 and 5."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kinetics_jax.errors import UserError
from kinetics_jax.report.figure_style import Style, plain
from paper_figures.common import (
    Table,
    cost_ticks,
    look_of,
    model_legend,
    panels,
    pools_and_costs,
    runs_of_equal,
    title,
    unit,
    write,
)
from paper_figures.frontiers import Choice, Split, best_of_n, budgets_of, by_model, frontier_table, is_dense, long_cot

LAWS = {"FLOPs": "previous law", "eFLOPs": "Kinetics law"}


def table_of(splits: Sequence[Split], attention: str) -> pd.DataFrame:
    """Every model's frontier under both laws (`frontiers.frontier_table`, `group` being the `model`)."""
    dense = is_dense(splits[0].select)
    members = dense if attention == "dense" else ~dense
    if not members.any():
        raise UserError(f"no run of {attention} attention among those given")
    groups = by_model(splits[0].select, members)
    tables = [frontier_table(splits, law, groups, budgets=budgets_of(splits, law))[0] for law in LAWS]
    return pd.concat(tables, ignore_index=True).rename(columns={"group": "model"})


def draw(table: Table, style: Style, *, asked: str, labels: tuple[str, str], width: float) -> Figure:
    """(a, c) accuracy over cost; (b, d) the column `asked` of the best model over cost. `labels`: of the ordinates."""
    figure, axes = panels(4, width, style, height=0.8)
    for i, (law, name) in enumerate(LAWS.items()):
        rows = table[table["law"] == law]
        scale, prefix = unit(rows["budget"])
        left, right = axes[2 * i : 2 * i + 2]
        _accuracies(left, rows, scale, style)
        chosen = rows[rows["chosen"]].sort_values(by="budget")
        for model, start, end in runs_of_equal(chosen["model"]):
            some = chosen.iloc[start:end]
            right.plot(scale * some["budget"], some[asked], "o", color=style.colours[model], ms=2.6, mew=0)
        for each, label, letter in ((left, labels[0], "ac"[i]), (right, labels[1], "bd"[i])):
            each.set_xlim(0.9 * scale * chosen["budget"].min(), scale * rows["budget"].max())
            each.set(xlabel=f"Cost per problem ({prefix}{law})", ylabel=label)
            cost_ticks(each)
            plain(each, style)
            title(each, f"({letter}) {name}")
        left.set_ylim(-8, 102)
        right.set_ylim(0, None)
    model_legend(figure, style)
    return figure


def _accuracies(axes: Axes, rows: Table, scale: float, style: Style) -> None:
    """A line per model and a band of its interval; below, a bar in the colour of the best one."""
    for (model, mine), mark in zip(rows.groupby("model", sort=False), "osD^vPXp*", strict=False):
        colour = style.colours[str(model)]
        x = scale * mine["budget"]
        axes.plot(x, 100 * mine["accuracy"], color=colour, lw=1.2, marker=mark, ms=2.8, mew=0, markevery=12)
        axes.fill_between(x, 100 * mine["low"], 100 * mine["high"], color=colour, alpha=0.1, lw=0)
    chosen = rows[rows["chosen"]].sort_values(by="budget")
    at = scale * chosen["budget"].to_numpy()
    for model, start, end in runs_of_equal(chosen["model"]):
        stop = at[end] if end < len(at) else scale * rows["budget"].max()
        axes.axvspan(at[start], stop, ymax=0.05, color=style.colours[model], lw=0)


def script(arguments: argparse.Namespace, name: str, *, best_of: bool) -> None:
    pools, costs = pools_and_costs(arguments)
    splits = (best_of_n if best_of else long_cot)(pools, Choice(arguments.in_sample, arguments.fixed), costs)
    table = table_of(splits, arguments.attention)
    asked, labels = ("N", ("Solved, pass@N (%)", "Samples of a problem, N"))
    if not best_of:
        asked, labels = ("tokens", ("Right within cap (%)", "Generated tokens"))
    figure = draw(table, look_of(pools), asked=asked, labels=labels, width=arguments.width)
    write(arguments, name, figure, table)
