"""Seconds per token of whole-model decoding over context, batch and devices, with the cost model's prediction.

    python experiments/benchmarks/end_to_end.py --json out.json && kinetics calibrate --out profile.json
    python experiments/benchmarks/step_scaling.py out.json --profile profile.json --out docs/results

(a) over the context, at the batch with most contexts; (b) over the batch, at the context with most batches. Marks are
measurements of end_to_end.py; a solid line is the profile's step time, a dotted one the bytes of a step at the
bandwidth measured in the same run. Rings: a step's CPU seconds divided by the cores, which is what a step would take if
it kept all cores busy; they show how much other work slowed the marks. (c) over devices: a prediction from data sheets,
two all-reduces a layer included; none of it is measured. Writes step_scaling.png and .csv.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from decode_bench.points import ENGINE, Point, Settings, shape
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kinetics_jax.costs.hardware import Hardware, hardware
from kinetics_jax.costs.step_time import step_seconds
from kinetics_jax.files import write_atomic
from kinetics_jax.report.figure_style import LIGHT_COLOURS, SMALL, blank, handle, plain, save_figure, style_for

Table = Any  # a pandas DataFrame: its annotations do not say what indexing one returns
COLOURS: dict[str, str] = dict(zip(ENGINE, LIGHT_COLOURS, strict=False))
NAMES = {"dense": "dense", "sparse": "block top-k"}
DEVICES = (1, 2, 4, 8)
FLEET = ("Qwen/Qwen3-8B", "h100", 8, 32_768)  # model, chip, sequences and tokens of (c): what one chip holds
POINTS = 40  # of a line


def profile_of(path: Path) -> Hardware:
    """A hardware profile, from its file or from the JSON that `kinetics calibrate --json` prints."""
    content = json.loads(path.read_text())
    return Hardware(**content["hardware"]) if "hardware" in content else hardware(path)


def predicted(settings: Settings, point: Point, chip: Hardware) -> float:
    """Seconds of a step by the cost model."""
    config = shape(point.model, point.layers)
    return float(
        step_seconds(
            config,
            settings.policy(point.runner, config),
            chip,
            contexts=np.full(point.batch, point.context + (settings.steps + 1) // 2),
            width=point.context + settings.steps,
            kv_bytes=settings.itemsize,
            weight_bytes=settings.itemsize,
        )
    )


def measured_rows(results: dict[str, Any]) -> Table:
    """The engine's measurements, the last of each point."""
    rows = [
        row for row in results["rows"] if row["row"] == "point" and row["runner"] in ENGINE and row["status"] == "ok"
    ]
    table = pd.DataFrame(rows).drop_duplicates(["model", "layers", "runner", "batch", "context"], keep="last")
    return table[["model", "layers", "runner", "batch", "context", "seconds", "cpu_seconds"]]


def over(table: Table, axis: str) -> Table:
    """The rows of a panel: at the value of the other axis with most values of this one; of several, the largest."""
    other = "batch" if axis == "context" else "context"
    counts = table.groupby(other)[axis].nunique()
    best = max(counts.index, key=lambda value: (counts[value], value))
    return table[table[other] == best].sort_values(axis)


def line(rows: Table, axis: str, settings: Settings, chip: Hardware, bandwidth: float) -> Table:
    """Milliseconds per token over `axis`: the measurements, and predictions at POINTS between their ends."""
    points = []
    for runner, mine in rows.groupby("runner"):
        first = mine.iloc[0]
        between = np.rint(np.geomspace(mine[axis].min(), mine[axis].max(), POINTS)).astype(int)
        for value in np.union1d(between, mine[axis]):
            at = {"batch": int(first["batch"]), "context": int(first["context"]), axis: int(value)}
            point = Point(first["model"], int(first["layers"]), str(runner), **at)
            here = mine[mine[axis] == value]
            per_token = 1e3 / point.batch
            points.append(
                {
                    "panel": axis,
                    "runner": runner,
                    **at,
                    "predicted ms": per_token * predicted(settings, point, chip),
                    "byte limit ms": per_token * settings.step_bytes(point) / bandwidth,
                    "measured ms": per_token * here["seconds"].iloc[0] if len(here) else np.nan,
                    "measured cpu ms": per_token * here["cpu_seconds"].iloc[0] if len(here) else np.nan,
                }
            )
    return pd.DataFrame(points)


def fleet(settings: Settings) -> Table:
    """Milliseconds per token predicted from data sheets for one to eight devices."""
    model, chip, batch, context = FLEET
    config = shape(model)
    rows = []
    for runner in ENGINE:
        for devices in DEVICES:
            seconds = step_seconds(
                config, settings.policy(runner, config), hardware(chip), contexts=np.full(batch, context), chips=devices
            )
            at = {"panel": "devices", "runner": runner, "batch": batch, "context": context, "devices": devices}
            rows.append({**at, "predicted ms": 1e3 * float(seconds) / batch})
    return pd.DataFrame(rows)


