"""Seconds per token over context on the CPU, dense and block top-k: how much flatter the sparse line is.

    python experiments/benchmarks/context_scaling.py --json out.json --figure context_scaling.png

Random weights at a published shape, float32, batch 1. The two policies take turns at every context. The ratio of the
two slopes has a floor in bytes: what one more token of context adds to the bytes of a step, sparse ÷ dense. A dense
layer adds its K and V; a sparse one beyond its budget adds one summary per page, 1 / (2 · page_size) of that.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from tqdm import tqdm

from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig
from kinetics_jax.devices.random_decode import RandomDecode, random_weights, read_bandwidth
from kinetics_jax.report.figure_style import save_figure


def measure(
    config: ModelConfig, weights: nnx.State, context: int, sparse: BlockTopK, steps: int, turns: int
) -> dict[str, Any]:
    """One context: the median seconds of a step, dense and sparse."""
    runs = {
        str(policy): RandomDecode(config, weights, batch=1, context=context, policy=policy, steps=steps)
        for policy in (Dense(), sparse)
    }
    turn = [{name: run.seconds_per_step() for name, run in runs.items()} for _ in range(turns)]
    return {"context": context, **{name: statistics.median(each[name] for each in turn) for name in runs}}


def slope(rows: list[dict[str, Any]], name: str) -> float:
    """Seconds that one more token of context adds to a step, by least squares."""
    return float(np.polyfit([row["context"] for row in rows], [row[name] for row in rows], 1)[0])


def slope_floor(config: ModelConfig, sparse: BlockTopK) -> float:
    """Sparse ÷ dense, in bytes read per token of context, once the context exceeds the budget."""
    dense_layers = len(sparse.dense_layers)
    summaries = (config.num_layers - dense_layers) / (2 * sparse.page_size)
    return (dense_layers + summaries) / config.num_layers


def draw(rows: list[dict[str, Any]], names: list[str], path: Path, title: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for name, marker, colour in zip(names, "os", ("#0072B2", "#D55E00"), strict=True):
        contexts = [row["context"] for row in rows]
        axes.plot(contexts, [1e3 * row[name] for row in rows], marker=marker, color=colour, label=name)
    axes.set(xlabel="Tokens in the cache", ylabel="Milliseconds per token", ylim=(0, None), title=title)
    axes.title.set_fontsize(9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen3-0.6B")
    parser.add_argument("--contexts", type=int, nargs="+", default=[2048, 4096, 8192, 12288, 16384])
    parser.add_argument("--budget", type=int, default=1024)
    parser.add_argument("--page-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4, help="decode steps per turn (%(default)s)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the measurements here")
    parser.add_argument("--figure", type=Path, help="draw them here (.png, .pdf, .svg)")
    arguments = parser.parse_args()

    config = ModelConfig.named(arguments.model)
    sparse = BlockTopK(budget=arguments.budget, page_size=arguments.page_size)
    weights = random_weights(config)
    rows = [
        measure(config, weights, context, sparse, arguments.steps, arguments.turns)
        for context in tqdm(arguments.contexts, desc="contexts")
    ]
    names = [str(Dense()), str(sparse)]
    for row in rows:
        print(f"context {row['context']:6d}: " + ", ".join(f"{name} {1e3 * row[name]:.0f} ms" for name in names))
    slopes = {name: slope(rows, name) for name in names}
    ratio, floor = slopes[names[1]] / slopes[names[0]], slope_floor(config, sparse)
    for name in names:
        print(f"{name}: {1e6 * slopes[name]:.2f} µs per token of context")
    print(f"slope of sparse ÷ dense: {ratio:.3f} (floor in bytes {floor:.3f})")
    if arguments.json:
        results = {
            "model": arguments.model,
            "jax": jax.__version__,
            "read_bandwidth": read_bandwidth(),
            "rows": rows,
            "slopes": slopes,
            "ratio": ratio,
            "ratio_floor": floor,
        }
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    if arguments.figure:
        draw(rows, names, arguments.figure, f"{config.name} shape, float32, batch 1")


if __name__ == "__main__":
    main()
