"""Seconds from stored token counts to a frontier, beside those of the paper's own approach.

6 models × 30 problems × 32 samples × 6 attention budgets, synthetic, written as tables of one row per sample; then:

1. files to CSV: read them, pass@1 under 16 length caps with intervals, costs, frontier, CSV; in this process, and by
   `kinetics frontier` in a process of its own, start-up included.
2. samples in memory to curves: the best accuracy within each of 100 cost limits, every problem with the best of a
   model's dense or sparse configurations (Algorithm 2), a curve per model for dense and for sparse. By arrays; and as
   the published code does it, rewritten from its description: a data frame row per (budget, cap, problem), its cost the
   mean of scalar sums over a list of samples; then, for every cost limit and problem, filters over the frame. And again
   with one grouped maximum per limit instead of the filters per problem, which is faster than the published code.

All must agree. Not timed: the published code also tokenises and grades every text again.

    python experiments/benchmarks/frontier_speed.py --out experiments/benchmarks/results/cpu/frontier_speed.json
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kinetics_jax.analysis.allocation import best_per_problem, cost_limits
from kinetics_jax.analysis.frontier import cost_frontier
from kinetics_jax.analysis.grid import grid
from kinetics_jax.analysis.readers import read_all
from kinetics_jax.analysis.samples import RunData, pooled
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.litesys_block_topk import LiteSysBlockTopK
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.conventions import UPSTREAM_PARAMETERS
from kinetics_jax.files import write_atomic

MODELS = [f"Qwen/Qwen3-{size}" for size in UPSTREAM_PARAMETERS]
PROBLEMS, SAMPLES, LONGEST = 30, 32, 32_768
# Dense, and the budgets of the paper with their page sizes: 128 to 2048 tokens.
POLICIES: list[AttentionPolicy] = [
    Dense(),
    *(LiteSysBlockTopK(pages=k, page_size=size) for k, size in ((1, 128), (4, 64), (16, 32), (64, 16), (256, 8))),
]
CAPS = [LONGEST * step // 16 for step in range(1, 17)]
INTENSITY = 562.5
Curves = dict[tuple[str, str], np.ndarray]  # accuracy [limits] by (model, dense or sparse)


def write_samples(folder: Path) -> list[Path]:
    """Writes a table per model and policy: log-normal lengths, larger models and budgets correct more often."""
    rng = np.random.default_rng(0)
    hardness = rng.uniform(0, 1, PROBLEMS)
    paths = []
    for i, model in enumerate(MODELS):
        for j, policy in enumerate(POLICIES):
            problem = np.repeat(np.arange(PROBLEMS), SAMPLES)
            tokens = np.minimum(rng.lognormal(8.5 + hardness[problem], 0.5), LONGEST).astype(int)
            chance = np.clip(0.3 + 0.12 * i + 0.02 * j - hardness[problem] / 2, 0.02, 0.98)
            table = pd.DataFrame(
                {
                    "model": model,
                    "attention": str(policy),
                    "problem": [f"problem {number:02}" for number in problem],
                    "sample": np.tile(np.arange(SAMPLES), PROBLEMS),
                    "prompt_tokens": 100 + 5 * problem,
                    "tokens": tokens,
                    "correct": (rng.random(len(problem)) < chance).astype(int),
                }
            )
            path = folder / f"{i}-{j}.csv"
            table.to_csv(path, index=False)
            paths.append(path)
    return paths


def in_process_frontier(paths: list[Path], target: Path) -> pd.DataFrame:
    """From files to the frontier's CSV."""
    table = cost_frontier(read_all(paths), caps=CAPS, trials=[1], convention="upstream", intensity=INTENSITY)
    write_atomic(target, table.to_csv(index=False))
    return table


def by_command(folder: Path, target: Path) -> str:
    """The same by the command, in a process of its own; returns what it printed."""
    options = ["--convention", "upstream", "--hardware", "b200-fp8", "--trials", "1", "--csv", str(target)]
    line = [sys.executable, "-m", "kinetics_jax", "frontier", str(folder), *options]
    return subprocess.run([*line, "--caps", *map(str, CAPS)], check=True, capture_output=True, text=True).stdout


