"""Tokens per second of one decoder layer, dense and block top-k: the paper's throughput figure, measured like for like.

    python experiments/benchmarks/one_layer.py --page-size 16 --topk-page 64 --batch-size 256 --world-size 8
    python experiments/benchmarks/one_layer.py --model 0.6B --gen-len 1024 --batch-size 2 --repeats 3 --json

As the paper's published benchmark: one layer (norms, projections, attention, feed-forward) of one of `--world-size`
devices, each with its share of the heads and of the feed-forward; sequences of `--gen-len` / 2 tokens, all of one
length; the step's token is written and attended to, and the same step is repeated. Tokens per second are those of one
device as if the model were its layers alone: batch / (seconds of a layer · layers · world size). Left out are the
embedding, the head, sampling, and what devices say to each other.

Not as there: pages are chosen by the means of the keys that are in the cache, and a page that fills gets its mean
(there: random pages, and random means that no key changes); block top-k attends to `--topk-page` pages and the current
one, chosen for every KV head (there: one KV head); RoPE is applied. `byte_ratio` is the speedup if only the bytes read
took time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
from flax import nnx
from jax.typing import DTypeLike
from kinetics_kernels.backends import ATTENTION_OPS, Backend, backend_error

from kinetics_jax.attention.shared_prefix import resolved_backend
from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import UserError
from kinetics_jax.files import write_atomic
from kinetics_jax.models.qwen3 import DecoderLayer, rope_table

TURNS = 5  # both ways take turns; the median counts
Pools = tuple[jax.Array, jax.Array, jax.Array]  # K, V, means of K


def share_of(config: ModelConfig, world_size: int) -> ModelConfig:
    """What one device of `world_size` has of every layer. Raises UserError where that is no whole number of heads."""
    if config.num_experts:
        raise UserError(
            f"{config.name}: the paper's benchmark, and this one, are of dense feed-forwards, not of experts"
        )
    sizes = {
        "num_heads": config.num_heads,
        "num_kv_heads": config.num_kv_heads,
        "intermediate_size": config.intermediate_size,
    }
    if world_size < 1:
        raise UserError(f"--world-size must be at least 1, got {world_size}")
    if odd := [f"{name} ({size})" for name, size in sizes.items() if size % world_size]:
        raise UserError(f"--world-size {world_size} does not divide {odd[0]} of {config.name}")
    return dataclasses.replace(config, **{name: size // world_size for name, size in sizes.items()})


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured: `config` is one device's share of the model, `context` the tokens before the step's own."""

    config: ModelConfig
    context: int
    page_size: int
    topk_page: int
    batch: int
    dtype: DTypeLike
    backend: Backend | None

    @property
    def pages(self) -> int:
        """Pages of a sequence, that of the step's token among them."""
        return self.context // self.page_size + 1

    def pools(self) -> Pools:
        """Random K and V [kv_heads, pages, page_size, head_dim] of all sequences, and the mean key of every page."""
        shape = (self.config.num_kv_heads, self.batch * self.pages, self.page_size, self.config.head_dim)
        k, v = (jax.random.normal(key, shape, self.dtype) for key in jax.random.split(jax.random.key(0)))
        return k, v, jnp.mean(k, axis=2, dtype=jnp.float32).astype(self.dtype)

    def step(self, *, sparse: bool) -> Callable[[Any, jax.Array, Pools], tuple[jax.Array, Pools]]:
        """The layer's step, jitted: (weights, hidden [batch, 1, hidden], pools) to its output and the pools, which are
        donated.
        """
        graph, _ = nnx.split(self.layer())
        table = jnp.arange(self.batch * self.pages, dtype=jnp.int32).reshape(self.pages, self.batch).T
        lengths = jnp.full(self.batch, self.context + 1, jnp.int32)
        positions = jnp.full((self.batch, 1), self.context, jnp.int32)

        def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, pools: Pools) -> tuple[jax.Array, Pools]:
            q, k, v = (x[:, 0] for x in (q, k, v))
            k_pages, v_pages, means = kernels.append_kv(*pools, k, v, table, lengths, backend=self.backend)
            assert means is not None  # as given
            chosen, covered = table, lengths
            if sparse:
                chosen, covered = kernels.select_pages(
                    q,
                    means,
                    table,
                    lengths,
                    page_size=self.page_size,
                    pages=self.topk_page + 1,
                    sink_pages=0,
                    recent_pages=1,
                    backend=self.backend,
                )
            out, _ = kernels.paged_decode(q, k_pages, v_pages, chosen, covered, backend=self.backend)
            return out[:, None], (k_pages, v_pages, means)

        def step(weights: Any, hidden: jax.Array, pools: Pools) -> tuple[jax.Array, Pools]:
            config = self.config
            cos, sin = rope_table(positions, config.head_dim, config.rope_theta, config.rope_scaling)
            return nnx.merge(graph, weights)(hidden, cos, sin, 0, attend, pools)

        return jax.jit(step, donate_argnums=2)

    def layer(self) -> DecoderLayer:
        return DecoderLayer(self.config, 0, rngs=nnx.Rngs(0), dtype=self.dtype)

    def bytes_read(self, *, sparse: bool) -> int:
        """Of a step: weights, K and V of what is attended to, and the means that are searched."""
        config, size = self.config, jnp.dtype(self.dtype).itemsize
        matrices = config.hidden_size * config.head_dim * 2 * (config.num_heads + config.num_kv_heads)
        matrices += 3 * config.hidden_size * config.intermediate_size
        tokens, means = self.context + 1, 0
        if sparse:
            whole = self.context // self.page_size
            tokens = min(self.topk_page, whole) * self.page_size + self.context % self.page_size + 1
            means = whole if self.topk_page < whole else 0
        return size * (matrices + self.batch * config.num_kv_heads * config.head_dim * (2 * tokens + means))


