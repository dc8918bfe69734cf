"""Figure 1a: what accuracy costs when the model is chosen by FLOPs alone, and when it is chosen by eFLOPs (Long-CoT).

    kinetics demo --out demo && python experiments/figures/figure_1a.py
    python experiments/figures/figure_1a.py RUN... --in-sample --convention upstream --hardware b200-fp8

The paper's figure compares the Pareto frontiers that the previous scaling law (FLOPs) and the Kinetics law (FLOPs and
memory) lead to, on AIME24 with Qwen3, and shows below it which model each chooses for an accuracy; there the previous
law pays up to 3 times as much at equal accuracy. Here: dense attention only, unless --attention sparse or all. Within a
budget every problem gets the best cap on generated tokens (Algorithm 2; --best-of-n: the best N, Algorithm 1) in every
model; the model with the best mean accuracy is chosen. What is paid is always eFLOPs. Thin lines are 95 % intervals of
the accuracy from redrawing problems. Shown is the largest ratio at equal accuracy, from 10 % up, with its interval
(which does not account for its being the largest).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from paper_figures.common import (
    Table,
    cost_ticks,
    look_of,
    model_legend,
    note,
    pools_and_costs,
    run,
    runs_of_equal,
    trace_parser,
    unit,
    write,
)
from paper_figures.frontiers import (
    Choice,
    Curve,
    Split,
    best_of_n,
    budgets_of,
    by_model,
    frontier_table,
    is_dense,
    long_cot,
)

from kinetics_jax.errors import UserError
from kinetics_jax.report.figure_style import SMALL, Style, blank, handle, plain

LAWS = {
    "FLOPs": ("previous law (FLOPs)", (0, (4, 1.5)), "^"),
    "eFLOPs": ("Kinetics law (eFLOPs)", "-", "s"),
}  # name, dashes, marker
RESAMPLES = 1000
COUNT = 192  # budgets
EVERY = 10  # budgets from one interval drawn to the next


def frontiers(splits: Sequence[Split], members: np.ndarray) -> tuple[pd.DataFrame, dict[str, dict[str, Curve]]]:
    """The chosen rows under both laws, and every model's curve per law."""
    tables: list[Table] = []
    curves = {}
    for law in LAWS:
        groups = by_model(splits[0].select, members)
        table: Table
        table, curves[law] = frontier_table(splits, law, groups, budgets=budgets_of(splits, law, COUNT))
        tables.append(table[table["chosen"]].sort_values(by="budget"))
    table = pd.concat(tables, ignore_index=True)
    return table.rename(columns={"group": "model"}).drop(columns="chosen"), curves


def dearer(curves: Mapping[str, Mapping[str, Curve]], *, seed: int = 0) -> pd.DataFrame:
    """By what factor the previous law pays more at equal accuracy, and the model each law reaches it with.

    Columns: `accuracy`; `ratio` of the eFLOPs paid, with its 95 % interval `low` … `high`; `previous` and `kinetics`,
    the models; `larger`, the share of redraws in which the Kinetics law takes the larger of two different models. What
    an accuracy costs is the least eFLOPs that a law's frontier reaches it with. Problems are redrawn for both laws at
    once, and the best model at every budget is chosen anew. A row per accuracy that both laws reach, in hundredths
    from a tenth on. Models are in order of size in `curves`.
    """
    names = list(curves["FLOPs"])
    problems = curves["FLOPs"][names[0]].accuracy.shape[1]
    levels = np.arange(0.1, 1, 0.01)
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(problems, np.full(problems, 1 / problems), size=RESAMPLES) / problems
    cost, model = (np.empty((len(LAWS), 1 + RESAMPLES, len(levels))) for _ in range(2))
    for law, found in enumerate(curves.values()):
        stacked = {
            field: np.stack([getattr(curve, field) for curve in found.values()])
            for field in ("accuracy", "flops", "eflops")
        }
        for draw, weights in enumerate([np.full(problems, 1 / problems), *draws]):
            accuracy, flops, eflops = (values @ weights for values in stacked.values())  # [models, budgets]
            counted = eflops if law else flops
            best = np.argmax(accuracy - 1e-9 * counted / counted.max(), axis=0)  # the cheapest of equals
            at = np.arange(len(best))
            reached = accuracy[best, at] >= levels[:, None] - 1e-9
            paid = np.where(reached, eflops[best, at], np.inf)
            cost[law, draw] = paid.min(axis=1)
            model[law, draw] = best[paid.argmin(axis=1)]
    with np.errstate(invalid="ignore"):
        ratios = cost[0] / cost[1]
    known = np.isfinite(ratios[0])
    model, ratios = model[:, :, known].astype(int), np.where(np.isfinite(ratios), ratios, np.nan)[:, known]
    low, high = np.nanquantile(ratios[1:], [0.025, 0.975], axis=0)
    return pd.DataFrame(
        {"accuracy": levels[known].round(2), "ratio": ratios[0], "low": low, "high": high}
        | {name: [names[m] for m in model[law, 0]] for law, name in enumerate(("previous", "kinetics"))}
        | {"larger": np.mean(model[1, 1:] > model[0, 1:], axis=0)}
    )


