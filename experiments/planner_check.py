"""Is the planner right? Its advice on the built-in models, and the seconds and accuracy of the advised runs.

    python experiments/planner_check.py --work planner_check --json experiments/results/cpu/planner_check.json

Half of the built-in problems are sampled under every (model, attention). The planner is then asked what to run on the
other half within a few budgets of seconds on this device, whose profile is measured first (or given: --hardware FILE).
The advised configuration and its runner-up run on the other half with another seed. They are compiled first, then
timed: the median of `--turns` runs of the engine, and after every run the parts that a prediction adds up, since the
device may be faster or slower by now than its profile. The result is a table, and JSON, of predicted beside measured.
The same command continues an interrupted run. With `--clock cpu`, profile, predictions and runs are in CPU seconds,
which other work on the machine disturbs less; give it a --work of its own.

    python experiments/planner_check.py --simulate 100 --json experiments/results/planner_simulation.json

asks the planner on simulated samples instead, whose truth is known (planner_simulation.py says what is printed).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import planner_simulation
from tqdm import tqdm

from kinetics_jax.analysis.advice import advise
from kinetics_jax.analysis.planner import Budget, Options, list_options
from kinetics_jax.analysis.samples import pooled, run_data
from kinetics_jax.analysis.workload import Workload, simulate_decode
from kinetics_jax.assets import builtin_models
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.registry import parse_policy, slug
from kinetics_jax.cli.arguments import config_of
from kinetics_jax.cli.demo_grid import MAX_TOKENS, PAGE_SIZE
from kinetics_jax.cli.plan import as_record
from kinetics_jax.cli.terminal import command_line
from kinetics_jax.costs.hardware import Hardware, hardware, save_hardware
from kinetics_jax.devices.calibration import (
    SAMPLING,
    STEPS,
    Clock,
    calibrate,
    choose_measurements,
    interleaved,
    prefill_measure,
    start_measure,
)
from kinetics_jax.devices.random_decode import RandomDecode
from kinetics_jax.engine.engine import Request
from kinetics_jax.files import write_atomic
from kinetics_jax.language_model import LanguageModel, load
from kinetics_jax.runs.best_of_n import best_of_n
from kinetics_jax.runs.folder import Run
from kinetics_jax.settings import EngineSettings, Sampling
from kinetics_jax.tasks.problems import Problem, load_problems
from kinetics_jax.tasks.prompts import render_prompts

TASK = "builtin"
SEED, FRESH_SEED = 0, 1
CAPS = (MAX_TOKENS, 56, 44)
BATCHES = (8, 16, 32, 64)
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def profile(path: Path, models: list[str], policies: list[AttentionPolicy], quick: bool, clock: Clock) -> Hardware:
    """The profile at `path`; first measures it at the models' own shapes if the file does not exist."""
    if not path.exists():
        measured = choose_measurements(
            {name: config_of(name) for name in models}, policies, batches=(8, 64), quick=quick
        )
        with tqdm(total=measured.parts, desc="calibrate") as bar:
            calibration = calibrate(
                measured, on_part=lambda what: bar.set_postfix_str(what, refresh=bool(bar.update())), clock=clock
            )
        save_hardware(path, calibration.hardware, record=calibration.record())
        print(
            f"calibrated: {100 * calibration.error:.1f} % off on held-out steps, "
            f"{100 * calibration.fitted_error:.1f} % on fitted ones"
        )
    return hardware(path)


def sample_run(
    lm: LanguageModel,
    problems: list[Problem],
    policy: AttentionPolicy,
    *,
    n: int,
    cap: int,
    slots: int,
    seed: int,
    out: Path,
) -> Run:
    """A Best-of-N run in the folder `out`; draws the samples that it does not have yet."""
    return best_of_n(
        lm,
        problems,
        task=TASK,
        n=n,
        policy=policy,
        sampling=Sampling(temperature=1.0, max_tokens=cap, seed=seed),
        settings=EngineSettings(slots=slots),
        out=out,
        command=command_line(),
    )


