"""A model, its cache and its slots as shapes with their shardings on a mesh, which is all that compiling needs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike

from kinetics_jax.attention.cache import PagedCache, empty_cache
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.config import ModelConfig
from kinetics_jax.engine.sampling import seed_key
from kinetics_jax.engine.slots import Slots
from kinetics_jax.models.qwen3 import Qwen3
from kinetics_jax.sharding.mesh import param_sharding, pool_spec, rows_sharding


def abstract_model(
    config: ModelConfig, *, dtype: DTypeLike = jnp.float32, mesh: Mesh | None = None
) -> tuple[nnx.GraphDef, nnx.State]:
    """`nnx.split` of a model whose weights are shapes."""
    graph, weights = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0), dtype=dtype, mesh=mesh)))
    if mesh is None:
        return graph, weights
    sharding_for = param_sharding(config, mesh)
    placed = [
        (path, nnx.Param(_placed(leaf, sharding_for(".".join(map(str, path))))))
        for path, leaf in nnx.to_flat_state(weights)
    ]
    return graph, nnx.from_flat_state(placed)


def abstract_cache(
    policy: AttentionPolicy,
    config: ModelConfig,
    *,
    num_pages: int,
    dtype: DTypeLike,
    rows: int | None = None,
    mesh: Mesh | None = None,
) -> PagedCache:
    """`attention.cache.empty_cache` as shapes; `num_pages` and `rows` are those of all shards."""
    cache = jax.eval_shape(lambda: empty_cache(policy, config, num_pages=num_pages, dtype=dtype, rows=rows, mesh=mesh))
    return _all_placed(cache, NamedSharding(mesh, pool_spec()) if mesh else None)


def abstract_slots(slots: int, mesh: Mesh | None = None) -> Slots:
    """`Slots.idle` as shapes."""
    idle = jax.eval_shape(lambda: Slots.idle(slots, seed_key(0), mesh))
    return _all_placed(idle, rows_sharding(mesh) if mesh else None)


def abstract_rows(shape: tuple[int, ...], mesh: Mesh | None = None, dtype: DTypeLike = jnp.int32) -> Any:
    """An array as a shape, with a row for each sequence, or each shard of them: a page table, tokens."""
    return jax.ShapeDtypeStruct(shape, dtype, sharding=rows_sharding(mesh) if mesh else None)


def abstract_scalar(mesh: Mesh | None = None, dtype: DTypeLike = jnp.int32) -> Any:
    """A number as a shape; every device has it."""
    return jax.ShapeDtypeStruct((), dtype, sharding=NamedSharding(mesh, PartitionSpec()) if mesh else None)


def _all_placed(tree: Any, sharding: Sharding | None) -> Any:
    return tree if sharding is None else jax.tree.map(lambda leaf: _placed(leaf, sharding), tree)


def _placed(leaf: Any, sharding: Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
