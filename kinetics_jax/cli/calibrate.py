"""`kinetics calibrate`: how fast this device decodes, as a hardware profile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro

from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.cli.arguments import config_of
from kinetics_jax.errors import UserError


def calibrate(
    *,
    model: tuple[str, ...] = (),
    attention: tuple[str, ...] = (),
    out: Path = Path("hardware.json"),
    name: str | None = None,
    price_per_hour: float | None = None,
    quick: bool = False,
    backend: str | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Measures this device with the engine's own steps; writes a profile that every --hardware takes.

    Args:
        model: Measure at these models' shapes (published or built-in names, HF directories) with random weights; by
            default at three small ones. The nearer to what you run, the better the seconds.
        attention: Policies to measure beside dense attention; by default block top-k.
        out: The profile.
        name: What to call the device.
        price_per_hour: Of the device, in any currency; makes `kinetics plan --dollars` possible.
        quick: Fewer shapes, batches and contexts.
        backend: Forces the kernels' backend: xla, triton, mosaic_gpu, mosaic_tpu.
        as_json: Print what was found as JSON.
    """
    if out.suffix != ".json":
        raise UserError(f"{out}: a hardware profile must end in .json")
    if price_per_hour is not None and not price_per_hour > 0:
        raise UserError(f"--price-per-hour must be positive, got {price_per_hour}")
    from tqdm import tqdm

    from kinetics_jax.costs.hardware import save_hardware

    shapes = {name: config_of(name) for name in model}
    policies = [policy for policy in map(parse_policy, attention) if policy != Dense()]
    from kinetics_kernels.backends import backend_error

    if backend is not None and (wrong := backend_error(backend)):
        raise UserError(wrong)
    from kinetics_jax.devices.calibration import calibrate as measure
    from kinetics_jax.devices.calibration import choose_measurements

    plan = choose_measurements(shapes, policies, quick=quick)
    with tqdm(total=plan.parts, unit="part") as bar:

        def on_part(what: str) -> None:
            bar.set_description(what)
            bar.update(bar.n < plan.parts - 1)

        found = measure(plan, name=name, backend=backend, price_per_hour=price_per_hour, on_part=on_part)
        bar.update(plan.parts - bar.n)
    save_hardware(out, found.hardware, record=found.record())
    if as_json:
        print(json.dumps(found.record(), indent=1))
        return
    chip = found.hardware
    print(f"{chip.name}: {chip.flops / 1e9:,.1f} GFLOP/s of large products, {chip.bandwidth / 1e9:,.1f} GB/s read")
    print(f"form {chip.form}: " + ", ".join(f"{form} {100 * e:.1f} %" for form, e in found.cross_validated.items()))
    for kind, seconds in chip.unit_seconds.items():
        if seconds:
            print(f"  {kind}: {1e-9 / seconds:,.3g} {'GB' if kind.endswith('_reads') else 'G operations'}/s")
    for field in ("step_seconds", "layer_seconds", "row_seconds", "logit_seconds", "prompt_seconds", "start_seconds"):
        print(f"  {field}: {1e6 * getattr(chip, field):,.4g} µs")
    print(f"error over {len(found.fitted)} fitted steps {100 * found.fitted_error:.1f} %, ", end="")
    print(f"over {len(found.held_out)} others {100 * found.error:.1f} % (mean, absolute)")
    print(f"profile: {out}")
