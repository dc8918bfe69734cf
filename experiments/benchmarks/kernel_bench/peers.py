"""Other people's decode attention in JAX over the same K and V, timed and checked in the same way.

A peer is a step, as in `time_calls`, and what it reads per set. A layout other than pages is made before the clock
starts; axes that the peer moves by itself are part of its time.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from kernel_bench.byte_model import Workload, floor_bytes
from kernel_bench.measure import CHECKED_SEQUENCES, Bench, against_floor, attended
from kernel_bench.oracle import close
from kernel_bench.states import DeviceState, contiguous, paged
from kernel_bench.timing import time_calls

Step = Callable[..., jax.Array]


def peers(platform: str) -> dict[str, tuple[str, Callable[[DeviceState], tuple[Step, tuple, Sequence[Any]]]]]:
    """By name: the op (`dense` or `block_topk`), and a function of the state to step, arguments and per-set inputs."""
    by_name: dict[str, tuple[str, Callable]] = {
        "XLA gather + softmax": ("dense", _gather_softmax),
        "XLA top_k + gather + softmax": ("block_topk", _topk_gather_softmax),
        "jax.nn.dot_product_attention xla": ("dense", functools.partial(_dot_product_attention, implementation="xla")),
    }
    if platform == "gpu":
        make = functools.partial(_dot_product_attention, implementation="cudnn")
        by_name["jax.nn.dot_product_attention cudnn"] = "dense", make
        for splits, block in ((16, 128), (16, 64), (1, 128), (1, 64)):
            make = functools.partial(_gpu_decode_attention, k_splits=splits, block_k=block)
            by_name[f"pallas.ops.gpu.decode_attention splits={splits} block={block}"] = "dense", make
        for splits, pages in ((16, 8), (16, 2), (16, 1), (1, 2), (1, 1)):
            make = functools.partial(_gpu_paged_attention, k_splits=splits, pages_per_compute_block=pages)
            by_name[f"pallas.ops.gpu.paged_attention splits={splits} pages={pages}"] = "dense", make
    if platform == "tpu":
        for tokens in (512, 1024, 2048):
            make = functools.partial(_tpu_paged_attention, tokens=tokens)
            by_name[f"pallas.ops.tpu.paged_attention block of {tokens} tokens"] = "dense", make
    return by_name


def measure_peer(bench: Bench, name: str, load: Workload, platform: str) -> dict:
    """The row of one peer, as `measure.measure` returns it."""
    op, make = peers(platform)[name]
    state = bench.state(op, load)
    step, arguments, tables = make(state)
    row: dict[str, Any] = {"status": "ok", "sets": len(tables)}
    if op == "dense":
        run = jax.jit(lambda q, table, *arguments: step(q, table, *arguments)[:CHECKED_SEQUENCES])
        error, why = check_dense_output(bench, state, run(state.q, tables[0], *arguments))
        row["error"] = error
        if why:
            return {"status": "wrong", "error": error, "why": why}
    timing, _ = time_calls(step, state.q, arguments, tables, seconds=bench.seconds, max_calls=min(bench.max_calls, 4))
    return row | against_floor(floor_bytes(op, load), timing, bench.bandwidth)


def check_dense_output(bench: Bench, state: DeviceState, out: Any) -> tuple[float, str]:
    """Compares a peer's `out` of the first sequences with the float32 reference."""
    expected = bench.once(("dense", state.load), lambda: attended(state, state.tables[0], state.lengths))
    return close(np.asarray(out, np.float64), expected[0], state.load.dtype)