def draw(table: Table, ratios: Table, style: Style, *, width: float) -> Figure:
    figure = blank(width, 0.95 * width, style)
    axes, strips = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    scale, prefix = unit(table["eflops"])
    for law, (_, dash, mark) in LAWS.items():
        rows = table[table["law"] == law]
        x, y = 100 * rows["accuracy"].to_numpy(), scale * rows["eflops"].to_numpy()
        for model, start, end in runs_of_equal(rows["model"]):
            stop = end if law == "FLOPs" else end + 1  # where the previous law changes models, it jumps
            axes.plot(x[start:stop], y[start:stop], color=style.colours[model], ls=dash, lw=1.8)
            axes.plot(x[start], y[start], mark, color=style.colours[model], ms=4.5, mew=0)
            low, high = (100 * rows[side].to_numpy()[start:end:EVERY] for side in ("low", "high"))
            axes.hlines(
                y[start:end:EVERY], low, high, color=style.colours[model], lw=0.8, alpha=0.55, ls=dash, zorder=1
            )
    cost_ticks(axes, "y")
    axes.set_ylabel(f"Paid per problem ({prefix}eFLOPs)")
    if ratios["ratio"].max() > 1.05:  # no arrow between lines that coincide
        best = ratios.loc[ratios["ratio"].idxmax()]
        reached = (table["law"] == "eFLOPs") & (table["accuracy"] >= best["accuracy"] - 1e-12)
        x, y = 100 * best["accuracy"], scale * table["eflops"][reached].min()
        arrow = {"arrowstyle": "<->", "color": style.theme["ink"], "lw": 1.1, "shrinkA": 0, "shrinkB": 0}
        axes.annotate("", (x, y), (x, y * best["ratio"]), arrowprops=arrow, zorder=6)
        note(axes, f"{best['ratio']:.1f}× [{best['low']:.1f}, {best['high']:.1f}]", (x, y * best["ratio"]), (0, 5))
    lines = [
        handle(color=style.theme["ink"], ls=dash, marker=mark, ms=4, mew=0, lw=1.6, label=name)
        for name, dash, mark in LAWS.values()
    ]
    axes.legend(handles=lines, fontsize=SMALL, frameon=False, loc="upper left", handlelength=3)
    for height, law in ((1, "FLOPs"), (0, "eFLOPs")):
        _strip(strips, table[table["law"] == law], height, style)
    strips.set_yticks([1, 0], ["previous", "Kinetics"])
    strips.set_xlabel("Problems solved (%)")
    strips.set_ylim(-0.55, 1.75)
    for each in (axes, strips):
        plain(each, style)
    strips.grid(visible=False)
    strips.spines["left"].set_visible(False)
    strips.tick_params(axis="y", length=0)
    model_legend(figure, style)
    return figure


def _strip(axes: Axes, rows: Table, height: float, style: Style) -> None:
    """Which model a law chooses for an accuracy: a bar from what the models before reach to what this one does."""
    reached = 0.0
    for model, start, end in runs_of_equal(rows["model"]):
        last = 100 * rows["accuracy"].iloc[start:end].max()
        if last > reached:
            bar = {"height": 0.62, "color": style.colours[model], "edgecolor": "white", "lw": 0.8}
            axes.barh(height, last - reached, left=reached, **bar)
            reached = last


def script(arguments: argparse.Namespace) -> None:
    pools, costs = pools_and_costs(arguments)
    make = best_of_n if arguments.best_of_n else long_cot
    splits = make(pools, Choice(arguments.in_sample, arguments.fixed), costs)
    dense = is_dense(splits[0].select)
    members = {"dense": dense, "sparse": ~dense, "all": np.ones(len(dense), bool)}[arguments.attention]
    if not members.any():
        raise UserError(f"no run of {arguments.attention} attention among those given")
    table, curves = frontiers(splits, members)
    ratios = dearer(curves)
    figure = draw(table, ratios, look_of(pools), width=arguments.width)
    write(arguments, "figure_1a", figure, {"frontier": table, "ratio": ratios})


def main(argv: Sequence[str] | None = None) -> None:
    made = trace_parser(__doc__)
    made.add_argument("--best-of-n", action="store_true", help="over N instead of the length")
    made.add_argument("--attention", choices=("dense", "sparse", "all"), default="dense", help="(%(default)s)")
    run(script, made, argv)


if __name__ == "__main__":
    main()
