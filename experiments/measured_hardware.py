"""How long and how much energy real engines take: profiles fitted to public measurements, and how far off they are.

    python experiments/measured_hardware.py ../shared/data/public --profiles kinetics_jax/costs/measured.json \\
        --json experiments/results/measured_hardware.json --figure docs/results/hardware.png

The folder holds `ml_energy/measured_decode.csv` with its histograms (The ML.ENERGY Benchmark) and
`qwen3_speed/qwen3_speed_h20_batch1.csv` (Qwen), the columns as `kinetics_jax.costs.public_measurements` reads them.
Errors are of models that were left out of the fit. The profiles ship with the package.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kinetics_jax.costs.hardware import HARDWARE, SCHEMA
from kinetics_jax.costs.measured_fit import (
    LEAST_MODELS,
    HeldOut,
    StepModel,
    data_sheet_seconds,
    fit_measured,
    held_out,
    strata,
    summary,
    work_amounts,
)
from kinetics_jax.costs.measurements import Measured
from kinetics_jax.costs.public_measurements import CONTEXTS, read_measurements
from kinetics_jax.costs.step_fit import relative_nnls
from kinetics_jax.files import write_atomic

ML_ENERGY = "The ML.ENERGY Benchmark (github.com/ml-energy/leaderboard, 2026-02-27)"
QWEN = "Qwen's speed benchmark of Qwen3 (github.com/QwenLM/Qwen3)"
STRATUM = ("gpu", "engine", "weights", "chips", "workload")
CONTEXT_SCALES = (0.75, 1.25)  # of the contexts assumed, to see what hangs on them


class Fit(NamedTuple):
    """A fit: its name, the rows it is made of, where they are from, whether it ships as hardware of that name, and what
    that then has to say."""

    name: str
    of: Callable[[Measured], bool]
    source: str
    ships: bool = False
    note: str = ""


def _waits_for_its_host(row: Measured) -> bool:
    """Single B200s under GPQA: see `floor`."""
    return row.gpu == "b200" and row.chips == 1 and row.workload == "gpqa"


def _vllm(gpu: str, *weights: str) -> Callable[[Measured], bool]:
    return lambda row: row.gpu == gpu and row.weights in weights and not _waits_for_its_host(row)


def _qwen(engine: str, quantisation: str) -> Callable[[Measured], bool]:
    return lambda row: (row.gpu, row.engine, row.workload) == ("h20", engine, quantisation)


FITS = (
    Fit("h100-vllm", _vllm("h100", "bfloat16"), ML_ENERGY, ships=True),
    Fit(
        "b200-vllm",
        _vllm("b200", "bfloat16"),
        ML_ENERGY,
        ships=True,
        note="; without single B200s under GPQA, which wait for their host",
    ),
    Fit("h20-sglang", _qwen("SGLang", "BF16"), QWEN, ships=True),
    Fit("h100-vllm with float8", _vllm("h100", "bfloat16", "float8"), ML_ENERGY),
    Fit("b200-vllm with float8", _vllm("b200", "bfloat16", "float8"), ML_ENERGY),
    Fit("b200-vllm waiting for its host", _waits_for_its_host, ML_ENERGY),
    *(
        Fit(f"h20-{engine.lower()} {quantisation}", _qwen(engine, quantisation), QWEN)
        for engine, quantisation in (
            ("SGLang", "FP8"),
            ("SGLang", "AWQ-INT4"),
            ("SGLang", "GPTQ-Int8"),
            ("SGLang", "GPTQ-INT4"),
            ("Transformers", "BF16"),
            ("Transformers", "FP8"),
            ("Transformers", "AWQ-INT4"),
            ("Transformers", "GPTQ-Int8"),
        )
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="the folder of public measurements")
    parser.add_argument("--json", type=Path, help="write factors and errors here")
    parser.add_argument("--profiles", type=Path, help="write the profiles that ship here")
    parser.add_argument("--figure", type=Path, help="draw the errors here (.png)")
    arguments = parser.parse_args()
    energy = read_measurements(arguments.data / "ml_energy" / "measured_decode.csv")
    speed = read_measurements(arguments.data / "qwen3_speed" / "qwen3_speed_h20_batch1.csv")
    rows = [*energy.rows, *speed.rows]
    fits = {fit.name: _fitted(fit, rows) for fit in FITS}
    record = {
        "sources": [ML_ENERGY, QWEN],
        "measurements": {
            "used": {"ml_energy": len(energy.rows), "qwen": len(speed.rows)},
            "left_out": {"ml_energy": sum(energy.left_out.values()), "qwen": sum(speed.left_out.values())},
            "why": dict(sorted((energy.left_out + speed.left_out).items())),
            "by_model": dict(sorted(Counter(row.model for row in rows).items())),
        },
        "contexts": _contexts(energy.rows),
        "data_sheet": _data_sheet(rows),
        "fits": {name: fit.record for name, fit in fits.items()},
        "straight_line": _straight_line(rows),
        "if_contexts_were": _context_sensitivity(rows),
        "floor": _floor(rows, fits),
    }
    record = _rounded(record)
    _print(record)
    if arguments.json:
        write_atomic(arguments.json, json.dumps(record, indent=1) + "\n")
    if arguments.profiles:
        shipped = [_profile(fit, fits[fit.name]) for fit in FITS if fit.ships]
        write_atomic(arguments.profiles, json.dumps({"profiles": shipped}, indent=1) + "\n")
    if arguments.figure:
        _draw(rows, [error for fit in fits.values() for error in fit.own_errors], arguments.figure)


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A fit, its errors on left-out models (none where there are too few), those of them that no earlier fit has, and
    its record.
    """

    model: StepModel
    rows: list[Measured]
    errors: list[HeldOut]
    own_errors: list[HeldOut]
    record: dict[str, Any]


