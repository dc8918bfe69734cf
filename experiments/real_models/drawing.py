"""The page's figures, drawn from its JSON."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from kinetics_jax.report.figure_style import LIGHT, LIGHT_COLOURS, SMALL, handle
from real_models.compare import rows_of
from real_models.data import FAMILY
from real_models.prices import CHIPS, WEIGHTS

WIDTH = 5.0  # inches; the page shows figures about as wide
COLOURS = dict(zip(FAMILY, LIGHT_COLOURS, strict=False))
SHORT = {"none": "no weights", "fit": "batch that fits", "alone": "batch 1"}
INK, GREY = LIGHT["ink"], LIGHT["envelope"]


def blank(height: float) -> Figure:
    return Figure(figsize=(WIDTH, height), layout="constrained", facecolor=LIGHT["ground"])


def plain(axes: Axes, xlabel: str = "", ylabel: str = "", title: str = "") -> None:
    """Small type, a faint grid, and no frame above and on the right."""
    axes.set_xlabel(xlabel, fontsize=SMALL + 0.5)
    axes.set_ylabel(ylabel, fontsize=SMALL + 0.5)
    axes.set_title(title, fontsize=SMALL + 0.5, loc="left", pad=4)
    axes.tick_params(which="both", labelsize=SMALL)
    axes.grid(color=LIGHT["faint"], lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def below(figure: Figure, handles: Sequence[Any], columns: int) -> None:
    figure.legend(
        handles=list(handles),
        ncols=columns,
        loc="outside lower center",
        fontsize=SMALL,
        frameon=False,
        columnspacing=1.2,
        handletextpad=0.5,
    )


def draw_family(summary: dict[str, Any]) -> Figure:
    """Above: what is solved at what price, and both laws' frontiers; below: how much more the FLOPs law pays."""
    figure = blank(4.4)
    grid = figure.subplots(2, 2, height_ratios=[1.25, 1])
    stratum = summary["family"]["strata"]["prefix"]
    for column, weights in enumerate(("none", "fit")):
        found = stratum["laws"]["h100"][weights]
        title = "the weights left out" if weights == "none" else "the weights at the batch that fits"
        _frontiers(grid[0][column], rows_of(stratum["curves"][weights]), rows_of(found["limits"]), title)
        _ratios(grid[1][column], rows_of(found["levels"]))
    grid[0][0].set_ylabel("Texts solved (%)", fontsize=SMALL + 0.5)
    grid[1][0].set_ylabel("FLOPs law ÷ eFLOPs law,\neFLOPs paid", fontsize=SMALL + 0.5)
    for row in grid:
        row[1].sharey(row[0])
        row[1].tick_params(labelleft=False)
    handles = [handle(color=colour, lw=1.4, label=name) for name, colour in COLOURS.items()]
    handles += [
        handle(color=INK, lw=1.6, label="chosen by eFLOPs"),
        handle(color=INK, lw=1.3, ls=(0, (3, 1.5)), label="chosen by FLOPs"),
        Patch(color=GREY, alpha=0.35, lw=0, label="same questions, 95 % of redraws"),
        handle(color=INK, marker="o", ms=3, lw=0.9, label="unseen questions, 95 %"),
    ]
    below(figure, handles, 3)
    return figure


def _frontiers(axes: Axes, curves: list[dict[str, Any]], limits: list[dict[str, Any]], title: str) -> None:
    for name, colour in COLOURS.items():
        rows = [row for row in curves if row["model"] == name]
        cost = [row["eflops"] for row in rows]
        low, high = ([100 * row[side] for row in rows] for side in ("low", "high"))
        axes.fill_between(cost, low, high, color=colour, alpha=0.13, lw=0)
        axes.plot(cost, [100 * row["accuracy"] for row in rows], color=colour, lw=1.2)
    for lost, style in ((0, "-"), (1, (0, (3, 1.5)))):
        solved = [100 * (row["solved"] - lost * row["gain"]) for row in limits]
        axes.plot([row["limit"] for row in limits], solved, drawstyle="steps-post", color=INK, ls=style, lw=1)
    axes.set_xscale("log")
    axes.set_xlim(6, 3000)
    axes.set_ylim(28, 98)
    plain(axes, "Tera-eFLOPs a text (H100)", title=title)


def _ratios(axes: Axes, levels: list[dict[str, Any]]) -> None:
    at = [100 * row["accuracy"] for row in levels]
    axes.axhline(1, color=INK, lw=0.6)
    axes.fill_between(at, [row["low"] for row in levels], [row["high"] for row in levels], color=GREY, alpha=0.35, lw=0)
    axes.plot(at, [row["ratio"] for row in levels], color=GREY, lw=1.2)
    scored = [row for row in levels if row["unseen"]]
    where = [100 * row["accuracy"] for row in scored]
    axes.vlines(where, [row["unseen_low"] for row in scored], [row["unseen_high"] for row in scored], color=INK, lw=0.8)
    axes.plot(where, [row["unseen"] for row in scored], "o", color=INK, ms=2, mew=0)
    axes.set_xlim(49, 93)
    axes.set_ylim(0.85, 3.2)
    plain(axes, "Texts solved (%)")


