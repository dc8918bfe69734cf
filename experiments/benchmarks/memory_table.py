"""The memory plan of every Qwen3 size on H100, H200 and TPU v5e, dense and block top-k, compiled without the devices.

    python experiments/benchmarks/memory_table.py [--out FILE] [--page docs/results/memory.md]

Each row takes the fewest chips (1, 2, 4 or 8) that hold the weights and 8 sequences of 32K tokens, or 8 chips if even
they hold fewer; the batch is the largest that fits. Needs Python 3.12 with jax >= 0.11, jax-cuda13-plugin,
jax-cuda13-pjrt, ptxas and libtpu (`kinetics doctor --model … --device …` says what is missing). Prefill, which policies
change only by the summaries it writes, is compiled for dense attention alone. Writes results/memory_plan.json beside
this script; rows that are in it already are not compiled again. --page writes the table into a page, the figure beside
it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import PUBLISHED, ModelConfig
from kinetics_jax.costs.hardware import HARDWARE
from kinetics_jax.costs.memory import RESERVE, fits
from kinetics_jax.devices.memory_plan import CHIPS, DEVICES, PROGRAMS, MemoryPlanError, memory_plan
from kinetics_jax.files import write_atomic

CONTEXT, MIN_SEQUENCES = 32_768, 8
TABLE_DEVICES = ("h100", "h200", "v5e")
POLICIES: tuple[AttentionPolicy, ...] = (Dense(), BlockTopK(budget=1024, page_size=64))
RESULTS = Path(__file__).parent / "results" / "memory_plan.json"
MARKS = "<!-- memory_table.py writes what is between these marks -->"
HEADS = ("Model", "Device", "Attention", "Batch", "Weights, GB", "KV, GB", "Temp decode, MB (of KV)")
HEADS += ("Temp prefill, MB", "Peak, GB", "Compile decode / prefill, s (CPU s)", "Expected step, ms", "Tokens/s")


def chips_for(config: ModelConfig, device: str, policy: AttentionPolicy) -> int:
    """The fewest chips that hold MIN_SEQUENCES; else the most chips if they hold one sequence; else 0."""
    room = {n: fits(config, DEVICES[device], tokens=CONTEXT, chips=n, attention=policy).sequences for n in CHIPS}
    return next((n for n in CHIPS if room[n] >= MIN_SEQUENCES), CHIPS[-1] if room[CHIPS[-1]] else 0)


def row_of(size: str, device: str, policy: AttentionPolicy) -> dict[str, Any]:
    """A row of the table: the plan, or why there is none."""
    config = ModelConfig.named(size)
    setting = {"size": size, "device": device, "attention": str(policy), "jax": importlib.metadata.version("jax")}
    programs = PROGRAMS if policy == Dense() else ("decode",)
    if chips := chips_for(config, device, policy):
        try:
            return setting | memory_plan(
                config, device, context=CONTEXT, chips=chips, attention=policy, programs=programs
            )
        except MemoryPlanError as refusal:
            return setting | {"chips": chips, "refused": str(refusal)}
    room = fits(config, DEVICES[device], tokens=CONTEXT, chips=CHIPS[-1], attention=policy)
    memory = HARDWARE[DEVICES[device]].memory
    return setting | {"weight_bytes": room.weights, "chips": CHIPS[-1], "memory_bytes": memory, "nothing_fits": True}


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    attention = "dense" if row["attention"] == "dense" else "block top-k"
    first = row["size"], f"{row['chips']} × {row['device']}", attention
    if row.get("nothing_fits"):
        takes = f"weights {row['weight_bytes'] / 1e9:.1f} of {row['memory_bytes'] / 1e9:.0f}"
        return (*first, "nothing fits", takes, *["–"] * (len(HEADS) - 5))
    if "refused" in row:
        return (*first, "refused", *["–"] * (len(HEADS) - 4))
    programs = [row[name] for name in ("decode", "prefill") if name in row]
    times = [f"{each['compile_seconds']:.0f} ({each['compile_cpu_seconds']:.0f})" for each in programs]
    decode, temp_prefill = row["decode"], f"{row['prefill']['temp_bytes'] / 1e6:.0f}" if "prefill" in row else "–"
    return (
        *first,
        f"{row['batch']}",
        f"{decode['weight_bytes'] / 1e9:.2f}",
        f"{decode['cache_bytes'] / 1e9:.1f}",
        f"{decode['temp_bytes'] / 1e6:.0f} ({decode['temp_share']:.2%})",
        temp_prefill,
        f"{max(each['peak_bytes'] for each in programs) / 1e9:.1f}",
        " / ".join(times),
        f"{1e3 * decode['expected_seconds']:.2f}",
        f"{row['batch'] / decode['expected_seconds']:,.0f}",
    )


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = [HEADS, ["---"] * 3 + ["---:"] * (len(HEADS) - 3), *map(cells, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws what share of a chip's memory weights, the dense KV cache and scratch memory take."""
    import pandas as pd

    from kinetics_jax.report.figure_style import LIGHT_COLOURS, SMALL, blank, plain, save_figure, style_for

    style = style_for(pd.DataFrame({"model": [""], "parameters": [1], "attention": ["dense"]}), dark=False)
    figure = blank(3.3, 5.2, style)
    panels = figure.subplots(len(TABLE_DEVICES), 1, sharex=True)
    parts = {"weights": LIGHT_COLOURS[0], "KV cache": LIGHT_COLOURS[5], "temporaries": LIGHT_COLOURS[1]}
    for device, axes in zip(TABLE_DEVICES, panels, strict=True):
        shown = [row for row in rows if row["device"] == device and row["attention"] == "dense"]
        memory = HARDWARE[DEVICES[device]].memory / 100
        for place, row in enumerate(shown):
            if row.get("nothing_fits"):
                axes.text(1, place, f"weights alone take {row['weight_bytes'] / memory:.0f} %", va="center", size=SMALL)
                continue
            if "refused" in row:
                axes.text(1, place, "refused by the compiler", va="center", size=SMALL)
                continue
            temp = max(row[name]["temp_bytes"] for name in ("prefill", "decode"))
            left = 0.0
            taken = (row["decode"]["weight_bytes"], row["decode"]["cache_bytes"], temp)
            for (part, colour), size in zip(parts.items(), taken, strict=True):
                label = part if device == TABLE_DEVICES[0] and not place else None
                axes.barh(place, size / memory, left=left, color=colour, height=0.72, label=label)
                left += size / memory
            axes.text(101.5, place, f"{row['batch']}", va="center", size=SMALL, clip_on=False)
        axes.set_yticks(range(len(shown)), [f"{row['size']}, {row['chips']} ×" for row in shown], fontsize=SMALL)
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlim(0, 100)
        axes.axvline(100 * (1 - RESERVE), color=style.theme["ink"], lw=0.7, ls=":")
        axes.set_title(f"{device.upper() if device[0] == 'h' else 'TPU ' + device}", fontsize=SMALL + 1, loc="left")
        axes.text(101.5, -1, "batch", va="center", size=SMALL, clip_on=False)
        plain(axes, style)
    panels[-1].set_xlabel("Per cent of a chip's memory", fontsize=SMALL + 1)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=SMALL)
    save_figure(figure, path)


