"""`kinetics doctor`: this machine, which backend each op uses and why; for a model, its memory plan on any device."""

from __future__ import annotations

import json
import warnings
from typing import Annotated, Any, Literal

import tyro

from kinetics_jax.attention.policies import entry_points
from kinetics_jax.attention.policies.registry import POLICIES, parse_policy
from kinetics_jax.cli.arguments import POLICY_HELP, JsonArg, config_of
from kinetics_jax.cli.checks import require, require_between, require_devices

CONTEXT = 32_768


def doctor(
    *,
    model: Annotated[
        str | None,
        tyro.conf.arg(
            metavar="MODEL", help="Plan the memory of this model, named as for `kinetics cost`; needs --device."
        ),
    ] = None,
    device: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None,
    chips: int | None = None,
    context: int | None = None,
    batch: int | None = None,
    attention: Annotated[str | None, tyro.conf.arg(metavar="POLICY", help=POLICY_HELP)] = None,
    page_size: int | None = None,
    dtype: Literal["bfloat16", "float16", "float32"] | None = None,
    as_json: JsonArg = False,
) -> None:
    """Devices, versions, built-in models, which backend each op uses and why, and which ops each policy calls. With
    --model, a memory plan: the engine's programs compiled for a device that this machine need not have, their memory
    there, and what fits.

    Args:
        device: Device of the memory plan: a100, h100, h200, v5e, v5p or v6e.
        chips: 1, 2, 4 or 8 devices, tensor parallel; default: 1.
        context: Tokens of a sequence at most, prompt and output; default: 32768.
        batch: Sequences that decode side by side; default: as many as fit.
        page_size: Tokens of a page, instead of the policy's own, at the same budget.
        dtype: Type of weights and KV cache; default: bfloat16.
        as_json: Print JSON.
    """
    for flag, value, most in (
        ("--context", context, 1 << 24),
        ("--batch", batch, 1 << 16),
        ("--page-size", page_size, 1 << 16),
    ):
        if value is not None:
            require_between(flag, value, 1, most)
    if model is not None:
        _print_plan(
            model,
            device,
            as_json,
            chips=1 if chips is None else chips,
            context=CONTEXT if context is None else context,
            batch=batch,
            attention=attention or "dense",
            page_size=page_size,
            dtype=dtype or "bfloat16",
        )
        return
    given = {"device": device, "chips": chips, "context": context, "batch": batch}
    given |= {"attention": attention, "page-size": page_size, "dtype": dtype}
    for name, value in given.items():
        require(value is None, f"--{name} is only for memory plans; add --model")
    _print_machine(as_json)


def _print_plan(
    model: str, device: str | None, as_json: bool, *, attention: str, page_size: int | None, **asked: Any
) -> None:
    from tqdm import tqdm

    from kinetics_jax.devices.memory_plan import DEVICES, PROGRAMS, memory_plan

    require(device is not None, f"--model asks for a memory plan; add --device, one of {', '.join(DEVICES)}")
    config, policy = config_of(model), parse_policy(attention)
    require_devices()
    if page_size is not None:
        policy = policy.with_page_size(page_size)
    with tqdm(total=len(PROGRAMS), desc=f"compile for {device}", unit="program", leave=False, delay=1) as bar:
        plan = memory_plan(config, str(device), attention=policy, on_program=lambda program: bar.update(), **asked)
    for text in plan["warnings"]:
        warnings.warn(text, stacklevel=2)
    if as_json:
        print(json.dumps(plan, indent=1))
    else:
        _print_plan_tables(plan)


def _print_plan_tables(plan: dict[str, Any]) -> None:
    import pandas as pd

    from kinetics_jax.cli.terminal import print_table
    from kinetics_jax.devices.memory_plan import PROGRAMS

    room = plan["fits"]
    print(
        f"{plan['model']}, {plan['dtype']}, {plan['attention']}, pages of {plan['page_size']}: {plan['batch']} "
        f"sequences of {plan['context']} tokens on {plan['chips']} x {plan['device']}\n\n"
        "MB of each device, as compiled\n"
    )
    rows = {
        "weights": "weight_bytes",
        "KV cache": "cache_bytes",
        "all arguments": "argument_bytes",
        "aliased": "alias_bytes",
        "temporary": "temp_bytes",
        "code": "code_bytes",
        "at once": "peak_bytes",
    }
    table = [
        {"": label, **{name: f"{plan[name][field] / 1e6:,.1f}" for name in PROGRAMS}} for label, field in rows.items()
    ]
    table.append({"": "temporary / cache", **{name: f"{plan[name]['temp_share']:.2%}" for name in PROGRAMS}})
    seconds = {"seconds to compile": "compile_seconds", "expected seconds": "expected_seconds"}
    table += [
        {"": label, **{name: f"{plan[name][field]:.4g}" for name in PROGRAMS}} for label, field in seconds.items()
    ]
    print_table(pd.DataFrame(table), False)
    step = plan["decode"]["expected_seconds"]
    print(
        f"\nExpected at the data sheet's rates: a prompt of {plan['context']} tokens; a decode step of {plan['batch']} "
        f"such sequences, {plan['batch'] / step:,.0f} tokens/s."
    )
    print(
        f"What fits: {room['sequences']} sequences ({room['sequence_bytes'] / 1e9:.2f} GB each on a device, beside "
        f"{room['weight_bytes'] / 1e9:.1f} GB of weights; {room['reserve']:.0%} of {room['memory_bytes'] / 1e9:.0f} GB "
        "in reserve)."
    )


def _print_machine(as_json: bool) -> None:
    import importlib.metadata

    import jax
    import kinetics_kernels
    from kinetics_kernels.backends import KERNEL_OPS, chosen_backend

    from kinetics_jax.assets import LEDGER, builtin_models, family_models

    require_devices()
    machine = {
        "versions": {
            name: importlib.metadata.version(name) for name in ("kinetics_jax", "jax", "flax", "numpy", "tokenizers")
        },
        "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
        "builtin_models": builtin_models(),
        "ledger_models": family_models(LEDGER),
        "policies_of_packages": entry_points.declared(),
        "ops": {
            name: {
                platform: dict(zip(("backend", "why"), chosen_backend(name, platform), strict=True))
                for platform in ("cpu", "cuda", "tpu")
            }
            for name in kinetics_kernels.__all__
        },
        "policies": {
            kind: {
                "kernels": [op for op in policy.ops if op in KERNEL_OPS],
                "reference": [op for op in policy.ops if op not in KERNEL_OPS],
            }
            for kind, policy in POLICIES.items()
        },
    }
    if as_json:
        print(json.dumps(machine, indent=1))
        return
    ops, policies = machine.pop("ops"), machine.pop("policies")
    for section, content in machine.items():
        if not content:  # a family without checkpoints
            continue
        print(section)
        for entry in content.items() if isinstance(content, dict) else content:
            print("  " + (entry if isinstance(entry, str) else " ".join(entry)))
    print("ops")
    for name, platforms in ops.items():
        alike = len({tuple(chosen.values()) for chosen in platforms.values()}) == 1
        for platform, chosen in [("everywhere", platforms["cpu"])] if alike else platforms.items():
            where = platform if alike else f"on {platform}"
            print(f"  {name} {where}: {chosen['backend']} ({chosen['why']})")
    print("policies: the ops that their decode rules call")
    for kind, called in policies.items():
        parts = {"backends as above": called["kernels"], "the reference everywhere": called["reference"]}
        said = [f"{', '.join(names)} ({where})" for where, names in parts.items() if names]
        print(f"  {kind}: {'; '.join(said) or 'does not say'}")
