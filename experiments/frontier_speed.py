"""How long it takes from stored token counts to a frontier, beside the way the paper's code goes about it.

6 models × 30 problems × 32 samples × 6 attention budgets, made up and written as tables of a row per sample; then, from
those files: read, pass@1 under 16 length caps with intervals, costs, frontier, CSV. The other way, written anew from a
description of the published code: a data frame row per (model, budget, cap, problem), its cost from scalar arithmetic
over that problem's samples in a Python loop; then, for every cost limit and every problem, filters over the frame: that
problem's rows, the affordable ones, the cheapest of the best. Both ways start from samples in memory and give, at the
same cost limits, the best accuracy per problem and the configuration that has it; their accuracies must agree.

    python experiments/frontier_speed.py
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kinetics_jax.config import ModelConfig
from kinetics_jax.economics.allocation import best_per_problem, cost_limits
from kinetics_jax.economics.conventions import UPSTREAM_PARAMETERS
from kinetics_jax.economics.frontier import frontier
from kinetics_jax.economics.grid import grid
from kinetics_jax.economics.readers import read_all
from kinetics_jax.economics.samples import RunData, pooled
from kinetics_jax.policies import Dense, LiteSysBlockTopK, Policy
from kinetics_jax.traces import write_whole

MODELS = [f"Qwen/Qwen3-{size}" for size in UPSTREAM_PARAMETERS]
PROBLEMS, SAMPLES, LONGEST = 30, 32, 32_768
# Dense, and the budgets of the paper with their page sizes: 128 to 2048 tokens.
POLICIES: list[Policy] = [
    Dense(),
    *(LiteSysBlockTopK(pages=k, page_size=size) for k, size in ((1, 128), (4, 64), (16, 32), (64, 16), (256, 8))),
]
CAPS = [LONGEST * step // 16 for step in range(1, 17)]
INTENSITY = 562.5


def write_samples(folder: Path) -> list[Path]:
    """A table for every model and policy: lengths log-normal, larger models and budgets right more often."""
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


def ours(paths: list[Path], target: Path) -> pd.DataFrame:
    """From files to the frontier's CSV."""
    table = frontier(read_all(paths), caps=CAPS, trials=[1], convention="upstream", intensity=INTENSITY)
    write_whole(target, table.to_csv(index=False))
    return table


def best_at_limits(runs: list[RunData], limits: np.ndarray) -> np.ndarray:
    """Mean over problems of the best accuracy that each cost limit buys, by the grid, which knows the choices too."""
    cells = grid(pooled(runs), caps=CAPS, trials=[1], convention="upstream", intensity=INTENSITY)
    return best_per_problem(cells, limits).accuracy.mean(axis=1)


def row_by_row(runs: list[RunData], limits: np.ndarray) -> np.ndarray:
    """The same from a data frame with a row per cell, each cost a sum of scalars, each limit a pass over the frame."""
    rows = []
    for run in runs:
        assert run.config is not None
        samples = pd.DataFrame(
            {
                "problem": run.problem,
                "prompt": run.prompt_tokens,
                "tokens": run.output_tokens,
                "correct": [bool(grade) for grade in run.correct],
            }
        )
        grouped = samples.groupby(["problem", "prompt"]).agg({"tokens": list, "correct": list}).reset_index()
        for _, row in grouped.iterrows():
            for cap in CAPS:
                costs = [scalar_cost(run.config, row["prompt"], min(n, cap), run.attention) for n in row["tokens"]]
                right = [good and n <= cap for n, good in zip(row["tokens"], row["correct"], strict=True)]
                rows.append(
                    {
                        "problem": row["problem"],
                        "model": run.model,
                        "attention": str(run.attention),
                        "cap": cap,
                        "cost": sum(costs) / len(costs),
                        "accuracy": sum(right) / len(right),
                    }
                )
    frame = pd.DataFrame(rows)
    best = []
    for limit in limits:
        found, chosen = [], []
        for problem in frame["problem"].unique():
            of_problem = frame[frame["problem"] == problem]
            affordable = of_problem[of_problem["cost"] <= limit]
            if not len(affordable):
                found.append(0.0)
                continue
            found.append(affordable["accuracy"].max())
            equal = affordable[affordable["accuracy"] == found[-1]]
            chosen.append(equal[equal["cost"] == equal["cost"].min()].iloc[0][["model", "attention", "cap"]])
        best.append(np.mean(found))
    return np.array(best)


def scalar_cost(config: ModelConfig, prompt: int, output: int, policy: Policy) -> float:
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
    else:
        compute = 2 * parameters * output + 2 * (2 * prompt + output) * output * heads
        memory = 2 * (2 * prompt + output) * output * kv_heads
    return (compute + INTENSITY * memory) * 1e-12


def timed(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, wall seconds and this process's CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--limits", type=int, default=100, help="cost limits of the comparison (default: 100)")
    parser.add_argument("--repeat", type=int, default=3, help="times that each is run; medians are shown (default: 3)")
    parser.add_argument("--out", type=Path, help="write the figures here, JSON")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = write_samples(folder)
        whole = [timed(lambda: ours(paths, folder / "frontier.csv"))[1:] for _ in range(arguments.repeat)]
        rows = len(pd.read_csv(folder / "frontier.csv"))
        runs = read_all(paths)
    cells = grid(pooled(runs), caps=CAPS, trials=[1], convention="upstream", intensity=INTENSITY)
    limits = cost_limits(cells, arguments.limits)
    fast = [timed(lambda: best_at_limits(runs, limits)) for _ in range(arguments.repeat)]
    slow = [timed(lambda: row_by_row(runs, limits)) for _ in range(arguments.repeat)]
    np.testing.assert_allclose(fast[0][0], slow[0][0], atol=1e-12)
    figures = {
        "models": len(MODELS),
        "problems": PROBLEMS,
        "samples": SAMPLES,
        "caps": len(CAPS),
        "policies": len(POLICIES),
        "limits": arguments.limits,
        "rows_of_csv": rows,
        "files_to_csv_seconds": float(np.median([wall for wall, _ in whole])),
        "files_to_csv_cpu_seconds": float(np.median([cpu for _, cpu in whole])),
        "samples_to_best_seconds": float(np.median([wall for _, wall, _ in fast])),
        "row_by_row_seconds": float(np.median([wall for _, wall, _ in slow])),
        "ratio": float(np.median([cpu for *_, cpu in slow]) / np.median([cpu for *_, cpu in fast])),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pandas": pd.__version__,
    }
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(arguments.out, json.dumps(figures, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(figures, indent=1))
        return
    print(f"files to frontier CSV ({rows} rows): {figures['files_to_csv_seconds']:.2f} s")
    print(f"samples in memory to the best accuracy at {arguments.limits} limits, equal to 1e-12:")
    print(f"  arrays {figures['samples_to_best_seconds']:.3f} s, row by row {figures['row_by_row_seconds']:.2f} s")
    print(f"  ratio of CPU time {figures['ratio']:.0f}")


if __name__ == "__main__":
    main()