def _fitted(fit: Fit, rows: Sequence[Measured]) -> Fitted:
    mine = [row for row in rows if fit.of(row)]
    model = fit_measured(mine)
    enough = len({row.geometry for row in mine}) >= LEAST_MODELS
    errors = held_out(mine) if enough else []
    own = [error for error in errors if error.row.weights == "float8"] if "with float8" in fit.name else errors
    record: dict[str, Any] = {
        "rows": len(mine),
        "models": len({row.geometry for row in mine}),
        "fitted": list(model.free),
        "times": dict(model.times),
        "energy": None if model.energy is None else dict(zip(("watts", "flop", "byte"), model.energy, strict=True)),
    }
    if own:
        by = strata(own, lambda row: tuple(getattr(row, name) for name in STRATUM))
        record["held_out"] = summary(own)
        record["strata"] = [dict(zip(STRATUM, key, strict=True)) | values for key, values in by.items()]
    return Fitted(model, mine, errors, own, record)


def _profile(fit: Fit, fitted: Fitted) -> dict[str, Any]:
    """The fields of a shipped profile, as a hardware file has them."""
    chip = HARDWARE[fitted.rows[0].gpu]
    errors = fitted.record["held_out"]
    source = (
        f"{fitted.rows[0].engine} on {chip.name}, fitted to {len(fitted.rows)} measurements of {fit.source}; on models "
        f"that were left out {errors['median_error']:.1%} off in the median, {errors['worst_error']:.0%} at worst"
        f"{fit.note}"
    )
    fields = dataclasses.asdict(fitted.model.hardware(fit.name, chip, source))
    return {"schema": SCHEMA, **_rounded(fields, 5), "record": _rounded(fitted.record)}


def _contexts(rows: Sequence[Measured]) -> dict[str, Any]:
    """What was assumed of contexts, and the mean context of each model's GPQA rows that follows."""
    gpqa = {row.model: row.context for row in rows if row.workload == "gpqa"}
    assumed = {task: {"prompt": of.prompt, "share_of_mean_output": of.share} for task, of in CONTEXTS.items()}
    return {"assumed": assumed, "gpqa": dict(sorted(gpqa.items()))}