def measure(case: Case, *, repeats: int) -> dict[str, dict[str, float]]:
    """Seconds of a step of the layer, medians over turns of `repeats` steps, dense and block top-k."""
    _, weights = nnx.split(case.layer())
    hidden = jax.random.normal(jax.random.key(1), (case.batch, 1, case.config.hidden_size), case.dtype)
    ways = {"dense": case.step(sparse=False), "block_topk": case.step(sparse=True)}
    pools = case.pools()
    for step in ways.values():  # compiles, and runs once
        pools = step(weights, hidden, pools)[1]
        jax.block_until_ready(pools)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, step in ways.items():
            began = time.perf_counter()
            for _ in range(repeats):
                pools = step(weights, hidden, pools)[1]
            jax.block_until_ready(pools)
            seconds[name].append((time.perf_counter() - began) / repeats)
    return {name: {"layer_seconds": statistics.median(turns)} for name, turns in seconds.items()}


def result(arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole record. Raises UserError for a model or sizes that cannot be measured."""
    config = ModelConfig.named(arguments.model)
    for flag in ("gen_len", "page_size", "topk_page", "batch_size", "repeats"):
        if getattr(arguments, flag) < 1:
            raise UserError(f"--{flag.replace('_', '-')} must be at least 1, got {getattr(arguments, flag)}")
    if arguments.backend is not None and (wrong := backend_error(arguments.backend, ops=ATTENTION_OPS)):
        raise UserError(wrong)
    context = arguments.gen_len // 2
    if context < arguments.page_size:
        raise UserError(f"--gen-len {arguments.gen_len}: half of it must fill a page of {arguments.page_size} tokens")
    case = Case(
        share_of(config, arguments.world_size),
        context,
        arguments.page_size,
        arguments.topk_page,
        arguments.batch_size,
        jnp.dtype(arguments.dtype),
        arguments.backend,
    )
    ways = measure(case, repeats=arguments.repeats)
    for way in ways.values():
        share = arguments.world_size * config.num_layers
        way["tokens_per_second"] = arguments.batch_size / (way["layer_seconds"] * share)
    dense, sparse = (case.bytes_read(sparse=flag) for flag in (False, True))
    return {
        "model": config.name,
        "context": context,
        "page_size": arguments.page_size,
        "topk_page": arguments.topk_page,
        "batch_size": arguments.batch_size,
        "world_size": arguments.world_size,
        "layers": config.num_layers,
        "dtype": arguments.dtype,
        **ways,
        "speedup": ways["dense"]["layer_seconds"] / ways["block_topk"]["layer_seconds"],
        "byte_ratio": dense / sparse,
        "left_out": "embedding, head, sampling, communication; one layer is timed and taken for all",
        "device": jax.devices()[0].device_kind,
        "backend": resolved_backend(arguments.backend),
        "jax": jax.__version__,
        "load_average": os.getloadavg()[0],
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="Qwen/Qwen3-8B", help="a published name (%(default)s)")
    parser.add_argument("--gen-len", type=int, default=32_768, help="twice the tokens of a sequence (%(default)s)")
    parser.add_argument("--page-size", type=int, default=16, help="tokens of a page (%(default)s)")
    parser.add_argument("--topk-page", type=int, default=64, help="pages chosen (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=256, help="sequences (%(default)s)")
    parser.add_argument("--world-size", type=int, default=8, help="devices that share the model (%(default)s)")
    parser.add_argument("--repeats", type=int, default=64, help="steps of a turn (%(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--backend", help="for all ops, or OP=NAME,OP=NAME; default: what suits the device")
    parser.add_argument("--json", nargs="?", const="-", metavar="PATH", help="print the record as JSON, or write it")
    arguments = parser.parse_args(argv)
    try:
        record = result(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    text = json.dumps(record, indent=1) + "\n"
    if arguments.json == "-":
        print(text, end="")
        return
    for name in ("dense", "block_topk"):
        way = record[name]
        print(f"{name}: {way['tokens_per_second']:.4g} tokens/s, {1e6 * way['layer_seconds']:.4g} µs a layer")
    print(f"speedup {record['speedup']:.3g} (byte ratio {record['byte_ratio']:.3g}) on {record['device']}, one layer")
    if arguments.json:
        write_atomic(Path(arguments.json), text)


if __name__ == "__main__":
    main()
