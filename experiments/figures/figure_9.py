"""Figure 9: what page size and budget of block top-k cost, and, given runs, what they achieve.

    python experiments/figures/figure_9.py
    python experiments/figures/figure_9.py RUN... --model Qwen/Qwen3-14B --output 32768

Illustrates the trade-off behind the paper's grid of budgets, in which page size times budget is constant (rings: 128
tokens in pages of 128, … 2048 in pages of 8). (a) one sample's cost over the budget, as a share of dense attention's: a
smaller budget saves little more once the search, which reads one key per page, costs as much as the pages it finds.
(b) the parts of that cost over the page size, at one budget. (c) with runs of block top-k given: pass@1 over the
budget, a line per page size, with 95 % intervals from redrawing problems; dense attention as a level. The paper's
caption was not available.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from paper_figures.common import Table, panels, parser, read_runs, run, title, write

from kinetics_jax.analysis.ablations import budget_ablation
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.litesys_block_topk import LiteSysBlockTopK
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.errors import UserError
from kinetics_jax.report.figure_style import LIGHT_COLOURS, MARKERS, SMALL, Style, plain, style_for

BUDGETS = (128, 256, 512, 1024, 2048, 4096)
PAGE_SIZES = (8, 16, 32, 64, 128)
CONSTANT = 16_384  # page size × budget in the paper's grid
SEARCH, CHOSEN, REST = "search", "chosen KV", "parameters"


def cost_table(model: ModelConfig, *, prompt: int, output: int, convention: str, chip: str) -> pd.DataFrame:
    """One sample's cost by page size and budget, in parts, and dense attention's.

    Pages by the published rule, which allows a single one. Columns: `page_size`, `budget`, `search`, `chosen KV` and
    `parameters` (Tera-eFLOPs, arithmetic and reads together), `total`, `of_dense`, `in_paper` (on the paper's grid).
    """
    how = {"prompt_tokens": prompt, "output_tokens": output, "convention": convention, "hardware": chip}
    dense = generation_cost(model, attention=Dense(), **how).total
    rows = []
    for size in PAGE_SIZES:
        for budget in BUDGETS:
            cost = generation_cost(model, attention=LiteSysBlockTopK(pages=budget // size, page_size=size), **how)
            parts = {SEARCH: 0.0, CHOSEN: 0.0, REST: 0.0}
            for name, amount in cost.parts.items():
                parts[SEARCH if "search" in name else REST if "linear" in name else CHOSEN] += float(amount)
            rows.append(
                {"page_size": size, "budget": budget, **parts, "total": float(cost.total)}
                | {"of_dense": float(cost.total / dense), "in_paper": size * budget == CONSTANT}
            )
    return pd.DataFrame(rows)


def accuracy_table(table: Table) -> pd.DataFrame:
    """Dense and block top-k rows of `budget_ablation`'s table, with their `page_size`; of one model."""
    table = table[table["kind"].isin(["dense", "block_topk"])]
    sizes = [parse_policy(spelling).page_size for spelling in table["attention"]]
    return table.assign(page_size=sizes)


def draw(costs: pd.DataFrame, accuracy: pd.DataFrame | None, *, budget: int, width: float) -> Figure:
    style = style_for(pd.DataFrame([{"model": "", "parameters": 1, "attention": "dense"}]), dark=False)
    figure, all_axes = panels(2 if accuracy is None else 3, width, style)
    a, b = all_axes[:2]
    for i, (size, rows) in enumerate(costs.groupby("page_size")):
        line = {"color": LIGHT_COLOURS[i], "marker": MARKERS[i], "lw": 1.2, "ms": 3.2, "mew": 0}
        a.plot(rows["budget"], 100 * rows["of_dense"], label=f"{size}", **line)
    marked = costs[costs["in_paper"]]
    ring = {"marker": "o", "mfc": "none", "mec": style.theme["ink"], "ms": 7, "mew": 0.9, "lw": 0}
    a.plot(marked["budget"], 100 * marked["of_dense"], label="the paper's", zorder=5, **ring)
    a.set(xscale="log", xlabel="KV budget (tokens)", ylabel="Cost, % of dense attention's")
    a.set_ylim(0, None)
    _ticks(a, BUDGETS)
    a.legend(fontsize=SMALL, frameon=False, title="tokens per page", title_fontsize=SMALL, handlelength=1.8)
    title(a, "(a) cost of a budget")
    rows = costs[costs["budget"] == budget]
    for part, dash, mark, colour in zip((SEARCH, CHOSEN, REST), ("-", "--", ":"), "os^", LIGHT_COLOURS, strict=False):
        b.plot(rows["page_size"], rows[part], ls=dash, marker=mark, ms=3.4, mew=0, lw=1.2, color=colour, label=part)
    b.set(xscale="log", xlabel="Tokens per page", ylabel=f"Tera-eFLOPs, budget {budget}")
    b.set_ylim(0, None)
    _ticks(b, PAGE_SIZES)
    b.legend(fontsize=SMALL, frameon=False, handlelength=2.4)
    title(b, "(b) its parts")
    for axes in (a, b):
        plain(axes, style)
        axes.minorticks_off()
    if accuracy is not None:
        _accuracies(all_axes[2], accuracy, style)
    return figure


def _accuracies(axes: Axes, table: Table, style: Style) -> None:
    dense = table[table["kind"] == "dense"]
    for row in dense.itertuples():
        axes.axhline(100 * row.accuracy, color=style.theme["ink"], lw=1, label="dense")
        axes.axhspan(100 * row.low, 100 * row.high, color=style.theme["ink"], alpha=0.1, lw=0)
    sparse = table[table["kind"] == "block_topk"].sort_values(by="budget")
    groups = list(sparse.groupby("page_size"))
    for i, (size, rows) in enumerate(groups):
        x = rows["budget"] * 1.03 ** (i - (len(groups) - 1) / 2)  # side by side, so that intervals do not overlap
        line = {"color": LIGHT_COLOURS[i], "marker": MARKERS[i], "lw": 1.2, "ms": 3.4, "mew": 0}
        axes.plot(x, 100 * rows["accuracy"], label=f"pages of {size:.0f}", **line)
        axes.vlines(x, 100 * rows["low"], 100 * rows["high"], color=LIGHT_COLOURS[i], lw=1, alpha=0.6)
    axes.set(xscale="log", xlabel="KV budget (tokens)", ylabel="Problems solved, pass@1 (%)")
    _ticks(axes, sorted(set(sparse["budget"].astype(int))))
    plain(axes, style)
    axes.minorticks_off()
    axes.legend(fontsize=SMALL, frameon=False)
    title(axes, f"(c) accuracy, {table['model'].iloc[0]}")


def _ticks(axes: Axes, values: Sequence[int]) -> None:
    axes.set_xticks(values, [str(value) for value in values])


def script(arguments: argparse.Namespace) -> None:
    model = ModelConfig.named(arguments.model)
    if arguments.budget not in BUDGETS:
        raise UserError(f"--budget {arguments.budget}: one of {', '.join(map(str, BUDGETS))}")
    how = {"prompt": arguments.prompt, "output": arguments.output, "convention": arguments.convention}
    tables = {"cost": cost_table(model, chip=arguments.hardware, **how)}
    accuracy: Table = None
    if arguments.runs:
        accuracy = accuracy_table(budget_ablation(read_runs(arguments)))
        if accuracy["model"].nunique() > 1 or not (accuracy["kind"] == "block_topk").any():
            raise UserError("figure 9 wants runs of one model, block top-k among them")
        tables["accuracy"] = accuracy
    figure = draw(tables["cost"], accuracy, budget=arguments.budget, width=arguments.width)
    write(arguments, "figure_9", figure, tables)


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__, convention="paper", hardware="b200-fp8", runs="none, (a) and (b) alone")
    made.add_argument("--model", default="Qwen/Qwen3-8B", help="whose cost is drawn (%(default)s)")
    made.add_argument("--prompt", type=int, default=256, help="prompt tokens (%(default)s)")
    made.add_argument("--output", type=int, default=16_384, help="generated tokens (%(default)s)")
    made.add_argument("--budget", type=int, default=1024, help="tokens, for the parts shown (%(default)s)")
    run(script, made, argv)


if __name__ == "__main__":
    main()