def _data_sheet(rows: Sequence[Measured]) -> dict[str, Any]:
    """How many times the roofline of the data sheet measurements took: median and 10th to 90th percentile, by group."""
    groups: dict[str, Callable[[Measured], bool]] = {
        "one H100, bfloat16, GPQA": lambda row: (row.gpu, row.chips, row.workload) == ("h100", 1, "gpqa"),
        "H100": lambda row: row.gpu == "h100",
        "B200": lambda row: row.gpu == "b200",
        "H100 and B200": lambda row: row.engine == "vLLM",
        "H100 and B200, Qwen3": lambda row: row.engine == "vLLM" and row.model.startswith("Qwen/"),
        "H20, batch 1, SGLang": lambda row: row.engine == "SGLang",
        "H20, batch 1, SGLang, 16 bits": lambda row: row.engine == "SGLang" and row.workload == "BF16",
        "H20, batch 1, Transformers": lambda row: row.engine == "Transformers",
        "all but Transformers": lambda row: row.engine != "Transformers",
        "all": lambda row: True,
    }
    result = {}
    for name, of in groups.items():
        ratio = [row.seconds / data_sheet_seconds(row) for row in rows if of(row)]
        low, median, high = np.quantile(ratio, (0.1, 0.5, 0.9))
        result[name] = {"rows": len(ratio), "times": median, "low": low, "high": high}
    return result


def _context_sensitivity(rows: Sequence[Measured]) -> dict[str, Any]:
    """Errors on single H100s under GPQA if all contexts of vLLM's rows had been other ones."""
    result = {}
    for scale in CONTEXT_SCALES:
        scaled = [
            dataclasses.replace(row, context=max(1, round(scale * row.context))) for row in rows if FITS[0].of(row)
        ]
        errors = [error for error in held_out(scaled) if error.row.chips == 1 and error.row.workload == "gpqa"]
        result[f"{scale:g} of what is assumed"] = summary(errors)
    return result


def _straight_line(rows: Sequence[Measured]) -> dict[str, Any]:
    """What an offset and a factor on bytes over bandwidth achieve on one H100: fitted to GPQA's rows but those of the
    model, or to both workloads'; the errors on each workload.
    """
    alone = [row for row in rows if FITS[0].of(row) and row.chips == 1]
    reads = [sum(v for name, v in work_amounts(row).items() if name.endswith("_reads")) for row in alone]
    columns = np.stack([np.ones(len(alone)), np.array(reads) / HARDWARE["h100"].bandwidth], axis=1)
    seconds = np.array([row.seconds for row in alone])
    gpqa = np.array([row.workload == "gpqa" for row in alone])
    result = {}
    for name, seen in (("fitted to GPQA", gpqa), ("fitted to both", np.full(len(alone), True))):
        errors = np.empty(len(alone))
        for index, row in enumerate(alone):
            others = seen & np.array([other.geometry != row.geometry for other in alone])
            errors[index] = abs(columns[index] @ relative_nnls(columns[others], seconds[others]) / row.seconds - 1)
        for task, of in (("gpqa", gpqa), ("lm-arena-chat", ~gpqa)):
            result[f"{name}, {task}"] = {
                "median_error": float(np.median(errors[of])),
                "worst_error": float(np.max(errors[of])),
            }
    return result


def _floor(rows: Sequence[Measured], fits: dict[str, Fitted]) -> dict[str, Any]:
    """What single B200s under GPQA do while their step takes longer than all others' fit says: they draw little power.

    The energy that the fit does not account for, over the seconds that it does not.
    """
    waiting = [row for row in rows if _waits_for_its_host(row)]
    model = fits["b200-vllm"].model
    predicted, joules = model.seconds(waiting), model.joules(waiting)
    assert joules is not None
    more = np.array([row.seconds for row in waiting]) - predicted
    watts = np.array([row.joules - each for row, each in zip(waiting, joules, strict=True) if row.joules]) * [
        row.batch for row in waiting
    ]
    small = np.array([row.batch <= 32 for row in waiting])
    return {
        "rows": len(waiting),
        "seconds_at_batch_8": {row.model: row.seconds for row in waiting if row.batch == 8},
        "seconds_more_than_fitted": float(np.median(more)),
        "watts_meanwhile": float(np.median(watts / more)),
        "watts_meanwhile_up_to_batch_32": float(np.median((watts / more)[small])),
        "watts_of_steps": model.energy[0] if model.energy else None,
    }


