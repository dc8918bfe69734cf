"""Attention of one layer with a prompt's pages read once for all its samples, against once per sample.

    python experiments/benchmarks/shared_prefix.py --json experiments/benchmarks/results/cpu/shared_prefix.json

A decode step's attention in one dense layer: random K, V and queries of a published shape, samples of one prompt that
have some tokens of their own. Both ways take turns; seconds are medians, with CPU seconds beside them for a busy
machine. `byte_ratio` is the speedup if only the bytes read and written took time. The exit code is 1 unless both ways
agree within rounding.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
import pandas as pd
from jax.typing import DTypeLike
from kinetics_kernels.backends import ATTENTION_OPS, Backend, backend_error

from kinetics_jax.attention.shared_prefix import (
    prefix_saving,
    prefix_width,
    resolved_backend,
    share_prefixes,
    shared_prefix_decode,
    sharing_pays,
)
from kinetics_jax.config import ModelConfig
from kinetics_jax.files import write_atomic

CALLS = 8  # per turn, one after another on the device


def measure(
    config: ModelConfig,
    prompt: int,
    samples: int,
    own: int,
    page: int,
    dtype: DTypeLike,
    backend: Backend | None,
    turns: int,
) -> dict[str, Any]:
    """One row: `samples` of one prompt of `prompt` tokens (whole pages) with `own` tokens each."""
    rng, whole = np.random.default_rng(0), prompt // page
    each = -(-own // page)
    pages = rng.permutation(whole + samples * each).astype(np.int32)
    lists = [[*pages[:whole], *pages[whole + i * each :][:each]] for i in range(samples)]
    table, lengths = jnp.asarray(lists, jnp.int32), jnp.full(samples, whole * page + own, jnp.int32)
    pool = (config.num_kv_heads, len(pages), page, config.head_dim)
    k, v = (jnp.asarray(rng.standard_normal(pool, np.float32), dtype) for _ in "kv")
    q = jnp.asarray(rng.standard_normal((samples, config.num_heads, config.head_dim), np.float32), dtype)
    width = prefix_width(samples, config.group, backend)
    shared = jax.tree.map(
        jnp.asarray,
        share_prefixes(
            ((slot, pages, whole) for slot, pages in enumerate(lists)),
            slots=samples,
            width=width,
            prefix_pages=whole,
            max_pages=whole + each,
            page_size=page,
        ),
    )
    ways: dict[str, Callable[[jax.Array], jax.Array]] = {
        "apart": jax.jit(lambda q: kernels.paged_decode(q, k, v, table, lengths, backend=backend)[0]),
        "together": jax.jit(lambda q: shared_prefix_decode(q, k, v, lengths, shared, backend=backend)),
    }
    out = {name: np.asarray(way(q), np.float32) for name, way in ways.items()}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(turns):
        for name, way in ways.items():
            began = time.perf_counter(), time.process_time()
            jax.block_until_ready([way(q) for _ in range(CALLS)])
            seconds[name].append(((time.perf_counter() - began[0]) / CALLS, (time.process_time() - began[1]) / CALLS))
    itemsize = jnp.dtype(dtype).itemsize
    apart = samples * (whole * page + own) * 2 * config.num_kv_heads * config.head_dim * itemsize
    saved = prefix_saving(config, prefix=whole * page, samples=samples, width=width, itemsize=itemsize)
    wall, cpu = (
        {name: statistics.median(turn[i] for turn in turns) for name, turns in seconds.items()} for i in (0, 1)
    )
    return {
        "prompt": whole * page,
        "samples": samples,
        "own": own,
        "width": width,
        "apart_us": 1e6 * wall["apart"],
        "together_us": 1e6 * wall["together"],
        "speedup": wall["apart"] / wall["together"],
        "cpu_speedup": cpu["apart"] / cpu["together"],
        "byte_ratio": apart / (apart - saved),
        "chosen": sharing_pays(config, [(whole * page, samples)], slots=samples, width=width, itemsize=itemsize),
        "difference": float(np.abs(out["apart"] - out["together"]).max() / np.abs(out["apart"]).max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="0.6B", help="a published shape")
    parser.add_argument("--prompts", type=int, nargs="+", default=[256, 2048, 8192])
    parser.add_argument("--samples", type=int, nargs="+", default=[4, 16, 32])
    parser.add_argument("--own", type=int, default=256, help="tokens of each sample after its prompt (%(default)s)")
    parser.add_argument("--page", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--backend")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the result here")
    arguments = parser.parse_args()
    if arguments.backend is not None and (wrong := backend_error(arguments.backend, ops=ATTENTION_OPS)):
        parser.error(wrong)
    config = ModelConfig.named(arguments.model)
    dtype = jnp.dtype(arguments.dtype)
    rows = [
        measure(config, prompt, samples, arguments.own, arguments.page, dtype, arguments.backend, arguments.turns)
        for prompt in arguments.prompts
        for samples in arguments.samples
    ]
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    if arguments.json:
        about = {
            "model": arguments.model,
            "dtype": arguments.dtype,
            "page_size": arguments.page,
            "device": jax.devices()[0].device_kind,
            "backend": resolved_backend(arguments.backend),
            "jax": jax.__version__,
            "load_average": os.getloadavg()[0],
            "rows": rows,
        }
        write_atomic(arguments.json, json.dumps(about, indent=1) + "\n")
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    sys.exit(1 if any(row["difference"] > tolerance for row in rows) else 0)


if __name__ == "__main__":
    main()
