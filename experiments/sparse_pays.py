"""From which context on sparse attention pays, for architectures that read less KV than Qwen3 does, and why.

    python experiments/sparse_pays.py --json experiments/results/sparse_pays.json

For each architecture: one decode step at a context, counted in eFLOPs on a chip (arithmetic + I x bytes; K, V, states,
index keys and the weights shared by the batch), with dense attention and with block top-k in the layers that attend to
everything, or with the model's own selection where it has one. The batch is what fits beside the weights on the fewest
chips, a power of two, that hold `--sequences` sequences of the longest context; at each context anew, dense and sparse
alike. Prices are of one token of one sequence; communication between chips is left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.dense import DENSE
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.architectures.architecture import Architecture
from kinetics_jax.costs.architectures.published import PUBLISHED, architecture_named
from kinetics_jax.costs.architectures.readers import architecture_of
from kinetics_jax.costs.architectures.traffic import architecture_traffic
from kinetics_jax.costs.hardware import Hardware, hardware
from kinetics_jax.costs.memory import fits
from kinetics_jax.files import write_atomic

RUN_HERE = ("Qwen3-8B", "Qwen3-32B", "Qwen3-30B-A3B")
POLICY = "block_topk:budget=1024,page_size=16,dense_layers=none"
CONTEXTS = [round(2 ** (9 + step / 4)) for step in range(4 * 9 + 1)]  # 512 … 262,144, four to a doubling
SHOWN = (16_384, 131_072)
SAVES = (1.1, 2.0)  # dense / sparse, from which on it is said to pay
SEQUENCES = 8  # of the longest context that the chips must hold


def architectures() -> list[Architecture]:
    """Three of Qwen3, for comparison, and all published ones that can be priced."""
    run = [architecture_of(ModelConfig.named(name)) for name in RUN_HERE]
    return [*run, *map(architecture_named, PUBLISHED)]


def step(
    architecture: Architecture, context: int, policy: AttentionPolicy, chip: Hardware, batch: int
) -> dict[str, float]:
    """eFLOPs of one token at a context: FLOPs by part, and reads times I."""
    prompt, output = np.array(context - 1.0), np.array(2.0)  # the step's own token makes `context`
    parts = architecture_traffic(architecture, prompt, output, policy, 2, 2, np.array(float(batch)), False)
    return {
        name: float(own) * (chip.intensity if name.endswith("_reads") else 1)
        for name, (own, _) in parts.items()
        if not name.startswith("prefill")
    }


def chips_for(architecture: Architecture, chip: Hardware, sequences: int) -> int:
    """The fewest chips, a power of two, that hold `sequences` sequences of the longest context."""
    chips = 1
    while room(architecture, chip, chips, CONTEXTS[-1]) < sequences:
        chips *= 2
    return chips


def room(architecture: Architecture, chip: Hardware, chips: int, tokens: int) -> int:
    """Sequences of `tokens` tokens that the chips hold together: weights are split, no sequence is kept twice."""
    together = dataclasses.replace(chip, memory=chip.memory * chips)
    return fits(architecture, together, tokens=tokens).sequences


def compare(architecture: Architecture, chip: Hardware, policy: AttentionPolicy, sequences: int) -> dict[str, Any]:
    """A row of the table: dense over sparse at every context, where it passes SAVES, what a dense step is made of."""
    own = architecture.selects_by_design
    dense, sparse = architecture.without_selection(), architecture
    sparse_policy = DENSE if own else policy
    chips = chips_for(architecture, chip, sequences)
    ratios, small, batches, made_of = {}, {}, {}, {}
    for context in CONTEXTS:
        batches[context] = room(dense, chip, chips, context)
        price = step(dense, context, DENSE, chip, batches[context])
        for batch, by_context in ((batches[context], ratios), (SEQUENCES, small)):
            whole = step(dense, context, DENSE, chip, batch)
            less = step(sparse, context, sparse_policy, chip, batch)
            by_context[context] = sum(whole.values()) / sum(less.values())
        made_of[context] = shares(price)
    return {
        "architecture": architecture.name,
        "sparse": "its own" if own else str(policy),
        "chips": chips,
        "parameters": architecture.total_parameters,
        "kv_elements_per_token": growth(dense),
        "layers": architecture.num_layers,
        "batch": {context: batches[context] for context in SHOWN},
        "ratio": {context: ratios[context] for context in SHOWN},
        "ratio_small_batch": {context: small[context] for context in SHOWN},
        "pays_from": {saves: first(ratios, saves) for saves in SAVES},
        "made_of": {context: made_of[context] for context in SHOWN},
        "ratios": ratios,
        "source": architecture.source,
    }


def shares(price: dict[str, float]) -> dict[str, float]:
    """What a dense step is made of: the reads that grow with the context, the weights, what stays, and arithmetic."""
    total = sum(price.values())
    reads = {
        "growing": ("dense_kv_reads", "dense_attention"),
        "weights": ("weight_reads", "linear"),
        "fixed": ("window_kv_reads", "window_attention", "state_reads", "state"),
    }
    return {kind: sum(price.get(name, 0.0) for name in names) / total for kind, names in reads.items()}


def growth(architecture: Architecture) -> int:
    """Cache elements that each further token adds, in a dense model."""
    caches = [
        mixer.cache_bytes(np.float64(2 * CONTEXTS[-1]), 1, 1) - mixer.cache_bytes(np.float64(CONTEXTS[-1]), 1, 1)
        for mixer in (layer.mixer for layer in architecture.layers)
    ]
    return round(float(sum(caches)) / CONTEXTS[-1])


def first(ratios: dict[int, float], saves: float) -> int | None:
    """The first context from which on the ratio stays at `saves` or above; None if there is none."""
    below = [context for context, ratio in ratios.items() if ratio < saves]
    rest = [context for context in ratios if not below or context > below[-1]]
    return rest[0] if rest else None


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows as the documentation prints them."""
    short, long = SHOWN

    def shown(row: dict[str, Any]) -> dict[str, Any]:
        made = row["made_of"][long]
        return {
            "model": row["architecture"].partition("/")[2] or row["architecture"],
            "KV/token": row["kv_elements_per_token"],
            "chips": row["chips"],
            **{f"{saves:g} x from": row["pays_from"][saves] or "never" for saves in SAVES},
            **{f"at {context // 1024}K": f"{row['ratio'][context]:.2f}" for context in (short, long)},
            f"batch {SEQUENCES}": f"{row['ratio_small_batch'][long]:.2f}",
            "batch": f"{row['batch'][short]}, {row['batch'][long]}",
            "KV, weights, fixed": ", ".join(f"{made[kind]:.0%}" for kind in ("growing", "weights", "fixed")),
        }

    return pd.DataFrame([shown(row) for row in rows])