def _rounded(value: Any, digits: int = 4) -> Any:
    """The same with floats to so many digits."""
    if isinstance(value, dict):
        return {name: _rounded(each, digits) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each, digits) for each in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def table(record: dict[str, Any]) -> list[str]:
    """The strata of every fit as lines of Markdown, as docs/results/hardware.md has them."""
    lines = [
        "| fit | chips, workload | rows | models | seconds: median, worst | joules: median, worst | × data sheet |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, fit in record["fits"].items():
        for stratum in fit.get("strata", ()):
            energy = "-"
            if stratum["median_joules_error"] is not None:
                energy = f"{stratum['median_joules_error']:.1%}, {stratum['worst_joules_error']:.1%}"
            lines.append(
                f"| {name} | {stratum['chips']}, {stratum['workload']} | {stratum['rows']} | {stratum['models']} | "
                f"{stratum['median_error']:.1%}, {stratum['worst_error']:.1%} | {energy} | "
                f"{stratum['times_data_sheet']:.2f} |"
            )
        if "strata" not in fit:
            lines.append(f"| {name} | - | {fit['rows']} | {fit['models']} | too few models | - | - |")
    return lines


def _print(record: dict[str, Any]) -> None:
    print("\n".join(table(record)))
    print("\nThe data sheet's roofline:")
    for name, group in record["data_sheet"].items():
        print(f"  {name}: {group['times']:.2f} x ({group['low']:.2f} ... {group['high']:.2f}), {group['rows']} rows")
    print(f"\nfloor: {record['floor']}")
    print(f"if contexts were: {record['if_contexts_were']}")


def _draw(rows: Sequence[Measured], errors: Sequence[HeldOut], path: Path) -> None:
    """Left: measured over the data sheet's seconds. Right: predicted over measured, for models left out."""
    from matplotlib.figure import Figure

    from kinetics_jax.report.figure_style import LIGHT, LIGHT_COLOURS, SMALL, handle, save_figure

    kinds = (
        ("one H100", "o", LIGHT_COLOURS[0], lambda row: row.gpu == "h100" and row.chips == 1),
        ("2 to 8 H100", "D", LIGHT_COLOURS[5], lambda row: row.gpu == "h100" and row.chips > 1),
        ("B200", "^", LIGHT_COLOURS[1], lambda row: row.gpu == "b200" and not _waits_for_its_host(row)),
        ("B200 waiting for its host", "v", LIGHT_COLOURS[4], _waits_for_its_host),
        ("H20", "s", LIGHT_COLOURS[2], lambda row: row.engine == "SGLang"),
    )
    figure = Figure(figsize=(6.4, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    for _, mark, colour, of in kinds:
        dots: dict[str, Any] = {"ls": "", "marker": mark, "ms": 3, "mew": 0, "color": colour, "alpha": 0.6}
        mine = [row for row in rows if of(row)]
        left.plot([row.batch for row in mine], [row.seconds / data_sheet_seconds(row) for row in mine], **dots)
        unseen = [error for error in errors if of(error.row)]
        right.plot([error.row.batch for error in unseen], [1 + error.seconds for error in unseen], **dots)
    for axes, title, ticks in (
        (left, "Measured over the data sheet's roofline", (1, 2, 4, 8, 16, 32, 64)),
        (right, "Fitted over measured, model left out", (0.5, 0.75, 1, 1.25, 1.5)),
    ):
        axes.axhline(1, color=LIGHT["ink"], lw=0.8)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks((1, 8, 64, 512, 4096), labels=("1", "8", "64", "512", "4096"))
        axes.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        axes.set_ylim(ticks[0] * 0.8, ticks[-1] * 1.2)
        axes.minorticks_off()
        axes.set_title(title, fontsize=SMALL + 1)
        axes.set_xlabel("sequences decoded side by side", fontsize=SMALL)
        axes.tick_params(labelsize=SMALL)
        axes.grid(color=LIGHT["faint"], lw=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    marks = [handle(lw=0, marker=mark, ms=4, mew=0, color=colour, label=label) for label, mark, colour, _ in kinds]
    figure.legend(handles=marks, ncols=5, loc="outside lower center", fontsize=SMALL, frameon=False)
    save_figure(figure, path)


if __name__ == "__main__":
    main()
