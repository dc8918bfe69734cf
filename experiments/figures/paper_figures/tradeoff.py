"""How many tokens and how large a KV budget are worth their cost as it grows, with power laws: figures 6 and 7."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kinetics_jax.analysis.power_laws import power_law, with_intervals
from kinetics_jax.errors import UserError
from kinetics_jax.report.figure_style import LIGHT_COLOURS, SMALL, plain, style_for
from paper_figures.common import Table, cost_ticks, panels, pools_and_costs, spoken, title, unit, write
from paper_figures.frontiers import Choice, Curve, best_of_n, budgets_of, frontier_table, kinds, long_cot

RESAMPLES = 400
NAMES = {"tokens": "Generated tokens", "N": "Samples of a problem, N", "kv_budget": "KV budget (tokens)"}
SATURATED = 0.98  # of the highest accuracy: beyond, more cost buys nothing and no power law holds


def growing(table: Table) -> np.ndarray:
    """The rows of a frontier to fit: every problem affords a configuration and accuracy still grows; bool [rows]."""
    accuracy = table["accuracy"].to_numpy()
    return np.asarray(table["afforded"] == 1) & (accuracy < SATURATED * accuracy.max())


def power_laws(curve: Curve, where: np.ndarray, *, offset: bool = False, seed: int = 0) -> pd.DataFrame:
    """quantity = scale · costᵉˣᵖᵒⁿᵉⁿᵗ (+ offset), cost in Tera-eFLOPs paid, both means over the problems.

    Columns: `quantity`, `scale`, `exponent` and its 95 % interval `low` … `high` from redrawing problems, choices as
    they are, `offset`; NaN if there are too few different costs, or the quantity does not change. `where`: the
    budgets that count, bool [budgets].
    """
    problems = curve.accuracy.shape[1]
    draws = np.random.default_rng(seed).multinomial(problems, np.full(problems, 1 / problems), size=RESAMPLES)
    weights = np.vstack([np.full(problems, 1 / problems), draws / problems])
    costs = weights @ curve.eflops[where].T  # [1 + resamples, budgets]
    rows = []
    for name in NAMES:
        values = curve.tokens if name == "tokens" else curve.values[name]
        amounts = weights @ values[where].T
        row: dict[str, float] = dict.fromkeys(("scale", "exponent", "low", "high", "offset"), np.nan)
        if where.sum() > 3 and np.ptp(amounts[0]) > 1e-9 * amounts[0].max():
            laws = [power_law(x, y, offset=offset, resamples=1) for x, y in zip(costs, amounts, strict=True)]
            law = with_intervals(laws[0], laws[1:])
            low, high = law.exponent_interval
            row = {"scale": law.scale, "exponent": law.exponent, "low": low, "high": high, "offset": law.offset}
        rows.append({"quantity": name, **row})
    return pd.DataFrame(rows)


def draw(table: Table, laws: Table, shown: Sequence[str], *, heading: str, width: float) -> Figure:
    style = style_for(pd.DataFrame([{"model": "", "parameters": 1, "attention": "dense"}]), dark=False)
    figure, all_axes = panels(len(shown), width, style, height=0.8)
    scale, prefix = unit(table["eflops"])
    used = table[table["fitted"]]
    for axes, name, letter, colour, mark in zip(all_axes, shown, "abc", LIGHT_COLOURS, "os^", strict=False):
        axes.plot(scale * table["eflops"], table[name], mark, color=colour, ms=2.4, mew=0, alpha=0.35)
        axes.plot(scale * used["eflops"], used[name], mark, color=colour, ms=3.2, mew=0)
        law = laws[laws["quantity"] == name].iloc[0]
        if not np.isnan(law["exponent"]):
            x = used["eflops"].to_numpy()
            line = {"color": style.theme["ink"], "lw": 1.1, "ls": (0, (3, 2))}
            axes.plot(scale * x, law["scale"] * x ** law["exponent"] + law["offset"], **line)
            beside = f" {'−+'[law['offset'] > 0]} {abs(law['offset']):.3g}" if law["offset"] else ""
            text = f"∝ cost$^{{{law['exponent']:.2f}}}${beside}  [{law['low']:.2f}, {law['high']:.2f}]"
            axes.text(0.04, 0.95, text, transform=axes.transAxes, fontsize=SMALL, va="top")
        axes.set(yscale="log", xlabel=f"Cost per problem ({prefix}eFLOPs)", ylabel=NAMES[name])
        cost_ticks(axes)
        cost_ticks(axes, "y")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.15)  # room for the law
        plain(axes, style)
        title(axes, f"({letter}) {heading}" if letter == "a" else f"({letter})")
    return figure


def script(arguments: argparse.Namespace, name: str, *, best_of: bool) -> None:
    pools, costs = pools_and_costs(arguments)
    mine = [pool for pool in pools if pool.attention.kind == arguments.sparse]
    if not mine:
        raise UserError(f"no run of {arguments.sparse} among those given, which are {_listed(pools)}")
    model = arguments.model or max(mine, key=lambda pool: pool.parameters).model
    mine = [pool for pool in mine if pool.model == model]
    if len(mine) < 2:
        raise UserError(f"{len(mine)} run of {model!r} with {arguments.sparse}: several budgets are needed")
    splits = (best_of_n if best_of else long_cot)(mine, Choice(arguments.in_sample, arguments.fixed), costs)
    members = kinds(splits[0].select) == arguments.sparse
    budgets = budgets_of(splits, "eFLOPs", 48)
    table, curves = frontier_table(splits, "eFLOPs", {model: members}, budgets=budgets)
    curve = curves[model]
    table = table.assign(afforded=np.mean(~np.isnan(curve.values["N"]), axis=1)).drop(columns="chosen")
    table = table.rename(columns={"group": "model"})
    table = table.assign(fitted=growing(table))
    laws = power_laws(curve, table["fitted"].to_numpy(), offset=arguments.offset)
    shown = ("tokens", "kv_budget", "N") if best_of else ("tokens", "kv_budget")
    kept: Table = table[table["afforded"] == 1]
    figure = draw(kept, laws, shown, heading=f"{model}, {spoken(arguments.sparse)}", width=arguments.width)
    tables: Mapping[str, pd.DataFrame] = {"frontier": table, "laws": laws}
    write(arguments, name, figure, tables)


def _listed(pools: Sequence[object]) -> str:
    return ", ".join(map(str, pools))
