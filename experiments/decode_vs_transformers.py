"""Tokens per second of whole-model decoding on the CPU, beside `transformers` on torch, measured in turns.

    python experiments/decode_vs_transformers.py --json out.json
    python experiments/decode_vs_transformers.py --peer-python ../torch-env/bin/python

Both decode greedily with a Qwen3-0.6B-shaped model of random weights in float32, from `context` tokens in the cache.
The peer is `Qwen3ForCausalLM` with sdpa attention and its DynamicCache, which is what its `generate` uses; it runs in a
process of its own (torch and the newest jax need not share an interpreter) and the two take turns, so that whatever
else the machine does slows both. The floor is the time to read weights and cache once at the measured bandwidth.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

PEER = """
import json, sys, time
import torch
from transformers import DynamicCache, Qwen3Config, Qwen3ForCausalLM
import transformers

shape, batch, context, steps = json.loads(sys.argv[1])
torch.manual_seed(0)
config = Qwen3Config(**shape)
model = Qwen3ForCausalLM(config).eval()
cache = DynamicCache(config=config)
for layer in range(config.num_hidden_layers):
    key, value = torch.randn(2, batch, config.num_key_value_heads, context, config.head_dim)
    cache.update(key, value, layer)

@torch.inference_mode()
def chunk():
    token = torch.zeros(batch, 1, dtype=torch.long)
    began = time.perf_counter()
    for _ in range(steps):
        token = model(input_ids=token, past_key_values=cache, use_cache=True).logits[:, -1:].argmax(-1)
    seconds = (time.perf_counter() - began) / steps
    cache.crop(-steps)
    return seconds

chunk()
print(json.dumps({"torch": torch.__version__, "transformers": transformers.__version__,
                  "threads": torch.get_num_threads(), "attention": model.config._attn_implementation}), flush=True)
for _ in sys.stdin:
    print(chunk(), flush=True)
"""


class Peer:
    """transformers in a process of its own; decodes a chunk when asked."""

    def __init__(self, python: str, shape: dict[str, Any], batch: int, context: int, steps: int):
        arguments = json.dumps([shape, batch, context, steps])
        self.process = subprocess.Popen(
            [python, "-c", PEER, arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.versions = json.loads(self._line())

    def _line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the peer process ended: does --peer-python have torch and transformers?")
        return line

    def seconds_per_step(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measure(arguments: argparse.Namespace, batch: int, bandwidth: float) -> dict[str, Any]:
    """One batch size: the two take turns; ratios are of the same turn."""
    import jax

    from kinetics_jax.config import ModelConfig
    from kinetics_jax.policies import Dense
    from kinetics_jax.random_decode import RandomDecode, random_weights

    config = ModelConfig.named(arguments.model)
    weights = random_weights(config)
    ours = RandomDecode(config, weights, batch=batch, context=arguments.context, policy=Dense(), steps=arguments.steps)
    peer = Peer(arguments.peer_python, peer_shape(config), batch, arguments.context, arguments.steps)
    try:
        turns = [(ours.seconds_per_step(), peer.seconds_per_step()) for _ in range(arguments.turns)]
    finally:
        peer.close()
    floor = (ours.weight_bytes + ours.cache_bytes) / bandwidth
    return {
        "model": arguments.model,
        "batch": batch,
        "context": arguments.context,
        "jax": jax.__version__,
        "peer": peer.versions,
        "seconds_per_step": statistics.median(own for own, _ in turns),
        "peer_seconds_per_step": statistics.median(other for _, other in turns),
        "ratio": statistics.median(other / own for own, other in turns),
        "ratios": [round(other / own, 3) for own, other in turns],
        "floor_seconds": floor,
        "read_bandwidth": bandwidth,
        "temp_bytes": ours.temp_bytes,
        "cache_bytes": ours.cache_bytes,
    }


def peer_shape(config: Any) -> dict[str, Any]:
    """The same shape in the peer's words."""
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rope_theta": config.rope_theta,
        "tie_word_embeddings": config.tie_word_embeddings,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen3-0.6B")
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 1])
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4, help="decode steps of a turn")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter with torch and transformers")
    parser.add_argument("--json", type=Path, help="write the measurements here")
    arguments = parser.parse_args()
    from kinetics_jax.random_decode import read_bandwidth

    bandwidth = read_bandwidth()
    print(f"read bandwidth {bandwidth / 1e9:.1f} GB/s")
    found = []
    for batch in arguments.batch:
        row = measure(arguments, batch, bandwidth)
        found.append(row)
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
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
