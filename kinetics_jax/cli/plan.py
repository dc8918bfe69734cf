"""`kinetics plan`: what to run on a budget, from runs that were made."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_jax.cli.arguments import JsonArg, KvDtypeArg, Positional, WeightDtypeArg
from kinetics_jax.cli.checks import require, require_between
from kinetics_jax.cli.run_summary import ending_lines
from kinetics_jax.cli.sources import ALL_SAID, UnsaidArgs
from kinetics_jax.cli.terminal import say

if TYPE_CHECKING:
    from kinetics_jax.analysis.planner import Advice

COLUMNS = ("model", "attention", "N", "cap", "batch", "accuracy", "undecided", "seconds", "dollars")
MAX_CHIPS = 1024
MAX_PROBLEMS = 10**6
MAX_TRIALS = 10**4  # N is extrapolated beyond the samples: to no more than that
MAX_CAP = 1 << 24  # tokens
MAX_BATCH = 1 << 16  # sequences


def plan(
    runs: Positional[tuple[Path, ...]],
    *,
    hardware: str = "h100",
    chips: int = 1,
    replicas: int = 1,
    kv_dtype: KvDtypeArg = None,
    weight_dtype: WeightDtypeArg = None,
    seconds: float | None = None,
    dollars: float | None = None,
    target_accuracy: float | None = None,
    problems: int | None = None,
    trials: tuple[int, ...] = (),
    caps: tuple[int, ...] = (),
    batches: tuple[int, ...] = (),
    price: float | None = None,
    unsaid: UnsaidArgs = ALL_SAID,
    seed: int = 0,
    as_json: JsonArg = False,
) -> None:
    """The best model, N, length, attention and batch on a budget, from stored runs.

    Args:
        runs: Run folders, files of samples (.csv, .jsonl, .parquet), or directories of them, over the same problems.
        hardware: Chip, or the .json profile that `kinetics calibrate` wrote.
        chips: Chips that share every sequence (tensor parallel).
        replicas: Copies of the model, of --chips chips each, that share the problems (data parallel).
        seconds: Budget in seconds, prefill and decode of all problems.
        dollars: Budget in money, at the hardware's price or --price.
        target_accuracy: Find the cheapest way to this accuracy.
        problems: How many problems are to be solved; default: as many as the runs have.
        trials: Numbers of samples N to choose from; default: powers of two.
        caps: Caps on the tokens of a sample to choose from; default: the runs' own and half of it.
        batches: Batches to choose from, sequences decoded side by side; default: powers of two.
        price: Price of a chip-hour, in any currency.
        seed: Seed of the bootstrap and the halvings.
        as_json: Print JSON.
    """
    from kinetics_jax.analysis import planner
    from kinetics_jax.analysis.samples import pooled
    from kinetics_jax.costs.hardware import hardware as hardware_named

    require(runs != (), "plan: name at least one run folder")
    unsaid.check()
    require_between("--chips", chips, 1, MAX_CHIPS)
    require_between("--replicas", replicas, 1, MAX_CHIPS)
    require(
        problems is None or 1 <= problems <= MAX_PROBLEMS, f"--problems must be in 1 … {MAX_PROBLEMS}, got {problems}"
    )
    for flag, values, most in (
        ("--trials", trials, MAX_TRIALS),
        ("--caps", caps, MAX_CAP),
        ("--batches", batches, MAX_BATCH),
    ):
        for value in values:
            require_between(flag, value, 1, most)
    require_between("--seed", seed, 0, 2**63 - 1)
    budget = planner.Budget(seconds, dollars, target_accuracy)
    chip = hardware_named(hardware)
    if price is not None:
        chip = dataclasses.replace(chip, price_per_hour=price)
    budget.limit(chip, chips * replicas)  # refuses an impossible budget before the runs are read
    samples = unsaid.read(runs)
    types = {name: dtype for name, dtype in (("kv_dtype", kv_dtype), ("weight_dtype", weight_dtype)) if dtype}
    options = planner.list_options(
        [
            dataclasses.replace(pool, settings={**pool.settings, **types})
            for pool in pooled(samples, undecided=unsaid.undecided)
        ],
        chip,
        chips=chips,
        replicas=replicas,
        problems=problems,
        trials=trials or None,
        caps=caps or None,
        batches=batches or None,
    )
    advice = planner.advise(options, budget, seed=seed)
    for line in (*ending_lines(samples), *options.warnings):
        say(line)
    if as_json:
        print(json.dumps(as_record(advice), indent=1, allow_nan=False))
    else:
        _print(advice)


def as_record(advice: Advice) -> dict[str, Any]:
    """The advice for JSON; null for infinite and missing numbers."""

    def row(index: int | None) -> dict[str, Any] | None:
        if index is None:
            return None
        why = {"why_not": advice.why_not[index]} if index in advice.why_not else {}
        values = advice.row(index)
        return {name: _finite(value) for name, value in values.items()} | why

    return {
        "chosen": row(advice.chosen),
        "accuracy": advice.accuracy,
        "interval": [_finite(advice.low), _finite(advice.high)],
        "optimism": advice.optimism,
        "expected_accuracy": advice.expected_accuracy,
        "run_interval": [advice.run_low, advice.run_high],
        "runner_up": row(advice.runner_up),
        "beyond": row(advice.beyond),
        "hardware": advice.options.hardware.name,
        "calibrated": advice.options.hardware.calibrated,
        "chips": advice.options.chips,
        "replicas": advice.options.replicas,
        "problems": advice.options.problems,
        "configurations": len(advice.options.table),
        "warnings": list(advice.options.warnings),
    }


def _finite(value: Any) -> Any:
    """The value, None for an infinite or missing number, which JSON has not."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(advice: Advice) -> None:
    import pandas as pd

    from kinetics_jax.cli.terminal import print_table

    labels = {"run this": advice.chosen, "runner-up": advice.runner_up, "out of reach": advice.beyond}
    shown = {label: index for label, index in labels.items() if index is not None}
    table = pd.DataFrame([{"": label} | _columns(advice.row(index)) for label, index in shown.items()])
    print_table(table.dropna(axis=1, how="all"), False)
    options = advice.options
    copies = f"{options.replicas} replicas of " if options.replicas > 1 else ""
    print(
        f"\n{options.problems} problems on {copies}{options.chips} x {options.hardware.name}; "
        f"{len(options.table)} configurations.\n"
        f"Accuracy {advice.accuracy:.3f}, 95 % interval {advice.low:.3f} … {advice.high:.3f} over problems, as if "
        "chosen beforehand.\n"
        f"Chosen among many on the same problems it looks {advice.optimism:.3f} too good: expect "
        f"{advice.expected_accuracy:.3f};\n"
        f"the score of one run falls into {advice.run_low:.3f} … {advice.run_high:.3f} (95 %)."
    )
    for label, index in shown.items():
        if index in advice.why_not:
            print(f"{label}: {advice.why_not[index]}")


def _columns(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] if name != "seconds" or math.isfinite(row[name]) else None for name in COLUMNS}
