"""The frontier as a figure to explore: points to touch, filters by model and by attention. Works without a network.

Plotly draws it, written into the page; the rows stand in the page as JSON, from which interactive.js makes traces.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_jax.analysis.picked import COLUMNS
from kinetics_jax.analysis.rule_names import AXES, rule_of, short_name
from kinetics_jax.report.attention_names import attention_names
from kinetics_jax.report.figure_style import DARK, LIGHT, style_for

if TYPE_CHECKING:
    import pandas as pd

# Plotly's names of what figure_style draws.
DASHES = {"-": "solid", (0, (3, 1.2)): "dash", (0, (1, 1)): "dot"}
OTHER_DASHES = "dashdot"
SYMBOLS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross"}
SYMBOLS |= {"X": "x", "<": "triangle-left", ">": "triangle-right", "p": "pentagon", "h": "hexagon", "*": "star"}
SYMBOLS |= {"d": "diamond-tall"}
CSS = """
.explore fieldset { border: 0; margin: 0; padding: .1rem 0; display: flex; flex-wrap: wrap; gap: 0 .9rem; }
.explore legend { float: left; margin-right: .8rem; padding: 0; color: var(--quiet); }
.explore label { display: inline-flex; align-items: center; gap: .35rem; min-height: 2rem; cursor: pointer; }
.explore .swatch { width: .8rem; height: .8rem; border-radius: 50%; display: inline-block; }
.explore .plot { width: 100%; height: 26rem; }
.explore output { display: block; min-height: 3.2em; font-size: .9rem; }
"""


def interactive_frontier(table: pd.DataFrame) -> str:
    """A part of a page: filters, the figure, and below it the configuration that was touched last.

    `table` as made by `analysis.frontier.cost_frontier`. Scripts and data are inside; nothing is fetched. Equal tables
    give equal text. A reader without scripts sees a line that says so.
    """
    from plotly.offline import get_plotlyjs

    program = (Path(__file__).parent / "interactive.js").read_text(encoding="utf-8")
    library = get_plotlyjs().replace("</", "<\\/").replace("<!--", "<\\!--")  # within strings: no end of the script
    data = json.dumps(figure_data(table), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c")  # no name is taken for a tag
    return (
        '<div class="explore" id="explore">\n'
        "<noscript><p>Scripts are off: the picture above shows the same points.</p></noscript>\n"
        '<div class="filters"></div>\n<div class="plot" role="figure" aria-label="Accuracy against cost"></div>\n'
        '<output aria-live="polite">Touch or click a point for its configuration.</output>\n</div>\n'
        f'<script type="application/json" id="explore-data">{data}</script>\n'
        f"<script>{library}</script>\n<script>{program}</script>"
    )


def figure_data(table: pd.DataFrame) -> dict[str, Any]:
    """What interactive.js draws: `models` and `attentions` with their names and colours, and `points` by line."""
    light, dark = style_for(table, dark=False), style_for(table, dark=True)
    short = attention_names(table["attention"]).short
    by_line: dict[tuple[str, str], list[dict[str, Any]]] = {}
    rule = rule_of(table)
    for row in table.dropna(subset="cost").sort_values(by="N").to_dict("records"):  # what does not fit has no cost
        by_line.setdefault((row["model"], row["attention"]), []).append(_point(row, short(row["attention"]), rule))
    lines = []
    for model in light.colours:
        for attention in light.markers:
            if (model, attention) in by_line:
                drawn = light.line(model, attention)
                lines.append(
                    {
                        "model": model,
                        "attention": attention,
                        "dash": DASHES.get(drawn["linestyle"], OTHER_DASHES),
                        "symbol": SYMBOLS[drawn["marker"]],
                        "points": by_line[model, attention],
                    }
                )
    return {
        "models": [{"name": n, "light": c, "dark": dark.colours[n]} for n, c in light.colours.items()],
        "attentions": [{"name": name, "short": short(name)} for name in light.markers],
        "lines": lines,
        "accuracy": AXES[rule],
        "themes": {"light": LIGHT, "dark": DARK},
    }


def _point(row: Mapping[Any, Any], attention: str, rule: str) -> dict[str, Any]:
    """A point of the figure: percentages, and the lines that it shows when touched, the first of them beside it."""
    accuracy, low, high = (100 * float(row[name]) for name in ("accuracy", "low", "high"))
    what = f"{short_name(rule, row['N'])} {_percent(accuracy, low, high)}"
    shown = [f"{row['model']}, {attention}, N = {row['N']}", what]
    for column, by in COLUMNS.items():  # what else could pick among the same answers
        if known(row.get(column)):
            ends = (100 * float(row[name]) for name in (column, f"{column}_low", f"{column}_high"))
            shown.append(f"{short_name(by, row['N'])} {_percent(*ends)}")
    cost = f"cost {row['cost']:.4g} Tera-eFLOPs a problem"
    parts = [f"{name} {row[name]:.4g}" for name in ("compute", "memory", "communication") if known(row.get(name))]
    more = [f"{cost}: {', '.join(parts)}" if parts else f"{cost}, by its source"]
    if known(row["mean_output_tokens"]):
        more.append(f"{row['mean_output_tokens']:.1f} tokens a sample")
    if known(row.get("batch")):
        more[-1] += f"; weights shared by {row['batch']:.0f} sequences"
    return {
        "x": float(row["cost"]),
        "y": accuracy,
        "low": low,
        "high": high,
        "hover": len(shown),
        "text": [html.escape(line) for line in (*shown, *more)],
    }


def _percent(accuracy: float, low: float, high: float) -> str:
    return f"{accuracy:.1f} % (95 % interval {low:.1f} … {high:.1f})"


def known(value: Any) -> bool:
    """Whether a cell holds something."""
    return value is not None and value == value
