"""Figure 3, from costs alone: attention, not parameters, dominates the cost of generation; and what follows for size.

    python experiments/figures/figure_3.py
    python experiments/figures/figure_3.py --hardware h100 --models Qwen/Qwen3-4B Qwen/Qwen3-32B

Illustrates the statements that (a) attention outweighs the parameters 10 to 1000 times from a few thousand tokens on
(the ratio Φ, `kinetics_jax.costs.cost.phi`), since (b) KV memory grows far slower than parameters do; so that (c) at
equal FLOPs length trades against size nearly one for one, while (d) at equal eFLOPs a small model affords hardly more
tokens than a large one. (c, d): the longest answer that a cost buys in one trial,
`kinetics_jax.analysis.power_laws.iso_cost`. The page of the paper's authors shows such curves behind measured
frontiers; the paper's own caption was not available.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from paper_figures.common import QWEN3, Table, label_ends, panels, parser, run, title, write

from kinetics_jax.analysis.power_laws import iso_cost
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import phi
from kinetics_jax.costs.hardware import Hardware, hardware
from kinetics_jax.report.figure_style import plain, style_for

LENGTHS = 2 ** np.arange(8, 18)  # output tokens
NO_READS = 1e-12  # FLOP/byte: reads cost nothing
FLOPS = (10.0, 100.0, 1000.0)  # Tera-FLOPs
EFLOPS = (100.0, 1e3, 1e4, 1e5)  # Tera-eFLOPs; 4500 are a second of a B200 in fp8


def ratio(models: Sequence[ModelConfig], prompt: int, intensity: float) -> pd.DataFrame:
    """Φ of every model and output length."""
    return pd.DataFrame(
        [
            {"model": model.name, "parameters": model.active_parameters, "output_tokens": int(n), "phi": float(value)}
            for model in models
            for n, value in zip(LENGTHS, phi(model, prompt, LENGTHS, intensity), strict=True)
        ]
    )


def kv_memory(models: Sequence[ModelConfig]) -> pd.DataFrame:
    """Bytes of KV per token in bf16, and the power law c · parametersᵇ through them (least squares in logarithms)."""
    table = pd.DataFrame(
        [
            {"model": m.name, "parameters": m.active_parameters, "kv_bytes_per_token": 2 * m.kv_elements_per_token}
            for m in models
        ]
    )
    log_size, log_bytes = np.log(table["parameters"]), np.log(table["kv_bytes_per_token"])
    power = np.polyfit(log_size, log_bytes, 1) if len(models) > 1 else [0.0, log_bytes[0]]
    return table.assign(exponent=power[0], fitted=np.exp(np.polyval(power, log_size)))


def affordable(
    models: Sequence[ModelConfig], costs: Sequence[float], law: str, *, prompt: int, convention: str, chip: Hardware
) -> pd.DataFrame:
    """The most output tokens that one trial affords at each cost; 0 if not even the first.

    `law`: "FLOPs" counts computation, "eFLOPs" memory too.
    """
    intensity = chip.intensity if law == "eFLOPs" else NO_READS
    how = {"prompt_tokens": prompt, "convention": convention, "intensity": intensity}
    return pd.DataFrame(
        [
            {"model": model.name, "parameters": model.active_parameters, "law": law, "cost": c, "output_tokens": n}
            for model in models
            for c, n in zip(costs, iso_cost(model, costs, **how), strict=True)
        ]
    )


def draw(phis: Table, memory: Table, iso: Table, *, width: float) -> Figure:
    style = style_for(memory.assign(attention="dense"), dark=False)
    short = {name: name.rpartition("-")[2] if name in QWEN3 else name for name in style.colours}
    figure, (a, b, c, d) = panels(4, width, style)
    ends = {}
    for (model, rows), mark in zip(phis.groupby("model", sort=False), "osD^vPXp*", strict=False):
        colour = style.colours[str(model)]
        a.plot(rows["output_tokens"], rows["phi"], color=colour, lw=1.2, marker=mark, ms=2.6, mew=0)
        ends[short[str(model)]] = rows["output_tokens"].iloc[-1], rows["phi"].iloc[-1]
    a.axhline(1, color=style.theme["ink"], lw=0.8, ls=(0, (3, 2)))
    a.text(LENGTHS[-1], 0.85, "attention = parameters", fontsize=7, ha="right", va="top")
    a.set(xscale="log", yscale="log", xlabel="Generated tokens", ylabel="Attention ÷ parameter cost, Φ")
    _powers_of_two(a, [int(n) for n in LENGTHS[::3]])
    title(a, "(a) what an answer's cost is")
    for row, mark in zip(memory.itertuples(), "osD^vPXp*", strict=False):
        b.plot(row.parameters / 1e9, row.kv_bytes_per_token / 1024, mark, color=style.colours[row.model], ms=4.5, mew=0)
    line = memory.sort_values(by="parameters")
    b.plot(line["parameters"] / 1e9, line["fitted"] / 1024, color=style.theme["ink"], lw=0.9, ls=(0, (3, 2)), zorder=1)
    power = line["exponent"].iloc[0]
    law = f"∝ size$^{{{power:.2f}}}$: twice the model,\n{2**power:.2f} times the memory"
    b.text(0.04, 0.96, law, transform=b.transAxes, fontsize=7, va="top", linespacing=1.3)
    b.set(xscale="log", yscale="log", xlabel="Parameters (10⁹)", ylabel="KV memory (KiB per token)")
    _plain_ticks(b.yaxis, [64, 128, 256, 512, 1024])
    title(b, "(b) KV memory grows slowly")
    for axes, law, name in ((c, "FLOPs", "(c) equal Tera-FLOPs"), (d, "eFLOPs", "(d) equal Tera-eFLOPs")):
        _contours(axes, iso[iso["law"] == law])
        axes.set(xlabel="Parameters (10⁹)", ylabel="Generated tokens")
        title(axes, name)
    low = min(axes.get_ylim()[0] for axes in (c, d))
    high = max(axes.get_ylim()[1] for axes in (c, d))
    for axes in (a, b, c, d):
        plain(axes, style)
        axes.minorticks_off()
    for axes in (c, d):
        axes.set_ylim(low, high)
    for axes in (b, c, d):
        _plain_ticks(axes.xaxis, [0.5, 1, 2, 4, 8, 16, 32])
    figure.canvas.draw()
    label_ends(a, ends, {short[name]: colour for name, colour in style.colours.items()})
    return figure


def _contours(axes: Axes, rows: Table) -> None:
    """Lines of equal cost over model size, darker for more, each with its cost at its left end."""
    shades = ("#56a0d3", "#2f7ebc", "#0b559f", "#08306b")
    for (cost, line), shade, dash in zip(
        rows.groupby("cost"), shades, ("-", (0, (5, 1.5)), (0, (3, 1)), "-."), strict=False
    ):
        axes.plot(
            line["parameters"] / 1e9, line["output_tokens"], color=shade, marker="o", ms=2.6, mew=0, lw=1.2, ls=dash
        )
        axes.annotate(
            f"{cost:g}" if cost < 1000 else f"10$^{np.log10(cost):.0f}$" if np.log10(cost) % 1 == 0 else f"{cost:.0e}",
            (line["parameters"].iloc[-1] / 1e9, line["output_tokens"].iloc[-1]),
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=7,
            va="center",
            color=shade,
            annotation_clip=False,
        )
    axes.set(xscale="log", yscale="log")


def _plain_ticks(axis: Axis, values: Sequence[float]) -> None:
    """Sets ticks at the values within the axis' limits, written in full."""
    low, high = axis.get_view_interval()
    shown = [value for value in values if low <= value <= high]
    axis.set_ticks(shown, [f"{value:g}" for value in shown])


def _powers_of_two(axes: Axes, values: Sequence[int]) -> None:
    axes.set_xticks(values, [f"{n // 1024}K" if n >= 1024 else str(n) for n in values])


def script(arguments: argparse.Namespace) -> None:
    models = [ModelConfig.named(name) for name in arguments.models]
    chip = hardware(arguments.hardware)
    phis = ratio(models, arguments.prompt, chip.intensity)
    memory = kv_memory(models)
    how = {"prompt": arguments.prompt, "convention": arguments.convention, "chip": chip}
    iso = pd.concat([affordable(models, costs, law, **how) for law, costs in (("FLOPs", FLOPS), ("eFLOPs", EFLOPS))])
    figure = draw(phis, memory, iso, width=arguments.width)
    write(arguments, "figure_3", figure, {"ratio": phis, "kv_memory": memory, "affordable": iso})


def main(argv: Sequence[str] | None = None) -> None:
    made = parser(__doc__, convention="paper", hardware="b200-fp8")
    made.add_argument("--models", nargs="+", default=list(QWEN3), help="published names (%(default)s)")
    made.add_argument("--prompt", type=int, default=256, help="prompt tokens (%(default)s)")
    run(script, made, argv)


if __name__ == "__main__":
    main()
