"""The tables as figures of a paper's column width."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from kinetics_jax.report.figure_style import LIGHT, SMALL, handle, save_figure

Table = Any  # a pandas.DataFrame; by its stubs, a filtered one may be a Series
WIDTH = 3.4
# rule → colour (Okabe and Ito's), marker; bounds have no marker and are dashed.
LOOKS = {
    "block top-k, mean": ("#0072B2", "s"),
    "block top-k, min_max": ("#D55E00", "^"),
    "block top-k, mean_std": ("#009E73", "D"),
    "block top-k, two_means": ("#882255", "P"),
    "top p pages, p 0.9": ("#6A51A3", "<"),
    "shared block top-k, select every 2": ("#999933", ">"),
    "unbiased block top-k": ("#8C564B", "p"),
    "token top-k": ("#CC79A7", "o"),
    "sliding window": ("#E69F00", "v"),
    "random blocks": ("#7F7F7F", "x"),
    "best tokens (bound)": ("#000000", ""),
    "best pages (bound)": ("#56B4E9", ""),
}
# Of rules that have no look of their own, in their order.
OTHERS = [("#44AA99", "X"), ("#661100", "h"), ("#332288", "*"), ("#117733", "d"), ("#AA4499", "8")]
NOT_DRAWN = ("dense", "always kept")


def panels(columns: int, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained", facecolor=LIGHT["ground"])
    axes = [figure.add_subplot(1, columns, 1 + column) for column in range(columns)]
    for each in axes:
        each.tick_params(which="both", labelsize=SMALL)
        each.grid(color=LIGHT["faint"], lw=0.6)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def labelled(axes: Any, *, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=SMALL + 0.5)
    axes.set_ylabel(y, fontsize=SMALL + 0.5)


def legend(figure: Any, rules: list[str], more: tuple[Any, ...] = ()) -> None:
    """Adds a legend below the axes; the figure grows by its height."""
    handles = [handle(**line(rule, rules), label=rule) for rule in rules]
    figure.legend(
        handles=[*handles, *more], ncols=2, loc="outside lower center", fontsize=SMALL, frameon=False, columnspacing=1.4
    )
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.15 * -(-(len(handles) + len(more)) // 2))


def rules_of(table: Table) -> list[str]:
    """The rules of a table that are drawn, those with a look of their own first."""
    here = [rule for rule in dict.fromkeys(table["rule"]) if rule not in NOT_DRAWN]
    return sorted(here, key=lambda rule: list(LOOKS).index(rule) if rule in LOOKS else len(LOOKS))


def line(rule: str, rules: list[str]) -> dict[str, Any]:
    """How a rule is drawn among `rules`."""
    others = [other for other in rules if other not in LOOKS]
    colour, marker = LOOKS[rule] if rule in LOOKS else OTHERS[others.index(rule) % len(OTHERS)]
    return {"color": colour, "marker": marker, "ms": 3.6, "lw": 1.2, "linestyle": "-" if marker else (0, (3, 1.2))}


def over_budgets(axes: Any, table: Table, value: str, *, band: bool = True) -> list[str]:
    """Draws a line for every rule, its interval as a band; returns the rules drawn."""
    rules = rules_of(table)
    for rule in rules:
        part = table[table["rule"] == rule].sort_values("budget")
        axes.plot(part["budget"], part[value], **line(rule, rules))
        if band:
            axes.fill_between(
                part["budget"], part["low"], part["high"], color=line(rule, rules)["color"], alpha=0.15, lw=0
            )
    axes.set_xscale("log", base=2)
    ticks = sorted(set(table["budget"]))
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    return rules


def draw_mass(table: Table, path: Path) -> None:
    """Kept attention mass by budget, the mean of the layers that search."""
    figure, (axes,) = panels(1, 2.3)
    rules = over_budgets(axes, table[table["layer"] == -1], "mass")
    axes.set_ylim(None, 1.0)
    labelled(axes, x="Budget (tokens per step and KV head)", y="Attention mass kept")
    legend(figure, rules)
    save_figure(figure, path)


def draw_layers(table: Table, path: Path) -> None:
    """Kept mass by layer at a small budget."""
    budget = sorted(set(table["budget"]))[min(2, table["budget"].nunique() - 1)]
    figure, (axes,) = panels(1, 2.3)
    table = table[(table["layer"] >= 0) & (table["budget"] == budget)]
    rules = rules_of(table)
    for rule in rules:
        part = table[table["rule"] == rule].sort_values("layer")
        axes.plot(part["layer"], part["mass"], **{**line(rule, rules), "ms": 2.4, "lw": 0.9})
    axes.set_ylim(None, 1.0)
    labelled(axes, x="Layer", y=f"Attention mass kept by {budget} tokens")
    legend(figure, rules)
    save_figure(figure, path)


def draw_perplexity(table: Table, path: Path) -> None:
    """Perplexity over dense's by budget, a panel for each source."""
    sources = sorted(set(table["source"]) - {"all"})
    figure, every = panels(len(sources), 2.1)
    rules = []
    for axes, source in zip(every, sources, strict=True):
        part = table[(table["source"] == source) & (table["budget"] > 0)]
        rules = over_budgets(axes, part, "ratio", band=False)
        axes.axhline(1.0, color=LIGHT["envelope"], lw=1.0)
        axes.set_yscale("log")
        axes.set_yticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
        axes.minorticks_off()
        axes.set_ylim(0.9, 1.1 * table["ratio"].max())
        axes.tick_params(axis="x", labelrotation=60)
        axes.set_title(source, fontsize=SMALL + 0.5)
        labelled(axes, x="Budget (tokens)", y="Perplexity ÷ dense" if axes is every[0] else "")
    legend(figure, rules, (handle(color=LIGHT["envelope"], lw=1.0, label="dense"),))
    save_figure(figure, path)


def draw_needles(table: Table, path: Path) -> None:
    """Needles found, and the log-likelihood of their numbers, by budget in the prompts that exceed every budget."""
    figure, axes = panels(2, 2.0)
    beyond = table[(table["depth"] == -1) & (table["length"] == -1)]
    sparse, dense = beyond[beyond["budget"] > 0], beyond[beyond["budget"] == 0]
    rules = []
    for each, value, name in zip(axes, ("share", "log_likelihood"), ("Needles found", "Log-likelihood"), strict=True):
        rules = over_budgets(each, sparse, value, band=False)
        each.axhline(float(dense[value].iloc[0]), color=LIGHT["envelope"], lw=1.0)
        each.tick_params(axis="x", labelrotation=60)
        labelled(each, x="Budget (tokens)", y=name)
    axes[0].set_ylim(-0.03, 1.03)
    legend(figure, rules, (handle(color=LIGHT["envelope"], lw=1.0, label="dense"),))
    save_figure(figure, path)


def draw_all(tables: dict[str, Table], folder: Path) -> None:
    """`selection_*.png` of every table that is not empty."""
    drawings: list[tuple[str, str, Callable[[Table, Path], None]]] = [
        ("mass", "mass", draw_mass),
        ("mass", "layers", draw_layers),
        ("perplexity", "perplexity", draw_perplexity),
        ("needles", "needles", draw_needles),
    ]
    for table, name, draw in drawings:
        if len(tables[table]):
            draw(tables[table], folder / f"selection_{name}.png")
