"""How many configurations per second generation_cost prices on one core, by convention and attention.

    python experiments/benchmarks/cost_speed.py [--configurations 1000000] [--json]

A configuration is a (prompt length, output length, trials) of one model and attention; all are priced in one call.
The best of three in CPU time, which other work on the machine disturbs little.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.litesys_block_topk import LiteSysBlockTopK
from kinetics_jax.attention.policies.random_blocks import RandomBlocks
from kinetics_jax.attention.policies.sliding_window import SlidingWindow
from kinetics_jax.attention.policies.token_topk import TokenTopK
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import CONVENTIONS, generation_cost

POLICIES: tuple[AttentionPolicy, ...] = (
    Dense(),
    BlockTopK(budget=1024),
    TokenTopK(1024),
    SlidingWindow(1024),
    RandomBlocks(budget=1024),
    LiteSysBlockTopK(pages=64),
)


def measure(configurations: int, seed: int = 0) -> list[dict[str, Any]]:
    """A row for every convention and every attention it has a formula for: configurations per second."""
    draw = np.random.default_rng(seed)
    case = {
        "prompt_tokens": draw.integers(50, 4000, configurations),
        "output_tokens": draw.integers(1, 32_768, configurations),
        "trials": draw.integers(1, 65, configurations),
    }
    rows = []
    for convention in CONVENTIONS:
        for policy in POLICIES:
            for shared in (False, True) if convention == "traffic" else (False,):
                if convention == "upstream" and isinstance(policy, RandomBlocks):
                    continue
                extra = {"attention": policy, "convention": convention, "shared_prompt": shared}
                seconds = []
                for _ in range(3):
                    start = time.process_time()
                    generation_cost(ModelConfig.named("8B"), **case, **extra)
                    seconds.append(time.process_time() - start)
                row = {"convention": convention, "attention": str(policy), "shared_prompt": shared}
                rows.append(row | {"configurations_per_second": round(configurations / min(seconds))})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configurations", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = measure(args.configurations)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        shared = ", shared prompt" if row["shared_prompt"] else ""
        rate = row["configurations_per_second"]
        print(f"{row['convention']:9} {row['attention']:44} {rate / 1e6:6.2f} million/s{shared}")


if __name__ == "__main__":
    main()
