"""Figures of a frontier table, for light and for dark ground; drawn without pyplot and its global state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by the colour-blind; brighter kin of them on dark ground.
LIGHT = {"ink": "#222222", "faint": "#dddddd", "envelope": "#9a9a9a", "ground": "#ffffff"}
DARK = {"ink": "#e6e6e6", "faint": "#3a3f45", "envelope": "#8a8f96", "ground": "#16191d"}
LIGHT_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DARK_COLOURS = ("#56B4E9", "#FF8A4C", "#2CC79A", "#E7A3CB", "#F0C43C", "#8FA8FF", "#FFFFFF")
SPARSE_MARKERS = ("s", "^", "D", "v", "P", "X")
SPARSE_DASHES = ("--", ":", "-.", (0, (5, 1)), (0, (1, 1)), (0, (3, 1, 1, 1, 1, 1)))


def frontier_figure(table: pd.DataFrame, *, dark: bool = False, width: float = 5.0) -> Figure:
    """Accuracy against cost: a colour per model, a line style and marker per attention, the Pareto envelope in grey.

    `table` as made by `economics.frontier.frontier`; one point per row with its interval. `width` in inches; `dark`
    draws for dark ground. Returns a matplotlib Figure that no global state refers to.
    """
    figure, axes = _axes(width, dark)
    on = table.loc[table["on_frontier"].to_numpy(bool)].sort_values(by=["cost", "accuracy"])
    envelope = _theme(dark)["envelope"]
    axes.plot(on["cost"], 100 * on["accuracy"], color=envelope, lw=6, alpha=0.4, solid_capstyle="round", zorder=1)
    _lines(axes, table, "cost", dark)
    models, _ = _styles(table, dark)
    colours = [models[name]["color"] for name in table["model"]]
    low, high = 100 * table["low"], 100 * table["high"]
    axes.vlines(table["cost"], low, high, colors=colours, lw=0.8, alpha=0.4, zorder=2)
    axes.set_xscale("log")
    axes.set_xlabel("Cost per problem (Tera-eFLOPs)")
    handles = [_handle(color=envelope, lw=6, alpha=0.4, label="Pareto envelope")]
    _legend(figure, axes, table, dark, handles)
    return figure


def pass_at_k_figure(table: pd.DataFrame, *, dark: bool = False, width: float = 5.0) -> Figure:
    """Pass@N against N, without intervals; arguments, styles and result as in `frontier_figure`."""
    figure, axes = _axes(width, dark)
    _lines(axes, table, "N", dark)
    axes.set_xscale("log", base=2)
    counts = sorted(set(table["N"]))
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    axes.set_xlabel("Samples per problem, N")
    _legend(figure, axes, table, dark, [])
    return figure


def _theme(dark: bool) -> dict[str, str]:
    return DARK if dark else LIGHT


def _axes(width: float, dark: bool) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    theme = _theme(dark)
    figure = Figure(figsize=(width, 0.85 * width), layout="constrained", facecolor=theme["ground"])
    axes = figure.add_subplot(facecolor=theme["ground"])
    axes.set_ylabel("Problems solved, pass@N (%)", color=theme["ink"], fontsize=8)
    axes.xaxis.label.set(color=theme["ink"], fontsize=8)
    axes.tick_params(which="both", colors=theme["ink"], labelsize=7.5)
    axes.grid(color=theme["faint"], lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme["ink"])
    return figure, axes


def _styles(table: pd.DataFrame, dark: bool) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Colour of each model, marker and dashes of each attention, in the table's order; dense is round and solid."""
    colours = DARK_COLOURS if dark else LIGHT_COLOURS
    models = {m: {"color": colours[i % len(colours)]} for i, m in enumerate(dict.fromkeys(table["model"]))}
    sparse = [name for name in dict.fromkeys(table["attention"]) if name != "dense"]
    attentions: dict[str, dict[str, Any]] = {"dense": {"marker": "o", "linestyle": "-"}}
    for i, name in enumerate(sparse):
        marker, dashes = SPARSE_MARKERS[i % len(SPARSE_MARKERS)], SPARSE_DASHES[i % len(SPARSE_DASHES)]
        attentions[name] = {"marker": marker, "linestyle": dashes}
    return models, {name: attentions[name] for name in dict.fromkeys(table["attention"])}


def _lines(axes: Axes, table: pd.DataFrame, x: str, dark: bool) -> None:
    models, attentions = _styles(table, dark)
    for (model, attention), rows in table.sort_values(by="N").groupby(["model", "attention"], sort=False):  # pyright: ignore[reportGeneralTypeIssues]
        style = {**models[str(model)], **attentions[str(attention)]}
        axes.plot(rows[x], 100 * rows["accuracy"], lw=1.3, ms=4, mew=0, zorder=3, **style)
    axes.set_ylim(-2, 102)


def _legend(figure: Figure, axes: Axes, table: pd.DataFrame, dark: bool, more: list[Any]) -> None:
    """Models on the left, attentions on the right, below the axes where it hides nothing."""
    models, attentions = _styles(table, dark)
    ink = _theme(dark)["ink"]
    left = [_handle(lw=3, label=name.replace("$", r"\$"), **style) for name, style in models.items()]
    right = [
        _handle(color=ink, lw=1.3, ms=4, mew=0, label=_spoken(name), **style) for name, style in attentions.items()
    ]
    right += more
    rows = max(len(left), len(right))  # a legend fills its columns one after the other
    left += [_handle(lw=0, label=" ") for _ in range(rows - len(left))]
    look = {"loc": "outside lower center", "fontsize": 7.5, "frameon": False, "labelcolor": ink, "handlelength": 3}
    legend = figure.legend(handles=left + right, ncols=2, **look)
    if legend.get_window_extent().width > 0.98 * figure.bbox.width:
        legend.remove()
        handles = [handle for handle in left + right if handle.get_label() != " "]
        legend, rows = figure.legend(handles=handles, **look), len(handles)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.16 * rows)


def _handle(**style: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)


def _spoken(attention: str) -> str:
    """`block_topk:budget=32,page_size=2` as `block top-k: budget 32, page size 2`."""
    return attention.replace(":", ": ").replace(",", ", ").replace("=", " ").replace("topk", "top-k").replace("_", " ")
