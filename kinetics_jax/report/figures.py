"""Figures of the frontier and of the ablations, for a light or a dark background.

All take the table they draw, `dark` and a `width` in inches (3.3 to 5 are legible), and return a matplotlib Figure that
no global state refers to. Intervals are the table's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from kinetics_jax.analysis.frontier import weights_in
from kinetics_jax.analysis.rule_names import AXES, rule_of
from kinetics_jax.costs.batching import weight_words
from kinetics_jax.report.attention_names import spoken_kind
from kinetics_jax.report.figure_style import (
    DARK_COLOURS,
    LIGHT_COLOURS,
    MARKERS,
    SMALL,
    Style,
    blank,
    handle,
    legend,
    panel,
    style_for,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def frontier_figure(table: pd.DataFrame, *, dark: bool = False, width: float = 5.0) -> Figure:
    """Accuracy against cost, or tokens; `table` as made by `analysis.frontier.cost_frontier`, or by
    `analysis.token_frontier.token_frontier`.

    One point per row with its interval; what is on the frontier is joined in grey by steps: the best accuracy that a
    cost buys.
    """
    style = style_for(table, dark=dark)
    figure = blank(width, 0.85 * width, style)
    axes = figure.add_subplot()
    spent = next(amount for amount in ("cost", "tokens", "seconds") if amount in table)
    label = _cost_label(table) if spent == "cost" else f"{spent.capitalize()} per problem"
    on = table.loc[table["on_frontier"].to_numpy(bool)].sort_values(by=[spent, "accuracy"])
    grey = {"color": style.theme["envelope"], "lw": 4, "alpha": 0.4, "solid_capstyle": "round"}
    axes.plot(on[spent], 100 * on["accuracy"], drawstyle="steps-post", solid_joinstyle="round", zorder=1, **grey)
    for model, attention, rows in _lines(table, style, by="N"):
        axes.plot(rows[spent], 100 * rows["accuracy"], **style.line(model, attention))
        _bars(axes, rows, spent, style.colours[model])
    axes.set_xscale("log")
    known = table[spent].dropna()  # what does not fit has no cost
    _cost_ticks(axes, min(known, default=1.0), max(known, default=1.0))
    axes.set(xlabel=label, ylabel=AXES[rule_of(table)])
    panel(axes, style)
    legend(figure, style, more=[handle(label="Pareto envelope", **grey)])
    return figure


def pass_at_k_figure(table: pd.DataFrame, *, dark: bool = False, width: float = 5.0) -> Figure:
    """Accuracy, by the table's rule, against N with its interval as a band, a panel per model; `table` as for
    `frontier_figure`.
    """
    style = style_for(table, dark=dark)
    figure, panels = _panels(style, width, "Samples per problem, N", AXES[rule_of(table)])
    counts = sorted(set(table["N"]))
    for model, attention, rows in _lines(table, style, by="N"):
        axes = panels[model]
        axes.plot(rows["N"], 100 * rows["accuracy"], **style.line(model, attention))
        _band(axes, rows, "N", style.colours[model])
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.minorticks_off()
    legend(figure, style, models=False)
    return figure


def length_figure(table: pd.DataFrame, *, dark: bool = False, width: float = 5.0) -> Figure:
    """Accuracy against the cap on generated tokens with its interval as a band, a panel per model.

    `table` as made by `analysis.ablations.length_ablation`.
    """
    style = style_for(table, dark=dark)
    figure, panels = _panels(style, width, "Cap on generated tokens", "Right within the cap (%)")
    for i, (model, attention, rows) in enumerate(_lines(table, style, by="cap")):
        axes = panels[model]
        axes.plot(rows["cap"], 100 * rows["accuracy"], markevery=(i % 4, 4), **style.line(model, attention))
        _band(axes, rows, "cap", style.colours[model])
        axes.set_xlim(0, 1.03 * max(table["cap"]))
    legend(figure, style, models=False)
    return figure


def budget_figure(table: pd.DataFrame, *, dark: bool = False, width: float = 5.0) -> Figure:
    """Pass@1 against the attention budget, a line per model, kind of attention and its other options; dense as a level.

    `table` as made by `analysis.ablations.budget_ablation`, with at least one sparse row.
    """
    style = style_for(table, dark=dark)
    figure = blank(width, 0.85 * width, style)
    axes = figure.add_subplot()
    budgets = sorted({int(budget) for budget in table["budget"].dropna()})
    end = 2 * budgets[-1]
    markers, several = _option_markers(table, style)
    for (model, kind, options), rows in table.groupby(["model", "kind", "options"], sort=False):  # pyright: ignore[reportGeneralTypeIssues]
        colour = style.colours[str(model)]
        rows = rows.fillna({"budget": end}).sort_values(by="budget")
        line = style.line(str(model), str(rows["attention"].iloc[0]))
        if kind == "dense":
            axes.axhline(100 * rows["accuracy"].iloc[0], color=colour, lw=0.9, alpha=0.55, zorder=2)
        axes.plot(rows["budget"], 100 * rows["accuracy"], **{**line, "marker": markers[str(kind), str(options)]})
        _bars(axes, rows, "budget", colour)
    axes.set_xscale("log", base=2)
    shown = budgets if len(budgets) <= 8 else budgets[:: -(-len(budgets) // 8)]
    ticks = {budget: str(budget) for budget in shown} | ({end: "dense"} if "dense" in set(table["kind"]) else {})
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.minorticks_off()
    axes.set(xlabel="Attention budget (tokens per step and KV head)", ylabel="Problems solved, pass@1 (%)")
    panel(axes, style)
    legend(figure, style, markers=False, more=several)
    return figure


def allocation_figure(table: pd.DataFrame, *, dark: bool = False, width: float = 3.3) -> Figure:
    """Accuracy that a cost limit buys, each problem with a configuration of its own or all with one, with its interval
    as a band; dotted, where the table has it, what the samples promised that the choice was made on.

    `table` as made by `analysis.allocation.allocation_table` with a column `choice`, or `honest_allocation`.
    """
    import pandas as pd

    style = style_for(pd.DataFrame({"model": [""], "parameters": [1], "attention": ["dense"]}), dark=dark)
    figure = blank(width, 0.85 * width, style)
    axes = figure.add_subplot()
    names = {"per_problem": "Best for each problem", "for_all": "One for all problems"}
    palette, honest = DARK_COLOURS if dark else LIGHT_COLOURS, "seen" in table
    for (choice, name), colour, dashes in zip(names.items(), palette, ("-", (0, (3, 1.2))), strict=False):
        rows = table.loc[table["choice"] == choice].sort_values(by="limit")
        label = f"{name}, unseen samples" if honest else name
        axes.plot(rows["limit"], 100 * rows["accuracy"], color=colour, ls=dashes, lw=1.4, label=label, zorder=3)
        _band(axes, rows, "limit", colour)
        if honest:
            axes.plot(rows["limit"], 100 * rows["seen"], color=colour, ls=":", lw=1.1, label=f"{name}, as chosen")
    axes.set_xscale("log")
    _cost_ticks(axes, min(table["limit"]), max(table["limit"]))
    axes.set(
        xlabel=_cost_label(table, "Cost allowed", "FLOPs" if table.attrs.get("law") == "FLOPs" else "eFLOPs"),
        ylabel=AXES[rule_of(table)],
    )
    panel(axes, style)
    axes.legend(fontsize=SMALL, frameon=False, labelcolor=style.theme["ink"], handlelength=2.2)
    return figure


def _cost_label(table: pd.DataFrame, what: str = "Cost", unit: str = "eFLOPs") -> str:
    """What an axis of costs shows, and in a second line what of the weights it holds; arithmetic alone holds none."""
    label = f"{what} per problem (Tera-{unit})"
    if unit == "FLOPs":
        return label
    return f"{label}\n{weight_words(*weights_in(table))}"


def _option_markers(table: pd.DataFrame, style: Style) -> tuple[dict[tuple[str, str], str], list[Any]]:
    """A marker per (kind, options), and legend entries for the kinds that come with several options."""
    groups = table.drop_duplicates(["kind", "options"])
    markers: dict[tuple[str, str], str] = {}
    entries = []
    for kind, rows in groups.groupby("kind", sort=False):
        first = MARKERS.index(style.kind_marker(str(kind))) if kind != "dense" else 0
        for i, (options, attention) in enumerate(zip(rows["options"], rows["attention"], strict=True)):
            mark = "o" if kind == "dense" else MARKERS[(first + len(style.dashes) * i) % len(MARKERS)]
            markers[str(kind), options] = mark
            if len(rows) > 1:
                words = [
                    part for part in style.details[attention].split(", ") if not part.startswith(("budget", "pages"))
                ]
                label = ", ".join([spoken_kind(str(kind)), *words])
                entries.append(handle(lw=0, color=style.theme["ink"], marker=mark, ms=4, mew=0, label=label))
    return markers, entries


def _lines(table: pd.DataFrame, style: Style, *, by: str) -> Iterator[tuple[str, str, Any]]:
    """(model, attention, rows in ascending order of `by`), models by size, attentions as in the legend."""
    groups: dict[Any, Any] = dict(iter(table.sort_values(by=by).groupby(["model", "attention"], sort=False)))
    for model in style.colours:
        for attention in style.markers:
            if (model, attention) in groups:
                yield model, attention, groups[model, attention]


def _panels(style: Style, width: float, x: str, y: str) -> tuple[Figure, dict[str, Axes]]:
    """A panel per model, in two columns, with common axes."""
    columns = min(2, len(style.colours))
    rows = -(-len(style.colours) // columns)
    figure = blank(width, rows * (0.36 if columns == 2 else 0.75) * width + 0.25, style)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    panels = dict(zip(style.colours, grid.flat, strict=False))
    for name, axes in panels.items():
        panel(axes, style)
        title = name.replace("$", r"\$")
        axes.set_title(title, color=style.colours[name], fontsize=SMALL + 0.5, fontweight="bold", pad=2, loc="left")
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    for axes in list(panels.values())[-columns:]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(x, color=style.theme["ink"], fontsize=SMALL)
    figure.supylabel(y, color=style.theme["ink"], fontsize=SMALL + 0.5)
    return figure, panels


def _bars(axes: Axes, rows: Any, x: str, colour: str) -> None:
    axes.vlines(rows[x], 100 * rows["low"], 100 * rows["high"], colors=colour, lw=1, alpha=0.45, zorder=2)


def _band(axes: Axes, rows: Any, x: str, colour: str) -> None:
    axes.fill_between(rows[x], 100 * rows["low"], 100 * rows["high"], color=colour, alpha=0.16, lw=0, zorder=2)


def _cost_ticks(axes: Axes, low: float, high: float) -> None:
    """Within two decades 1, 2 and 5 of each; powers of ten beyond."""
    from matplotlib.ticker import LogFormatterSciNotation, LogLocator, NullFormatter

    narrow = high <= 100 * low
    axes.xaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if narrow else (1,)))
    axes.xaxis.set_major_formatter(LogFormatterSciNotation(10, minor_thresholds=(9, 9)))
    axes.xaxis.set_minor_formatter(NullFormatter())
