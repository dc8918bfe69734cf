"""`kinetics calibrate --from`: a hardware profile from measurements that somebody made, and how far off it is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_jax.cli.arguments import config_of
from kinetics_jax.cli.terminal import say
from kinetics_jax.errors import UserError, shown

if TYPE_CHECKING:
    from kinetics_jax.costs.measured_fit import Floor, StepModel
    from kinetics_jax.costs.measurements import Measured

CONDITIONS = ("model", "gpu", "chips", "batch", "weights", "workload", "engine")  # what --where may say of a row


def profile_from(
    measurements: Path,
    *,
    where: tuple[str, ...],
    out: Path,
    name: str | None,
    price_per_hour: float | None,
    as_json: bool,
) -> None:
    """Fits a profile to the file's rows that meet the conditions, writes it, and prints its error on unseen models."""
    from kinetics_jax.costs.hardware import hardware, save_hardware
    from kinetics_jax.costs.measured_fit import below_data_sheet, fit_measured, in_sample, summary
    from kinetics_jax.costs.public_measurements import read_measurements

    wanted = _conditions(where)
    read = read_measurements(measurements, config_of)
    rows = [row for row in read.rows if all(_said(row, column) in values for column, values in wanted.items())]
    if not rows:
        seen = {column: sorted({_said(row, column) for row in read.rows}) for column in wanted or ("model",)}
        have = "; ".join(column + ": " + shown(", ".join(values), 200) for column, values in seen.items())
        raise UserError(
            f"{shown(str(measurements), 400)}: no measurement that can be priced meets the conditions ({have})"
        )
    for column in ("gpu", "engine"):
        if len(found := sorted({_said(row, column) for row in rows})) > 1:
            raise UserError(
                f"{shown(str(measurements), 400)}: a profile is of one {column}, and there are {', '.join(found)}; "
                f"choose with --where {column}={found[0] or '…'}"
            )
    model = fit_measured(rows)
    chip = hardware(rows[0].gpu)
    if price_per_hour is not None:
        chip = dataclasses.replace(chip, price_per_hour=price_per_hour)
    called = name or "-".join(filter(None, (chip.name, rows[0].engine.lower() or "measured")))
    within, held_out = summary(in_sample(rows)), _held_out_record(rows)
    error = f"{within['median_error']:.1%} off in the median over these"
    if "all" in held_out:
        error += f", {held_out['all']['median_error']:.1%} on models that were left out"
    source = f"fitted by kinetics calibrate to {len(rows)} measurements of {measurements.name}; {error}"
    profile = model.hardware(called, chip, source)
    too_quick = below_data_sheet(rows)
    record = {
        "measurements": len(rows),
        "where": list(where),
        "left_out": dict(read.left_out),
        **_fit_record(model),
        "in_sample": within,
        "held_out": held_out,
        "below_data_sheet": len(too_quick),
    }
    if too_quick:
        say(_too_quick(too_quick, len(rows)))
    save_hardware(out, profile, record=record)
    if as_json:
        print(json.dumps({"hardware": dataclasses.asdict(profile), **record}, indent=1))
        return
    others = len(read.rows) - len(rows)
    print(f"{called}: {len(rows)} measurements; {others} others and {sum(read.left_out.values())} that are not priced")
    for why, count in read.left_out.items():
        print(f"  left out, {count}: {shown(why, 200)}")
    _print_model(model)
    joules = within["median_joules_error"]
    energy = "" if joules is None else f", joules {joules:.1%} in the median"
    print(
        f"  error over these measurements: seconds {within['median_error']:.1%} in the median, "
        f"{within['worst_error']:.1%} at worst{energy}"
    )
    _print_errors(record["held_out"])
    print(f"profile: {out}")


def _too_quick(found: list[Floor], rows: int) -> str:
    """A line on measurements that no chip can have taken as they are described."""
    row, times = found[0]
    return (
        f"{len(found)} of {rows} measurements are quicker than the data sheet's peak rates allow (such as {row.model} "
        f"at batch {row.batch} and context {row.context}, {times:.2f} times the least seconds); check their gpu, "
        "chips, batch, context and types"
    )


def _conditions(where: tuple[str, ...]) -> dict[str, set[str]]:
    """What the conditions allow of each column; those on the same column are alternatives."""
    wanted: dict[str, set[str]] = {}
    for condition in where:
        column, equals, value = condition.partition("=")
        if not equals or column not in CONDITIONS:
            raise UserError(
                f"--where takes COLUMN=VALUE, with a column of {', '.join(CONDITIONS)}; got {shown(condition)}"
            )
        wanted.setdefault(column, set()).add(value.lower())
    return wanted


def _said(row: Measured, column: str) -> str:
    return str(getattr(row, column)).lower()


def _fit_record(model: StepModel) -> dict[str, Any]:
    return {
        "times": dict(model.times),
        "fitted": list(model.free),
        "energy": None if model.energy is None else dict(zip(("watts", "flop", "byte"), model.energy, strict=True)),
    }


def _held_out_record(rows: list[Measured]) -> dict[str, Any]:
    """Errors on models that were left out, in all and by stratum; or why there are none."""
    from kinetics_jax.costs.measured_fit import held_out, strata, summary
    from kinetics_jax.costs.step_fit import FitError

    try:
        errors = held_out(rows)
    except FitError as error:
        return {"none": str(error)}
    keys = ("engine", "weights", "chips", "workload")
    by = [dict(zip(keys, key, strict=True)) | values for key, values in strata(errors).items()]
    return {"all": summary(errors), "strata": by}


def _print_model(model: StepModel) -> None:
    from kinetics_jax.costs.measured_fit import OVERHEADS

    for name in model.free:
        if name in OVERHEADS:
            print(f"  {name}: {1e6 * model.times[name]:,.4g} µs")
        else:
            print(f"  {name}: {1 / model.times[name]:.0%} of the data sheet's rate")
    if model.energy is not None:
        watts, flop, byte = model.energy
        print(f"  energy: {watts:,.0f} W, {1e12 * flop:.3g} pJ a FLOP, {1e12 * byte:.3g} pJ a byte")


def _print_errors(errors: dict[str, Any]) -> None:
    import pandas as pd

    from kinetics_jax.cli.terminal import print_table

    if "none" in errors:
        print(f"no error on unseen models: {errors['none']}")
        return
    print("\nErrors on models that were left out of the fit, and how often the data sheet's seconds it took:\n")
    table = pd.DataFrame([*errors["strata"], {"engine": "all", **errors["all"]}])
    print_table(table.dropna(axis=1, how="all").astype(object).where(lambda cells: cells.notna(), ""), False)
    print()