def time_run(
    lm: LanguageModel, problems: list[Problem], policy: AttentionPolicy, row: dict[str, Any], turns: int, clock: Clock
) -> list[dict[str, float]]:
    """Per turn, the engine's `seconds` for all samples of all problems and those of their `parts`; compiles first."""
    prompts = render_prompts(problems, lm.directory, task=TASK)
    requests = [Request(problem.id, lm.encode(prompts[problem.id]), range(row["N"])) for problem in problems]
    engine = lm.engine(
        sampling=Sampling(temperature=1.0, max_tokens=row["cap"], seed=FRESH_SEED),
        attention=policy,
        settings=EngineSettings(slots=row["batch"]),
    )
    lengths = {(done.problem, done.sample): len(done.output_tokens) for done in engine.run(requests)}
    assert len(lengths) == len(problems) * row["N"]
    work = Workload(
        np.array([len(request.prompt) for request in requests]),
        np.array([[lengths[request.problem, sample] for sample in request.samples] for request in requests]),
    )
    parts = parts_of(lm, policy, work, slots=row["batch"], cap=row["cap"], clock=clock)
    rows = []
    for _ in range(turns):
        began = clock()
        for _ in engine.run(requests):
            pass
        rows.append({"seconds": clock() - began, "parts": parts()})
    return rows


def parts_of(
    lm: LanguageModel, policy: AttentionPolicy, work: Workload, *, slots: int, cap: int, clock: Clock
) -> Clock:
    """A clock of the planner's parts: a decode step, a prompt, a start, each times how often the run needs it.

    If this sum matches the run and the prediction does not, the profile does not describe the device as it is now: its
    rates are wrong, or the machine was busier or less busy when it was measured.
    """
    contexts, steps, starts = simulate_decode(work, slots)
    prompt, width = int(np.mean(work.prompts)), int(np.max(work.prompts)) + cap
    decode = RandomDecode(
        lm.config, lm.weights, batch=slots, context=width, policy=policy, steps=STEPS, sampling=SAMPLING, clock=clock
    )
    context = int(np.mean(np.max(contexts, axis=1))) - STEPS // 2  # of the longest: XLA pads the others to it
    one_prompt = prefill_measure(lm.config, lm.weights, prompt, clock=clock)
    one_start = start_measure(lm.config, lm.weights, prompt, clock=clock)

    def now() -> float:
        each = interleaved(
            {"step": lambda: decode.seconds_per_step(context), "prompt": one_prompt, "start": one_start}, rounds=1
        )
        prompts = len(work.prompts)
        return steps * each["step"] + prompts * each["prompt"] + (starts - prompts) * each["start"]

    return now


def check_configuration(
    row: dict[str, Any], problems: list[Problem], work: Path, turns: int, clock: Clock
) -> dict[str, Any]:
    """How a configuration did on fresh problems: accuracy, mean tokens per sample, seconds. Stored in `work`."""
    policy = parse_policy(row["attention"])
    name = f"{row['model']}-{slug(policy)}-n{row['N']}-cap{row['cap']}-batch{row['batch']}"
    path = work / "checked" / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    lm = load(row["model"])
    sizes = {"n": row["N"], "cap": row["cap"], "slots": row["batch"], "seed": FRESH_SEED}
    run = sample_run(lm, problems, policy, **sizes, out=work / "checked" / name)
    solved = {problem.id: False for problem in problems}
    for record in run.samples:
        solved[record["problem"]] |= record["correct"] is True
    turned = time_run(lm, problems, policy, row, turns, clock)
    result = {
        "accuracy": float(np.mean(list(solved.values()))),
        "mean_output_tokens": float(np.mean([len(record["output_tokens"]) for record in run.samples])),
        "seconds": statistics.median(turn["seconds"] for turn in turned),
        "parts": statistics.median(turn["parts"] for turn in turned),
        "parts_off": statistics.median(turn["parts"] / turn["seconds"] for turn in turned) - 1,
        "turns": turned,
        "load_average": os.getloadavg()[0],
    }
    write_atomic(path, json.dumps(result, indent=1) + "\n")
    return result


