"""Paged states on the device, large enough to time: random K and V, their summaries, runs of pages in random order."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from kinetics_kernels.reference import page_summary
from kinetics_kernels.summaries.registry import summary_kind

from kernel_bench.byte_model import Workload, floor_bytes
from kernel_bench.timing import random_array


@dataclasses.dataclass
class DeviceState:
    """Several sets of a workload's sequences in one pair of pools, stored by token so that any page size is a view."""

    load: Workload
    q: jax.Array  # [batch, q_heads, head_dim]
    keys: jax.Array  # [kv_heads, tokens, head_dim]
    values: jax.Array
    summaries: jax.Array  # [kv_heads, num_pages, (2,) head_dim]
    tables: list[jax.Array]  # one [batch, table_pages] per set
    lengths: jax.Array  # [batch]


def sets_needed(op: str, load: Workload, rotate_bytes: int, max_bytes: int) -> int:
    """Sets of sequences, a power of two: as many as one round over them needs to read `rotate_bytes`, in `max_bytes`.

    Raises MemoryError if not even one set fits.
    """
    if state_bytes(load, 1) > max_bytes:
        raise MemoryError(f"K, V and summaries take {state_bytes(load, 1) / 1e9:.1f} GB of {max_bytes / 1e9:.1f} GB")
    sets = 1
    while sets * floor_bytes(op, load) < rotate_bytes and state_bytes(load, 2 * sets) <= max_bytes and sets < 256:
        sets *= 2
    return sets


def state_bytes(load: Workload, sets: int) -> int:
    tokens = sets * load.batch * load.context * load.token_bytes
    return tokens + tokens * summary_kind(load.summary).vectors // (2 * load.page_size)


def make_state(load: Workload, sets: int, like: DeviceState | None = None) -> DeviceState:
    """A random state. K and V of `like` are used again if it has as many tokens; page size, group, summary and run may
    differ.
    """
    tokens = sets * load.batch * load.context
    dtype = jnp.dtype(load.dtype)
    shape = (load.kv_heads, tokens, load.head_dim)
    if like is not None and like.keys.shape == shape and like.keys.dtype == dtype:
        keys, values = like.keys, like.values
    else:
        keys, values = (random_array(jax.random.key(seed), shape, dtype) for seed in (1, 2))
    run = math.gcd(load.run, load.table_pages)
    first = np.random.default_rng(0).permutation(tokens // load.page_size // run).astype(np.int32) * run
    tables = (first[:, None] + np.arange(run, dtype=np.int32)).reshape(sets, load.batch, load.table_pages)
    return DeviceState(
        load,
        random_array(jax.random.key(3), (load.batch, load.q_heads, load.head_dim), dtype),
        keys,
        values,
        _summaries(keys, load.page_size, load.summary),
        [jnp.asarray(table) for table in tables],
        jnp.full(load.batch, load.context, jnp.int32),
    )


def paged(pool: jax.Array, page_size: int) -> jax.Array:
    """`[kv_heads, tokens, head_dim]` as pages; inside jit a view."""
    return pool.reshape(pool.shape[0], -1, page_size, pool.shape[-1])


@functools.partial(jax.jit, static_argnames=("page_size", "summary"))
def _summaries(keys: jax.Array, page_size: int, summary: str) -> jax.Array:
    """Summaries of all pages, one KV head at a time: their float32 temporaries stay small."""

    def summaries_of_head(pool: jax.Array) -> jax.Array:
        return page_summary(pool.reshape(-1, page_size, pool.shape[-1]), summary)

    return jax.lax.map(summaries_of_head, keys)


@functools.partial(jax.jit, static_argnames=("page_size", "heads_first"))
def contiguous(pool: jax.Array, table: jax.Array, *, page_size: int, heads_first: bool) -> jax.Array:
    """One set's tokens without pages: `[batch, kv_heads, context, head_dim]`, or `[batch, context, kv_heads, ...]`."""
    kv_heads, head_dim = pool.shape[0], pool.shape[-1]
    pages = paged(pool, page_size)[:, table].reshape(kv_heads, table.shape[0], -1, head_dim)
    return pages.transpose(1, 0, 2, 3) if heads_first else pages.transpose(1, 2, 0, 3)