def draw(table: Table, about: str, cores: int | None, width: float) -> Figure:
    style = style_for(pd.DataFrame([{"model": "", "parameters": 1, "attention": "dense"}]), dark=False)
    figure = blank(width, 2.0 * width, style)
    grid: list[Axes] = list(figure.subplots(3, 1))
    for axes, axis, letter in zip(grid, ("context", "batch", "devices"), "abc", strict=True):
        rows = table[table["panel"] == axis]
        for runner, mine in rows.groupby("runner"):
            colour = COLOURS[str(runner)]
            mark = "o" if runner == "dense" else "s"
            if axis == "devices":
                axes.plot(mine[axis], mine["predicted ms"], color=colour, lw=1.4, marker=mark, ms=3, mfc="none")
                continue
            axes.plot(mine[axis], mine["predicted ms"], color=colour, lw=1.4)
            axes.plot(mine[axis], mine["byte limit ms"], color=colour, lw=1.1, ls=(0, (1, 1)))
            axes.plot(mine[axis], mine["measured ms"], color=colour, lw=0, marker=mark, ms=4.5, mew=0)
            if cores:
                cpu = mine["measured cpu ms"] / cores
                axes.plot(mine[axis], cpu, color=colour, lw=0, marker=mark, ms=4.5, mfc="none", mew=0.8)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.margins(x=0.07, y=0.1)
        ticks = sorted(rows[rows["measured ms"].notna()][axis].unique()) if axis != "devices" else list(DEVICES)
        axes.set_xticks(ticks, [f"{int(tick):,}" for tick in ticks])
        axes.minorticks_off()
        low, high = axes.get_ylim()
        steps = [size * 10.0**power for power in range(-4, 6) for size in (1, 2, 5)]
        shown = [step for step in steps if low <= step <= high]
        axes.set_yticks(shown, [f"{step:g}" for step in shown])
        plain(axes, style)
        first = rows.iloc[0]
        model, chip, *_ = FLEET
        at = {
            "context": f"batch {first['batch']}",
            "batch": f"{first['context']:,} tokens in each cache",
            "devices": f"predicted for {model.partition('/')[2]} on {chip.upper()}s,\nbatch {first['batch']}, "
            f"{first['context']:,} tokens; not measured",
        }[axis]
        words = {"context": "Tokens in the cache", "batch": "Batch", "devices": "Devices"}[axis]
        axes.set(xlabel=words, ylabel="ms per token")
        where = at if axis == "devices" else f"{about}, {at}"
        axes.set_title(f"({letter}) {where}", fontsize=SMALL, loc="left")
    kinds = [handle(color=COLOURS[runner], lw=3, label=NAMES[runner]) for runner in ENGINE]
    ink = style.theme["ink"]
    kinds += [
        handle(color=ink, lw=1.4, label="cost model"),
        handle(color=ink, lw=1.1, ls=(0, (1, 1)), label="byte limit"),
        handle(color=ink, lw=0, marker="o", ms=4.5, mew=0, label="measured"),
    ]
    if cores:
        kinds.append(handle(color=ink, lw=0, marker="o", ms=4.5, mfc="none", mew=0.8, label="its CPU time / cores"))
    figure.legend(handles=kinds, loc="outside lower center", ncols=3, fontsize=SMALL, frameon=False, handlelength=2)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=Path, help="the --json file of end_to_end.py")
    parser.add_argument("--profile", type=Path, required=True, help="profile of the same device, by kinetics calibrate")
    parser.add_argument("--model", help="default: the first one measured")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder of the PNG and the CSV (%(default)s)")
    parser.add_argument("--width", type=float, default=3.3, help="inches (%(default)s)")
    arguments = parser.parse_args()
    results = json.loads(arguments.measured.read_text())
    fields = {field: results["setup"][field] for field in ("page_size", "budget", "steps", "itemsize")}
    settings = Settings(**fields)
    chip, table = profile_of(arguments.profile), measured_rows(results)
    model = arguments.model or table["model"].iloc[0]
    table = table[table["model"] == model]
    parts = [line(over(table, axis), axis, settings, chip, results["bandwidth"]) for axis in ("context", "batch")]
    drawn = pd.concat([*parts, fleet(settings)], ignore_index=True)
    layers = int(table["layers"].iloc[0])
    about = f"{model}" + ("" if layers == shape(model).num_layers else f", {layers} layers")
    figure = draw(drawn, about, results["setup"].get("cores"), arguments.width)
    arguments.out.mkdir(parents=True, exist_ok=True)
    save_figure(figure, arguments.out / "step_scaling.png")
    write_atomic(arguments.out / "step_scaling.csv", drawn.to_csv(index=False, float_format="%.6g"))
    print(f"{arguments.out}/: step_scaling.png, step_scaling.csv")


if __name__ == "__main__":
    main()