def budgets(configurations: Options, count: int) -> list[float]:
    """Seconds, evenly in logarithm, from twice the cheapest configuration to the most accurate one."""
    rows = [row for row in configurations.table.to_dict(orient="records") if np.isfinite(row["seconds"])]
    least = 2 * min(row["seconds"] for row in rows)
    most = max(rows, key=lambda row: (row["accuracy"], -row["seconds"]))["seconds"]
    return [float(f"{seconds:.2g}") for seconds in np.geomspace(least, max(1.1 * most, 2 * least), count)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("planner_check"), help="folder of the runs and timings (%(default)s)"
    )
    parser.add_argument("--hardware", help="a profile of this device (default: measured into --work)")
    parser.add_argument("--models", nargs="+", default=[builtin_models()[i] for i in (0, 3, 4)])
    parser.add_argument("--budgets", type=int, nargs="+", default=[64, 32], help="tokens attended by block top-k")
    parser.add_argument("--questions", type=int, default=3, help="budgets of seconds to plan for (%(default)s)")
    parser.add_argument("--n", type=int, default=8, help="samples per known problem (%(default)s)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--clock",
        choices=CLOCKS,
        default="wall",
        help="cpu: CPU seconds of all threads, for a busy machine (%(default)s)",
    )
    parser.add_argument("--quick", action="store_true", help="fewer problems, to try this script")
    parser.add_argument("--simulate", type=int, metavar="REPETITIONS", help="advice on simulated samples instead")
    parser.add_argument("--json", type=Path, help="write the results here")
    arguments = parser.parse_args()
    if arguments.simulate:
        planner_simulation.report(list(planner_simulation.ABILITY), arguments.simulate, arguments.json)
        return

    problems = load_problems(TASK)
    half = len(problems) // 2
    known, fresh = problems[:half], problems[half:]
    if arguments.quick:
        known, fresh = known[:16], fresh[:16]
    policies: list[AttentionPolicy] = [Dense()]
    policies += [BlockTopK(budget=budget, page_size=PAGE_SIZE, dense_layers=()) for budget in arguments.budgets]
    arguments.work.mkdir(parents=True, exist_ok=True)
    chip = hardware(arguments.hardware or _measured(arguments, policies))

    runs = []
    for model in arguments.models:
        lm = load(model)
        for policy in tqdm(policies, desc=f"sample {model}"):
            out = arguments.work / f"{model}-{slug(policy)}"
            sizes = {"n": arguments.n, "cap": MAX_TOKENS, "slots": 64, "seed": SEED}
            runs.append(sample_run(lm, known, policy, **sizes, out=out))
    configurations = list_options(
        pooled([run_data(run) for run in runs]), chip, problems=len(fresh), caps=CAPS, batches=BATCHES
    )
    rows: list[dict[str, Any]] = []
    advice_given = []
    for seconds in budgets(configurations, arguments.questions):
        advice = advise(configurations, Budget(seconds=seconds))
        advice_given.append({"budget_seconds": seconds} | as_record(advice))
        for label, index in (("advised", advice.chosen), ("neighbour", advice.runner_up)):
            if index is None:
                continue
            row = advice.row(index)
            measured = check_configuration(row, fresh, arguments.work, arguments.turns, CLOCKS[arguments.clock])
            rows.append(
                {
                    "budget": seconds,
                    "which": label,
                    **{name: row[name] for name in ("model", "attention", "N", "cap", "batch")},
                    "accuracy predicted": row["accuracy"],
                    "low": advice.run_low if label == "advised" else None,
                    "high": advice.run_high if label == "advised" else None,
                    "measured": measured["accuracy"],
                    "inside": advice.run_low <= measured["accuracy"] <= advice.run_high if label == "advised" else None,
                    "seconds predicted": row["seconds"],
                    "seconds measured": measured["seconds"],
                    "seconds off": row["seconds"] / measured["seconds"] - 1,
                    "parts": measured["parts"],
                    "parts off": measured["parts_off"],
                }
            )
    table = pd.DataFrame(rows)
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    off = float(np.mean([abs(row["seconds off"]) for row in rows]))
    parts_off = float(np.mean([abs(row["parts off"]) for row in rows]))
    inside = [row["inside"] for row in rows if row["which"] == "advised"]
    print(
        f"seconds off by {100 * off:.1f} % on average, the sum of parts measured beside the runs by "
        f"{100 * parts_off:.1f} %; {sum(inside)} of {len(inside)} advised "
        f"accuracies inside their interval; load average {os.getloadavg()[0]:.1f}"
    )
    if arguments.json:
        record = json.loads(Path(arguments.hardware or arguments.work / "hardware.json").read_text()).get("record", {})
        written = {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "clock": arguments.clock,
            "load_average": os.getloadavg()[0],
            "profile": {name: record.get(name) for name in ("held_out_error", "fitted_error", "cross_validated_error")},
            "known_problems": len(known),
            "fresh_problems": len(fresh),
            "rows": rows,
            "seconds_off": off,
            "parts_off": parts_off,
            "advice": advice_given,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(arguments.json, json.dumps(written, indent=1) + "\n")


def _measured(arguments: argparse.Namespace, policies: list[AttentionPolicy]) -> Path:
    path = arguments.work / "hardware.json"
    profile(path, [arguments.models[0], arguments.models[-1]], policies[1:], arguments.quick, CLOCKS[arguments.clock])
    return path


if __name__ == "__main__":
    main()