def _softmax(q: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """`q [batch, q_heads, head_dim]` over `[kv_heads, batch, tokens, head_dim]`, all of them attended."""
    kv_heads, batch, _, head_dim = keys.shape
    query = q.reshape(batch, kv_heads, -1, head_dim)
    logits = jnp.einsum("bhgd,hbtd->bhgt", query, keys, preferred_element_type=jnp.float32) * head_dim**-0.5
    weights = jax.nn.softmax(logits, axis=-1).astype(values.dtype)
    return jnp.einsum("bhgt,hbtd->bhgd", weights, values).reshape(q.shape).astype(q.dtype)


def _gather_softmax(state: DeviceState) -> tuple:
    def step(q, table, keys, values):
        def gathered(pool):
            pages = paged(pool, state.load.page_size).at[:, table].get(mode="clip")
            return pages.reshape(pool.shape[0], table.shape[0], -1, pool.shape[-1])

        return _softmax(q, gathered(keys), gathered(values))

    return step, (state.keys, state.values), state.tables


def _topk_gather_softmax(state: DeviceState) -> tuple:
    """Block top-k with jnp alone: the mean query's best pages, no page forced, one softmax over them."""
    load = state.load

    def step(q, table, keys, values, summaries):
        query = q.reshape(load.batch, load.kv_heads, load.group, load.head_dim).mean(axis=2)
        scores = jnp.einsum("bhd,hbpd->bhp", query, summaries.at[:, table].get(mode="clip"))
        _, best = jax.lax.top_k(scores, load.pages)
        ids = jnp.take_along_axis(jnp.broadcast_to(table[:, None], scores.shape), best, axis=2).swapaxes(0, 1)
        heads = jnp.arange(load.kv_heads)[:, None, None]

        def gathered(pool):
            pages = paged(pool, load.page_size).at[heads, ids].get(mode="clip")
            return pages.reshape(load.kv_heads, load.batch, -1, load.head_dim)

        return _softmax(q, gathered(keys), gathered(values))

    return step, (state.keys, state.values, state.summaries), state.tables


def _by_position(state: DeviceState) -> list[tuple[jax.Array, jax.Array]]:
    """K and V `[batch, context, kv_heads, head_dim]` of every set."""
    moved = functools.partial(contiguous, page_size=state.load.page_size, heads_first=False)
    return [(moved(state.keys, table), moved(state.values, table)) for table in state.tables]


def _dot_product_attention(state: DeviceState, *, implementation: Literal["xla", "cudnn"]) -> tuple:
    def step(q, pools):
        return jax.nn.dot_product_attention(q[:, None], *pools, implementation=implementation)[:, 0]

    return step, (), _by_position(state)


def _gpu_decode_attention(state: DeviceState, *, k_splits: int, block_k: int) -> tuple:
    gqa = importlib.import_module("jax.experimental.pallas.ops.gpu.decode_attention").gqa
    return lambda q, pools: gqa(q, *pools, k_splits=k_splits, block_k=block_k), (), _by_position(state)


def _gpu_paged_attention(state: DeviceState, *, k_splits: int, pages_per_compute_block: int) -> tuple:
    attend = importlib.import_module("jax.experimental.pallas.ops.gpu.paged_attention").paged_attention
    load = state.load

    def step(q, table, keys, values, lengths):  # it does not scale the logits: q comes scaled
        return attend(
            (q * load.head_dim**-0.5).astype(q.dtype),
            paged(keys, load.page_size),
            paged(values, load.page_size),
            table,
            lengths,
            k_splits=k_splits,
            pages_per_compute_block=pages_per_compute_block,
        ).reshape(q.shape)

    return step, (state.keys, state.values, state.lengths), state.tables


def _tpu_paged_attention(state: DeviceState, *, tokens: int) -> tuple:
    attend = importlib.import_module("jax.experimental.pallas.ops.tpu.paged_attention").paged_attention
    load = state.load

    def step(q, table, keys, values, lengths):  # as above
        return attend(
            (q * load.head_dim**-0.5).astype(q.dtype),
            paged(keys, load.page_size),
            paged(values, load.page_size),
            lengths,
            table,
            pages_per_compute_block=tokens // load.page_size,
        )

    return step, (state.keys, state.values, state.lengths), state.tables