def write_page(page: Path, rows: list[dict[str, Any]]) -> None:
    """Replaces the table between the marks of a page."""
    text = page.read_text(encoding="utf-8")
    pattern = f"{re.escape(MARKS)}.*{re.escape(MARKS)}"
    write_atomic(page, re.sub(pattern, lambda _: f"{MARKS}\n\n{markdown(rows)}\n\n{MARKS}", text, flags=re.DOTALL))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="a page with marks around the table; the figure is drawn beside it")
    parser.add_argument("--sizes", nargs="+", choices=list(PUBLISHED), default=list(PUBLISHED))
    parser.add_argument("--devices", nargs="+", choices=TABLE_DEVICES, default=list(TABLE_DEVICES))
    arguments = parser.parse_args()
    stored = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else []
    rows = {(row["size"], row["device"], row["attention"]): row for row in stored}
    order = [(size, device, str(policy)) for size in PUBLISHED for device in TABLE_DEVICES for policy in POLICIES]
    wanted = [key for key in order if key[0] in arguments.sizes and key[1] in arguments.devices]
    policies = {str(policy): policy for policy in POLICIES}
    with tqdm(wanted, unit="row") as bar:
        for key in bar:
            bar.set_description(f"{key[0]} on {key[1]}")
            if key not in rows:
                rows[key] = row_of(key[0], key[1], policies[key[2]])
                listed = [rows[each] for each in order if each in rows]
                write_atomic(arguments.out, json.dumps(listed, indent=1) + "\n")
    listed = [rows[each] for each in order if each in rows]
    print(markdown(listed))
    if arguments.page:
        write_page(arguments.page, listed)
        draw(listed, arguments.page.with_name("memory.png"))


if __name__ == "__main__":
    main()
