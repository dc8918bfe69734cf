"""What the weights do to a price: dense over sparse attention with and without them, eight chips, uneven routers.

    python experiments/weight_prices.py [--json | --markdown] [--out experiments/results/weight_prices.json]

Outputs of 16,384 tokens for a prompt of 256, dense attention against block top-k of 1,024 tokens. Memory is stated
twice, as the data sheet has it (80 and 141 decimal GB) and as the driver reports it (81,559 and 143,771 MiB), so that
nothing here moves with the table of chips. How routers choose is simulated, with a seed. docs/economics.md has the
tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.batching import room
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.costs.hardware import Hardware, hardware
from kinetics_jax.costs.step_time import step_seconds
from kinetics_jax.files import write_atomic

RESULTS = Path(__file__).parent / "results" / "weight_prices.json"
PROMPT, OUTPUT = 256, 16_384
SPARSE = BlockTopK(budget=1024)
MEMORY = {"data sheet": {"h100": 80e9, "h200": 141e9}, "driver": {"h100": 81_559 * 2**20, "h200": 143_771 * 2**20}}
CASES = [
    ("h100", 1, ("0.6B", "8B", "14B", "32B", "30B-A3B")),
    ("h200", 1, ("8B", "32B")),
    ("h200", 8, ("8B", "32B")),
]
EIGHT = [
    ("0.6B", Dense(), 1),
    ("0.6B", SPARSE, 16),
    ("8B", Dense(), 8),
    ("8B", Dense(), 32),
    ("8B", SPARSE, 16),
    ("32B", Dense(), 16),
    ("32B", SPARSE, 16),
]
ROUTER, BATCHES, SKEW, DRAWS = "30B-A3B", (1, 2, 4, 8, 16, 32, 64, 128), 0.8, 4000


def chip(name: str, memory: str) -> Hardware:
    return dataclasses.replace(hardware(name), memory=MEMORY[memory][name])


def ratios(name: str, chips: int, size: str, memory: str) -> dict[str, Any]:
    """Dense over sparse cost of one model: without weights, and with the batches that fit, as a frontier counts it;
    `full_same`: at the smaller of both full batches for both, and without communication.
    """
    config, on = ModelConfig.named(size), chip(name, memory)
    rooms = {
        policy: room(config, on, prompt_tokens=PROMPT, output_tokens=OUTPUT, chips=chips, attention=policy)
        for policy in (Dense(), SPARSE)
    }

    def total(policy: AttentionPolicy, batch: int | None, chips: int = 1) -> float:
        case: dict[str, Any] = {"prompt_tokens": PROMPT, "output_tokens": OUTPUT, "attention": policy, "hardware": on}
        return float(generation_cost(config, **case, batch=batch, chips=chips).total)

    def ratio(batch: Any, chips: int = 1) -> float:
        dense, sparse = (total(policy, batch(found), chips) for policy, found in rooms.items())
        return dense / sparse

    least = min(found.full for found in rooms.values())
    return {
        "hardware": name,
        "memory": memory,
        "chips": chips,
        "model": size,
        "without": ratio(lambda _: None),
        "fit_batches": [found.batch for found in rooms.values()],
        "fit": ratio(lambda found: found.batch, chips),
        "full_batches": [found.full for found in rooms.values()],
        "full": ratio(lambda found: found.full, chips),
        "full_same": ratio(lambda _: least),
    }


def eight_chips(size: str, policy: AttentionPolicy, batch: int) -> dict[str, Any]:
    """How many times as quick as one H100 eight are in a decode step, at the mean context of the outputs."""
    config, contexts = ModelConfig.named(size), np.full(batch, PROMPT + OUTPUT // 2)
    one, eight = (
        float(step_seconds(config, policy, chip("h100", "driver"), contexts=contexts, chips=chips)) for chips in (1, 8)
    )
    return {"model": size, "attention": str(policy), "batch": batch, "times": one / eight}


def read_experts(popularity: np.ndarray, per_token: int, batch: int, rng: np.random.Generator) -> float:
    """Experts that a batch of tokens uses together, mean over DRAWS; each token draws `per_token` without replacement,
    by `popularity [experts]`.
    """
    used = 0
    for _ in range(DRAWS // batch):
        keys = np.log(popularity) + rng.gumbel(size=(batch, len(popularity)))  # the largest: such a draw
        chosen = np.argpartition(-keys, per_token - 1, axis=1)[:, :per_token]
        used += len(np.unique(chosen))
    return used / (DRAWS // batch)


def routers(seed: int = 0) -> list[dict[str, Any]]:
    """Reads of all weights of a decode step as counted, for even routers, over those of routers whose experts are drawn
    by Zipf's law; a row for each batch.
    """
    from kinetics_jax.costs.traffic import touched_parameters

    config, rng = ModelConfig.named(ROUTER), np.random.default_rng(seed)
    expert = len(config.moe_layers) * 3 * config.hidden_size * config.moe_intermediate_size
    popularity = np.arange(1.0, config.num_experts + 1) ** -SKEW
    rows = []
    for batch in BATCHES:
        counted = float(touched_parameters(config, batch))
        used = read_experts(popularity, config.experts_per_token, batch, rng)
        read = config.matmul_parameters + (used - config.experts_per_token) * expert
        even = config.num_experts * (1 - (1 - config.experts_per_token / config.num_experts) ** batch)
        rows.append({"batch": batch, "even_experts": even, "skewed_experts": used, "counted_over_read": counted / read})
    return rows


def tables() -> dict[str, Any]:
    """Everything, rounded to eight digits."""
    return _rounded(
        {
            "prompt": PROMPT,
            "output": OUTPUT,
            "sparse": str(SPARSE),
            "ratios": [
                ratios(name, chips, size, memory) for memory in MEMORY for name, chips, sizes in CASES for size in sizes
            ],
            "eight_chips": [eight_chips(*case) for case in EIGHT],
            "router": ROUTER,
            "skew": SKEW,
            "routers": routers(),
        }
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return float(f"{value:.8g}") if isinstance(value, float) else value


def markdown(found: dict[str, Any]) -> str:
    """The three tables of docs/economics.md."""
    lines = [
        "| hardware | memory | model | weights left out | batch that fits | prompt + cap | prompt + cap, one batch |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["ratios"]:
        cells = [
            f"{row['chips']} x {row['hardware']}",
            row["memory"],
            row["model"],
            f"{row['without']:.2f}",
            f"{row['fit']:.2f} ({', '.join(map(str, row['fit_batches']))})",
            f"{row['full']:.2f} ({', '.join(map(str, row['full_batches']))})",
            f"{row['full_same']:.2f} ({min(row['full_batches'])})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| model | attention | batch | eight chips over one |", "|---|---|---|---|"]
    lines += [
        f"| {row['model']} | {row['attention']} | {row['batch']} | {row['times']:.1f} |" for row in found["eight_chips"]
    ]
    lines += [
        "",
        "| batch | experts, even routers | experts, Zipf's law | reads counted over read |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {row['batch']} | {row['even_experts']:.1f} | {row['skewed_experts']:.1f} | {row['counted_over_read']:.2f} |"
        for row in found["routers"]
    ]
    return "\n".join(lines) + "\n"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print JSON instead of the tables")
    how.add_argument("--markdown", action="store_true", help="print the tables of docs/economics.md (the default)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="write everything here as JSON (%(default)s)")
    options = parser.parse_args(arguments)
    found = tables()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1) if options.json else markdown(found), end="\n" if options.json else "")


if __name__ == "__main__":
    main()
