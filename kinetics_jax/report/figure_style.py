"""One style for every figure: a colour per model in order of size, dashes per kind of attention, a marker per budget.

Drawn without pyplot and its global state, for a light or a dark background.
"""

from __future__ import annotations

import dataclasses
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_jax.attention.policies.registry import POLICIES
from kinetics_jax.files import write_atomic
from kinetics_jax.report.attention_names import attention_names, kind_of, spoken_kind

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, distinct to the colour-blind, then four of Tol's; brighter variants on a dark background.
LIGHT = {"ink": "#222222", "faint": "#dddddd", "envelope": "#9a9a9a", "ground": "#ffffff"}
DARK = {"ink": "#e6e6e6", "faint": "#3a3f45", "envelope": "#8a8f96", "ground": "#16191d"}
LIGHT_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LIGHT_COLOURS += ("#882255", "#999933", "#6A51A3", "#7F7F7F")
DARK_COLOURS = ("#56B4E9", "#FF8A4C", "#2CC79A", "#E7A3CB", "#F0C43C", "#8FA8FF", "#FFFFFF")
DARK_COLOURS += ("#E0658F", "#C8C85A", "#B9A3F0", "#A8A8A8")
DASHES: tuple[Any, ...] = ("-", (0, (3, 1.2)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (7, 1.5)))
DASHES += tuple((0, pattern) for pattern in ((5, 1.2, 3, 1.2), (2, 2.5), (6, 1, 1, 1, 1, 1), (4, 3), (1, 2.2)))
DASHES += tuple((0, pattern) for pattern in ((8, 1, 3, 1), (3, 1, 3, 1, 1, 1)))
MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "d")
SMALL = 7  # points; figures are shown at about the width they are drawn for
ROW = 0.155  # inches of a line of the legend


@dataclasses.dataclass(frozen=True)
class Style:
    """How a table's models and attentions are drawn.

    `colours` by model, smallest first. `dashes` by kind of attention. `markers` by attention (its spelling), largest
    budget first; `details` and `note` as in `AttentionNames`.
    """

    dark: bool
    colours: dict[str, str]
    dashes: dict[str, Any]
    markers: dict[str, str]
    details: dict[str, str]
    note: str

    @property
    def theme(self) -> dict[str, str]:
        return DARK if self.dark else LIGHT

    def line(self, model: str, attention: str) -> dict[str, Any]:
        """Keywords of Axes.plot for one model under one attention; dense is solid, round and heavier."""
        dense = attention == "dense"
        return {
            "color": self.colours[model],
            "linestyle": self.dashes[kind_of(attention)],
            "marker": self.markers[attention],
            "lw": 1.5 if dense else 1.1,
            "ms": 3.6 if dense else 3.4,
            "mew": 0,
            "zorder": 3 if dense else 4,
        }

    def kind_marker(self, kind: str) -> str:
        """A marker per kind, for figures in which budgets need none."""
        return "o" if kind == "dense" else MARKERS[list(self.dashes).index(kind) % len(MARKERS)]


def style_for(table: pd.DataFrame, *, dark: bool) -> Style:
    """The style of a table with the columns `model`, `parameters` and `attention`."""
    sizes = dict(zip(table["model"], table["parameters"], strict=True))
    models = sorted(sizes, key=lambda name: (sizes[name], name))
    palette = DARK_COLOURS if dark else LIGHT_COLOURS
    names = attention_names(table["attention"])
    here = list(map(kind_of, names.details))
    kinds = dict.fromkeys((*POLICIES, *here))  # a kind has the same dashes in every figure
    ranks = {detail: i for i, detail in enumerate(dict.fromkeys(filter(None, names.details.values())))}
    return Style(
        dark=dark,
        colours={name: palette[i % len(palette)] for i, name in enumerate(models)},
        dashes={kind: DASHES[i % len(DASHES)] for i, kind in enumerate(kinds) if kind in here},
        markers={name: MARKERS[ranks[d] % len(MARKERS)] if d else "o" for name, d in names.details.items()},
        details=names.details,
        note=names.note,
    )