def by_arrays(runs: list[RunData], limits: np.ndarray) -> Curves:
    """From samples in memory to the curves, by the grid."""
    cells = grid(pooled(runs), caps=CAPS, trials=[1], convention="upstream", intensity=INTENSITY)
    models, dense = cells.configurations["model"].to_numpy(), (cells.configurations["attention"] == "dense").to_numpy()
    return {
        (model, kind): best_per_problem(cells.rows((models == model) & members), limits).accuracy.mean(axis=1)
        for model in MODELS
        for kind, members in (("dense", dense), ("sparse", ~dense))
    }


def rows_of(run: RunData) -> list[dict[str, Any]]:
    """A row for every (cap, problem) of a run, from lists of samples, each cost a sum of scalars."""
    assert isinstance(run.config, ModelConfig)
    columns = {"problem": run.problem, "prompt": run.prompt_tokens, "tokens": run.output_tokens, "correct": run.correct}
    grouped = pd.DataFrame(columns).groupby(["problem", "prompt"]).agg({"tokens": list, "correct": list}).reset_index()
    rows = []
    row: Any
    for _, row in grouped.iterrows():
        for cap in CAPS:
            costs = [scalar_cost(run.config, row["prompt"], min(n, cap), run.attention) for n in row["tokens"]]
            right = [good and n <= cap for n, good in zip(row["tokens"], row["correct"], strict=True)]
            rows.append(
                {
                    "problem": row["problem"],
                    "attention": str(run.attention),
                    "cap": cap,
                    "cost": sum(costs) / len(costs),
                    "accuracy": sum(right) / len(right),
                }
            )
    return rows


def frames_of(runs: list[RunData]) -> dict[tuple[str, str], pd.DataFrame]:
    frames = collections.defaultdict(list)
    for run in runs:
        frames[run.model, "dense" if run.attention == Dense() else "sparse"] += rows_of(run)
    return {key: pd.DataFrame(rows) for key, rows in frames.items()}


def by_filters(runs: list[RunData], limits: np.ndarray) -> Curves:
    """From samples in memory to the curves: for every limit and problem, filters over a data frame."""
    curves = {}
    for key, frame in frames_of(runs).items():
        curve = []
        for limit in limits:
            best = []
            for problem in frame["problem"].unique():
                of_problem = frame[frame["problem"] == problem]
                affordable = of_problem[of_problem["cost"] <= limit]["accuracy"]
                best.append(affordable.max() if len(affordable) else 0.0)
            curve.append(np.mean(best))
        curves[key] = np.array(curve)
    return curves


def by_groups(runs: list[RunData], limits: np.ndarray) -> Curves:
    """The same with one grouped maximum for every limit."""
    curves = {}
    for key, frame in frames_of(runs).items():
        problems = frame["problem"].unique()
        curve = []
        for limit in limits:
            best: Any = frame[frame["cost"] <= limit].groupby("problem")["accuracy"].max()
            curve.append(best.reindex(problems, fill_value=0.0).mean())
        curves[key] = np.array(curve)
    return curves


