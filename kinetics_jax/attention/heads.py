"""Attention on a mesh: each device attends with its own heads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec

from kinetics_jax.sharding.mesh import kv_copies, pool_spec, rows_spec


@dataclasses.dataclass(frozen=True)
class Heads:
    """A device's part of the heads.

    `first`: the number of its first KV head. `group_queries [batch, time, heads, head_dim]`: the queries of all heads
    that share its KV heads, which is more than its own where several devices hold copies of one KV head. `within`: its
    own queries' first place among them.
    """

    first: jax.Array | int
    group_queries: jax.Array
    within: jax.Array | int = 0


def on_mesh(
    mesh: Mesh | None,
    body: Callable[..., tuple[jax.Array, Any]],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    pools: Any,
    *rows: jax.Array | None,
) -> tuple[jax.Array, Any]:
    """`body(heads, q, k, v, pools, *rows) -> (out, pools)` for the sequences, heads and pages of each device.

    `q, k, v [batch, time, heads, head_dim]` and `rows [batch, …]` are those of all devices; q and k have as many heads
    as the model, even where the pools hold copies of KV heads.
    """
    if mesh is None:
        return body(Heads(0, q), q, k, v, pools, *rows)
    kv_heads = k.shape[2]
    copies, size = kv_copies(kv_heads, mesh), q.shape[2] // kv_heads
    batch = rows_spec(mesh, q.shape[0])
    whole, split = PartitionSpec(batch), PartitionSpec(batch, None, "tensor")

    def local(q, everyone, k, v, pools, *rows):
        index = jax.lax.axis_index("tensor")
        if copies == 1:
            return body(Heads(index * k.shape[2], q), q, k, v, pools, *rows)
        first = index // copies

        def own(x: jax.Array, count: int) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, first * count, count, axis=2)

        heads = Heads(first, own(everyone, size), index * q.shape[2] - first * size)
        return body(heads, q, own(k, 1), own(v, 1), pools, *rows)

    kv = split if copies == 1 else whole
    specs = (split, whole if copies > 1 else split, kv, kv, pool_spec(), *[whole] * len(rows))
    return jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=(split, pool_spec()), check_vma=False)(
        q, q, k, v, pools, *rows
    )
