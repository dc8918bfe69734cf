"""`kinetics calibrate`: how fast this device decodes, as a hardware profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro

from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.cli.arguments import BackendArg, JsonArg, config_of
from kinetics_jax.cli.checks import MAX_PRICE, require, require_devices, require_ending, require_outputs


def calibrate(
    *,
    measurements: Annotated[Path | None, tyro.conf.arg(name="from", metavar="CSV")] = None,
    where: Annotated[tuple[str, ...], tyro.conf.arg(metavar="COLUMN=VALUE …")] = (),
    model: tuple[str, ...] = (),
    attention: tuple[str, ...] = (),
    out: Path = Path("hardware.json"),
    name: str | None = None,
    price_per_hour: float | None = None,
    quick: bool = False,
    backend: BackendArg = None,
    as_json: JsonArg = False,
) -> None:
    """Measures this device with the engine's own steps; writes a profile that every --hardware takes.

    With --from, nothing is measured here: the profile is fitted to a file of measurements of any engine (its columns:
    see the documentation of measured hardware), and its error on models that were left out is printed.

    Args:
        measurements: A file of measurements, in one's own columns, ML.ENERGY's or Qwen's.
        where: Of those, take the rows with this model, gpu, chips, batch, weights, workload or engine; several of one
            column are alternatives.
        model: Measure at these models' shapes (published or built-in names, HF directories) with random weights;
            default: three small shapes. The closer to what you run, the more accurate the seconds.
        attention: Policies to measure beside dense attention; default: block top-k.
        out: The profile, a .json file.
        name: Name of the device in the profile; default: the kind that jax reports.
        price_per_hour: Price of the device, in any currency; `kinetics plan --dollars` needs it.
        quick: Fewer shapes, batches and contexts.
        as_json: Print the profile and its errors as JSON.
    """
    require_ending(out, "a hardware profile", ".json")
    require_outputs(out)
    require(
        price_per_hour is None or 0 < price_per_hour <= MAX_PRICE,
        f"--price-per-hour must be above 0 and at most {MAX_PRICE:g}, got {price_per_hour}",
    )
    if measurements is not None:
        require(
            not (model or attention or quick or backend),
            "--from fits what others measured; leave out --model, --attention, --quick and --backend",
        )
        from kinetics_jax.cli.measured import profile_from

        profile_from(measurements, where=where, out=out, name=name, price_per_hour=price_per_hour, as_json=as_json)
        return
    require(not where, "--where goes with --from")
    shapes = {name: config_of(name) for name in model}
    policies = [policy for policy in map(parse_policy, attention) if policy != Dense()]
    from kinetics_kernels.backends import ATTENTION_OPS, backend_error
    from tqdm import tqdm

    require_devices()
    wrong = None if backend is None else backend_error(backend, ops=ATTENTION_OPS)
    require(not wrong, str(wrong))
    from kinetics_jax.costs.hardware import save_hardware
    from kinetics_jax.devices.calibration import calibrate as measure
    from kinetics_jax.devices.calibration import choose_measurements

    plan = choose_measurements(shapes, policies, quick=quick)
    with tqdm(total=plan.parts, unit="part") as bar:

        def on_part(what: str) -> None:
            bar.set_description(what)
            bar.update(bar.n < plan.parts - 1)

        result = measure(plan, name=name, backend=backend, price_per_hour=price_per_hour, on_part=on_part)
        bar.update(plan.parts - bar.n)
    save_hardware(out, result.hardware, record=result.record())
    if as_json:
        print(json.dumps(result.record(), indent=1))
        return
    chip = result.hardware
    print(f"{chip.name}: {chip.flops / 1e9:,.1f} GFLOP/s of large products, {chip.bandwidth / 1e9:,.1f} GB/s read")
    print(f"form {chip.form}: " + ", ".join(f"{form} {100 * e:.1f} %" for form, e in result.cross_validated.items()))
    for kind, seconds in chip.unit_seconds.items():
        if seconds:
            print(f"  {kind}: {1e-9 / seconds:,.3g} {'GB' if kind.endswith('_reads') else 'G operations'}/s")
    for field in ("step_seconds", "layer_seconds", "row_seconds", "logit_seconds", "prompt_seconds", "start_seconds"):
        print(f"  {field}: {1e6 * getattr(chip, field):,.4g} µs")
    print(f"error over {len(result.fitted)} fitted steps {100 * result.fitted_error:.1f} %, ", end="")
    print(f"over {len(result.held_out)} others {100 * result.error:.1f} % (mean, absolute)")
    print(f"profile: {out}")