def scalar_cost(config: ModelConfig, prompt: int, output: int, policy: AttentionPolicy) -> float:
    """One sample in the upstream convention, Tera-eFLOPs; plain Python numbers."""
    parameters = UPSTREAM_PARAMETERS[config.name.removeprefix("Qwen/Qwen3-")]
    heads = config.num_layers * config.num_heads * config.head_dim
    kv_heads = config.num_layers * config.num_kv_heads * config.head_dim
    if isinstance(policy, LiteSysBlockTopK):
        budget = policy.pages * policy.page_size
        attended = budget * output - max(0, budget - prompt) ** 2 / 2
        searched = (2 * prompt + output) // policy.page_size * output
        compute = 2 * parameters * output + 4 * attended * heads + searched * heads
        memory = 4 * attended * kv_heads + searched * kv_heads
    elif policy != Dense():
        raise ValueError(f"no scalar cost of {policy}")
    else:
        compute = 2 * parameters * output + 2 * (2 * prompt + output) * output * heads
        memory = 2 * (2 * prompt + output) * output * kv_heads
    return (compute + INTENSITY * memory) * 1e-12


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, wall seconds, and CPU seconds of this process and its children."""

    def cpu() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    wall, before = time.perf_counter(), cpu()
    result = run()
    return result, time.perf_counter() - wall, cpu() - before


def medians(run: Callable[[], Any], repeat: int) -> tuple[Any, dict[str, float]]:
    """The last result, and medians of wall and CPU seconds."""
    timings = [timed(run) for _ in range(repeat)]
    wall, cpu = (float(np.median([each[i] for each in timings])) for i in (1, 2))
    return timings[-1][0], {"wall_seconds": round(wall, 4), "cpu_seconds": round(cpu, 4)}


def agree(one: Curves, other: Curves) -> bool:
    return one.keys() == other.keys() and all(np.allclose(one[key], other[key], rtol=0, atol=1e-12) for key in one)


def measure(count: int, repeat: int) -> dict[str, Any]:
    """All times and ratios. Raises AssertionError if two ways give different numbers."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_samples(folder)
        results = folder / "results"
        results.mkdir()
        table, in_process = medians(lambda: in_process_frontier(paths, results / "a.csv"), repeat)
        _, command = medians(lambda: by_command(folder, results / "b.csv"), repeat)
        same = pd.read_csv(results / "a.csv")
        pd.testing.assert_frame_equal(same, pd.read_csv(results / "b.csv"))
        runs = read_all(paths)
    limits = cost_limits(grid(pooled(runs), caps=CAPS, trials=[1], convention="upstream", intensity=INTENSITY), count)
    curves, arrays = medians(lambda: by_arrays(runs, limits), repeat)
    filtered, filters = medians(lambda: by_filters(runs, limits), 1)
    grouped, groups = medians(lambda: by_groups(runs, limits), 1)
    assert agree(curves, filtered)
    assert agree(curves, grouped)
    return {
        "models": len(MODELS),
        "problems": PROBLEMS,
        "samples": SAMPLES,
        "caps": len(CAPS),
        "policies": len(POLICIES),
        "limits": count,
        "rows_of_csv": len(table),
        "files_to_csv": in_process,
        "files_to_csv_by_command": command,
        "curves_by_arrays": arrays,
        "curves_by_filters": filters,
        "curves_by_groups": groups,
        "ratio_filters": round(filters["cpu_seconds"] / arrays["cpu_seconds"], 1),
        "ratio_groups": round(groups["cpu_seconds"] / arrays["cpu_seconds"], 1),
        "cpus": os.cpu_count(),
        "load_before": round(load, 1),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pandas": pd.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--limits", type=int, default=100, help="cost limits of the curves (default: 100)")
    parser.add_argument(
        "--repeat", type=int, default=3, help="runs of our own ways, of which medians are shown (default: 3)"
    )
    parser.add_argument("--out", type=Path, help="write the results here, JSON")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    figures = measure(arguments.limits, arguments.repeat)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(arguments.out, json.dumps(figures, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return

    def seconds(name: str) -> str:
        return f"{figures[name]['wall_seconds']:7.2f} s, of a CPU {figures[name]['cpu_seconds']:7.2f} s"

    print(f"files to frontier CSV, {figures['rows_of_csv']} rows")
    print(f"  in this process   {seconds('files_to_csv')}")
    print(f"  kinetics frontier {seconds('files_to_csv_by_command')}")
    print(f"samples in memory to {2 * len(MODELS)} curves of {arguments.limits} cost limits, equal to 1e-12")
    print(f"  arrays            {seconds('curves_by_arrays')}")
    print(f"  filters           {seconds('curves_by_filters')}, {figures['ratio_filters']:.0f} times the CPU time")
    print(f"  grouped maxima    {seconds('curves_by_groups')}, {figures['ratio_groups']:.0f} times the CPU time")


if __name__ == "__main__":
    main()
