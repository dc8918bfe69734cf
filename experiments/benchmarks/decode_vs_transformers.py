"""Tokens per second of whole-model decoding on the CPU, beside `transformers` on torch, measured in turns.

    python experiments/benchmarks/decode_vs_transformers.py --json out.json
    python experiments/benchmarks/decode_vs_transformers.py --peer-python ../torch-env/bin/python

Both decode greedily with a Qwen3-0.6B-shaped model of random weights in float32, from `context` tokens in the cache.
The peer is `Qwen3ForCausalLM` with sdpa attention and a DynamicCache, as its `generate` uses them. It runs in a process
of its own (torch and the newest jax need not share an interpreter), and the two take turns, so that other work on the
machine slows both. The floor is the time to read weights and cache once at the measured bandwidth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from decode_bench.worker import transformers_worker


def measure(arguments: argparse.Namespace, batch: int, bandwidth: float) -> dict[str, Any]:
    """The row of one batch size: the two take turns, and each ratio is of one turn."""
    import jax

    from kinetics_jax.attention.policies.dense import Dense
    from kinetics_jax.config import ModelConfig
    from kinetics_jax.devices.random_decode import RandomDecode, random_weights

    config = ModelConfig.named(arguments.model)
    weights = random_weights(config)
    ours = RandomDecode(config, weights, batch=batch, context=arguments.context, policy=Dense(), steps=arguments.steps)
    point = {"runner": "transformers", "batch": batch, "context": arguments.context, "steps": arguments.steps}
    peer = transformers_worker(arguments.peer_python)
    try:
        about = peer.ask_or_exit("make", point={**point, "shape": config.to_hf()})
        turns = [
            (ours.seconds_per_step(), peer.ask_or_exit("time", runner="transformers")["seconds"])
            for _ in range(arguments.turns)
        ]
    finally:
        peer.close()
    floor = (ours.weight_bytes + ours.cache_bytes) / bandwidth
    return {
        "model": arguments.model,
        "batch": batch,
        "context": arguments.context,
        "jax": jax.__version__,
        "peer": about,
        "seconds_per_step": statistics.median(own for own, _ in turns),
        "peer_seconds_per_step": statistics.median(other for _, other in turns),
        "ratio": statistics.median(other / own for own, other in turns),
        "ratios": [round(other / own, 3) for own, other in turns],
        "floor_seconds": floor,
        "read_bandwidth": bandwidth,
        "temp_bytes": ours.temp_bytes,
        "cache_bytes": ours.cache_bytes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen3-0.6B")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 1])
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4, help="decode steps per turn (%(default)s)")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with torch and transformers")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    arguments = parser.parse_args()
    from kinetics_jax.devices.random_decode import read_bandwidth

    bandwidth = read_bandwidth()
    print(f"read bandwidth {bandwidth / 1e9:.1f} GB/s")
    rows = []
    for batch in arguments.batch:
        row = measure(arguments, batch, bandwidth)
        rows.append(row)
        print(
            f"batch {batch}, context {row['context']}: {batch / row['seconds_per_step']:.2f} tokens/s "
            f"({1e3 * row['seconds_per_step']:.0f} ms a step, floor {1e3 * row['floor_seconds']:.0f}), transformers "
            f"{batch / row['peer_seconds_per_step']:.2f} ({1e3 * row['peer_seconds_per_step']:.0f} ms): "
            f"ratio {row['ratio']:.2f} ({min(row['ratios'])} … {max(row['ratios'])}); temporaries "
            f"{row['temp_bytes'] / 1e6:.1f} MB, {row['temp_bytes'] / row['cache_bytes']:.2%} of the cache",
            flush=True,
        )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