def draw_choices(summary: dict[str, Any]) -> Figure:
    """Which model each law takes for every accuracy: a strip for FLOPs and one for every price of memory."""
    figure = blank(4.3)
    strata = summary["family"]["strata"]
    panels = figure.subplots(1, len(strata), sharey=True)
    for axes, (name, stratum) in zip(panels, strata.items(), strict=True):
        labels = [("FLOPs, any chip", stratum["laws"]["h100"]["none"], "by_flops")]
        for chip in CHIPS:
            labels += [(f"{chip.upper()}, {SHORT[w]}", stratum["laws"][chip][w], "by_eflops") for w in WEIGHTS]
        others = summary["family"]["qwen3_shapes"][name]
        labels += [("FLOPs", others["none"], "by_flops")]
        labels += [(f"H100, {SHORT[w]}", others[w], "by_eflops") for w in ("none", "fit")]
        _strips(axes, labels, name)
    below(figure, [Patch(color=colour, label=name) for name, colour in COLOURS.items()], 4)
    return figure


def _strips(axes: Axes, labels: list[tuple[str, dict[str, Any], str]], title: str) -> None:
    places = []
    for i, (_, found, law) in enumerate(labels):
        last = len(labels) - 3  # the what-if stands apart
        place = -i - (0.6 if i > 0 else 0) - (0.9 if i >= last else 0)
        places.append(place)
        rows = rows_of(found["levels"])
        for model, run in itertools.groupby(rows, key=lambda row: row[law]):
            at = [100 * row["accuracy"] for row in run]
            axes.barh(place, at[-1] - at[0] + 1, left=at[0] - 0.5, height=0.74, color=COLOURS[model], lw=0)
        if law == "by_eflops":
            apart = [100 * row["accuracy"] for row in rows if row["by_eflops"] != row["by_flops"]]
            axes.plot(apart, [place] * len(apart), ".", color="white", ms=2.2, mew=0)
    axes.set_yticks(places, [label for label, _, _ in labels])
    axes.set_xlim(49.5, 94)
    axes.set_ylim(places[-1] - 0.6, 0.6)
    plain(axes, "Texts to be solved (%)", title=title)
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.text(93.5, places[-3] + 0.62, "as if of Qwen3's shapes", fontsize=SMALL - 0.5, ha="right", va="bottom")


def draw_pruned(summary: dict[str, Any]) -> Figure:
    """pass@k with the whole and the pruned cache, and their difference on the same problems."""
    figure = blank(2.5)
    left, right = figure.subplots(1, 2)
    rows = summary["pruned"]["pass"]
    for name, colour, shift in (("dense", COLOURS["s1.1-3B"], 0.96), ("snapkv", COLOURS["s1.1-7B"], 1.04)):
        at = [shift * row["k"] for row in rows]
        low, high = ([100 * row[name][side] for row in rows] for side in ("low", "high"))
        left.vlines(at, low, high, color=colour, lw=1, alpha=0.6)
        left.plot(at, [100 * row[name]["rate"] for row in rows], "o-", color=colour, ms=3.2, lw=1.2, mew=0)
    at = [row["k"] for row in rows]
    right.axhspan(-2, 0, color=GREY, alpha=0.25, lw=0)
    right.axhline(0, color=INK, lw=0.6)
    right.vlines(at, [100 * row["low"] for row in rows], [100 * row["high"] for row in rows], color=INK, lw=1)
    right.plot(at, [100 * row["difference"] for row in rows], "o", color=INK, ms=3.2, mew=0)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(at, [str(k) for k in at])
        axes.minorticks_off()
    left.set_ylim(65, 101)
    plain(left, "Samples per problem, k", "pass@k (%)")
    plain(right, "Samples per problem, k", "SnapKV − dense (points)")
    handles = [
        handle(color=COLOURS["s1.1-3B"], marker="o", ms=3.2, mew=0, label="whole cache"),
        handle(color=COLOURS["s1.1-7B"], marker="o", ms=3.2, mew=0, label="SnapKV"),
        Patch(color=GREY, alpha=0.25, lw=0, label="a loss below 2 points"),
    ]
    below(figure, handles, 3)
    return figure


def draw_loops(summary: dict[str, Any]) -> Figure:
    """What a cap keeps and what it spends."""
    figure = blank(2.9)
    axes = figure.subplots()
    curve = summary["loops"]["curve"]
    caps = [cap / 1024 for cap in curve["cap"]]
    lines: list[tuple[str, str, str, Any]] = [
        ("kept", "texts kept, of those that end by themselves", INK, "-"),
        ("tokens", "tokens spent", LIGHT_COLOURS[0], (0, (3, 1.2))),
        ("FLOPs", "FLOPs spent", LIGHT_COLOURS[1], (0, (5, 1, 1, 1))),
        ("eFLOPs, no weights", "eFLOPs spent, the weights left out", LIGHT_COLOURS[2], (0, (1, 1))),
    ]
    for name, label, colour, dashes in lines:
        axes.plot(caps, [100 * share for share in curve[name]], color=colour, ls=dashes, lw=1.6, label=label)
    axes.set_xlim(0, 40)
    axes.set_ylim(0, 102)
    axes.legend(fontsize=SMALL, frameon=False, loc="lower right", handlelength=3)
    plain(axes, "Cap, 1,024 tokens", "Of what there is without a cap (%)")
    return figure


FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {
    "real_family": draw_family,
    "real_choices": draw_choices,
    "real_pruned": draw_pruned,
    "real_loops": draw_loops,
}