def panel(axes: Axes, style: Style) -> None:
    """Colours, grid and spines of one axes whose ordinate is a percentage."""
    plain(axes, style)
    axes.set_ylim(-2, 102)


def plain(axes: Axes, style: Style) -> None:
    """Colours, grid and spines of one axes."""
    theme = style.theme
    axes.set_facecolor(theme["ground"])
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=theme["ink"], fontsize=SMALL + 0.5)
    axes.tick_params(which="both", colors=theme["ink"], labelsize=SMALL)
    axes.grid(color=theme["faint"], lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(theme["ink"])


def blank(width: float, height: float, style: Style) -> Figure:
    """An empty figure, inches; no global state refers to it."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor=style.theme["ground"])


def legend(
    figure: Figure, style: Style, *, markers: bool = True, models: bool = True, more: Sequence[Any] = ()
) -> None:
    """Below the axes: models, kinds of attention, budgets, side by side, or one below the other where that is too wide.

    `more` handles follow the kinds. The figure grows by the legend's height. `models`: whether colours need explaining;
    `markers`: whether they tell budgets, or kinds as `Style.kind_marker` does.
    """
    ink = style.theme["ink"]
    colours = [handle(lw=3, color=c, label=name.replace("$", r"\$")) for name, c in style.colours.items() if models]
    kinds = [
        handle(
            lw=1.3,
            color=ink,
            linestyle=dashes,
            marker="" if markers and kind != "dense" else style.kind_marker(kind),
            ms=3.6,
            mew=0,
            label=spoken_kind(kind),
        )
        for kind, dashes in style.dashes.items()
    ]
    budgets = {style.details[name]: mark for name, mark in style.markers.items() if style.details.get(name) and markers}
    marks = [handle(lw=0, color=ink, marker=m, ms=4, mew=0, label=detail) for detail, m in budgets.items()]
    note = "\n".join(textwrap.wrap(style.note, int(18.5 * figure.get_size_inches()[0])))
    columns = [colours, [*kinds, *more], marks]
    for layout in (columns, [colours, kinds + list(more) + marks], [colours + kinds + list(more) + marks]):
        if _fits(figure, _columns(layout), ink, note):
            return


def _columns(groups: list[list[Any]]) -> list[list[Any]]:
    """Groups as columns of equal height; a long last group is broken over several."""
    groups = [group for group in groups if group]
    rows = max([len(group) for group in groups[:-1]] + [min(len(groups[-1]), 6)]) if len(groups) > 1 else len(groups[0])
    columns = [group[start : start + rows] for group in groups for start in range(0, len(group), rows)]
    return [column + [handle(lw=0, label=" ") for _ in range(rows - len(column))] for column in columns]


def _fits(figure: Figure, columns: list[list[Any]], ink: str, note: str) -> bool:
    """Draws the legend; takes it back and says False where it is wider than the figure and could be narrower."""
    drawn = figure.legend(
        handles=[item for column in columns for item in column],
        ncols=len(columns),
        loc="outside lower center",
        fontsize=SMALL,
        frameon=False,
        labelcolor=ink,
        handlelength=2.6,
        columnspacing=1.4,
        title=note or None,
        title_fontproperties={"size": SMALL - 0.5},
    )
    drawn.get_title().set_color(ink)
    if len(columns) > 1 and drawn.get_window_extent().width > 0.98 * figure.bbox.width:
        drawn.remove()
        return False
    width, height = figure.get_size_inches()
    lines = len(columns[0]) + (note.count("\n") + 1 if note else 0)
    figure.set_size_inches(width, height + ROW * lines)
    return True


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure, its format by the ending of the name, as `files.write_atomic` does.

    Equal figures give equal PNG files: the version that matplotlib would write into one is left out.
    """
    drawn = io.BytesIO()
    metadata = {"Software": None} if path.suffix == ".png" else None
    figure.savefig(drawn, format=path.suffix.removeprefix("."), dpi=200, metadata=metadata)
    write_atomic(path, drawn.getvalue())


def handle(**style: Any) -> Any:
    """A legend entry."""
    from matplotlib.lines import Line2D

    return Line2D([], [], **style)