def markdown(rows: list[dict[str, Any]]) -> str:
    """`table` as the documentation has it."""
    shown = table(rows)
    lines = [list(shown.columns), ["---"] * len(shown.columns), *shown.to_numpy().tolist()]
    return "\n".join(
        "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in line) + " |" for line in lines
    )


def from_json(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows as `compare` made them: the keys that are numbers again."""
    numbers = {"batch": int, "ratio": int, "ratio_small_batch": int, "made_of": int, "ratios": int, "pays_from": float}
    return [
        {
            name: {numbers[name](k): v for k, v in value.items()} if name in numbers else value
            for name, value in row.items()
        }
        for row in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", default="h100", help="chip, or a .json profile (default: %(default)s)")
    parser.add_argument("--attention", default=POLICY, help="policy of the layers that attend to everything")
    parser.add_argument("--sequences", type=int, default=SEQUENCES, help="that the chips hold at the longest context")
    parser.add_argument("--json", type=Path, help="write the rows, every context among them")
    args = parser.parse_args()
    chip, policy = hardware(args.hardware), parse_policy(args.attention)
    rows = [compare(each, chip, policy, args.sequences) for each in architectures()]
    print(table(rows).to_string(index=False))
    if args.json:
        record = {
            "command": "python experiments/sparse_pays.py --json experiments/results/sparse_pays.json",
            "hardware": chip.name,
            "attention": str(policy),
            "sequences": args.sequences,
            "rows": rows,
        }
        write_atomic(args.json, json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
