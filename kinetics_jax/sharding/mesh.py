"""How a model lies over several devices: a mesh of data, expert and tensor parallelism, and which axis splits what.

- `tensor` splits query and KV heads, the columns and rows of the feed-forward matrices, and the vocabulary. Where it
  has more devices than there are KV heads, each device holds a copy of the one that its query heads need.
- `expert` splits the experts of a layer.
- `data` and `expert` together split the sequences: each of these shards has its own slots and its own pages, whose ids
  count from 0 in each shard. Attention's weights are the same in all of them.

Everything is a `NamedSharding`; what jit cannot split by itself (kernels, experts, pages) runs under `shard_map`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kinetics_jax.config import ModelConfig
from kinetics_jax.sharding.axes import AXES, MeshError, check_axes, mesh_sizes, spell_sizes, tensor_misfit

ROWS = ("data", "expert")  # what splits the sequences
MeshLike = Mesh | Mapping[str, int] | str  # a mesh, {"data": 2, "tensor": 4} or "data=2,tensor=4"

# The axes that split a parameter, by the end of its name; matrices are [out, in], those of experts [experts, in, out].
SPLIT: dict[str, tuple[str | None, ...]] = {
    r"self_attn\.[qkv]_proj\.(weight|bias)": ("tensor",),
    r"self_attn\.o_proj\.weight": (None, "tensor"),
    r"mlp\.(gate|up)_proj\.weight": ("tensor",),
    r"mlp\.down_proj\.weight": (None, "tensor"),
    r"mlp\.experts\.(gate|up)_proj\.weight": ("expert", None, "tensor"),
    r"mlp\.experts\.down_proj\.weight": ("expert", "tensor"),
    r"(embed_tokens|lm_head)\.weight": ("tensor",),
}


def make_mesh(mesh: MeshLike) -> Mesh:
    """A mesh with the axes `data`, `expert` and `tensor` over jax's devices, those left out being of size 1.

    A `Mesh` keeps its devices and may have any of these axes. Raises MeshError for another axis, a size below 1, or
    more devices than jax has.
    """
    if isinstance(mesh, Mesh):
        check_axes(mesh.axis_names, ", ".join(map(str, mesh.axis_names)))
        order = [mesh.axis_names.index(axis) for axis in AXES if axis in mesh.axis_names]
        sizes = [mesh.shape.get(axis, 1) for axis in AXES]
        return Mesh(mesh.devices.transpose(order).reshape(sizes), AXES)
    sizes = mesh_sizes(mesh)
    count, devices = math.prod(sizes.values()), jax.devices()
    if count > len(devices):
        raise MeshError(f"mesh {spell_sizes(sizes)!r} takes {count} devices; there are {len(devices)}")
    shape = [sizes.get(axis, 1) for axis in AXES]
    return Mesh(np.array(devices[:count]).reshape(shape), AXES)


def mesh_spelling(mesh: Mesh) -> str:
    """`data=2,tensor=4`: the axes of more than one device; `data=1` if there are none."""
    return spell_sizes({axis: size for axis, size in mesh.shape.items() if size > 1}) or "data=1"


def check_mesh(mesh: Mesh, config: ModelConfig) -> None:
    """Raises MeshError unless the mesh's axes divide the model."""
    tensor, experts = mesh.shape["tensor"], mesh.shape["expert"]
    name = f"mesh {mesh_spelling(mesh)!r}"
    if misfit := tensor_misfit(config, tensor):
        raise MeshError(f"{name}: tensor = {tensor} {misfit}")
    if experts > 1 and not config.moe_layers:
        raise MeshError(f"{name}: the model has no experts; use data or tensor instead")
    if config.moe_layers and config.num_experts % experts:
        raise MeshError(f"{name}: expert = {experts} does not divide the model's num_experts, {config.num_experts}")


def row_shards(mesh: Mesh | None) -> int:
    """How many shards the sequences, and the pool's pages, are split into; 1 without a mesh."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["expert"]


def kv_copies(kv_heads: int, mesh: Mesh | None) -> int:
    """How many devices of the tensor axis hold each KV head; 1 without a mesh."""
    return 1 if mesh is None else max(1, mesh.shape["tensor"] // kv_heads)


def rows_spec(mesh: Mesh, rows: int, axes: tuple[str, ...] = ROWS) -> tuple[str, ...] | None:
    """The axes that split `rows` rows: all of `axes`, or None if they do not divide them."""
    return axes if rows % math.prod(mesh.shape[axis] for axis in axes) == 0 else None


def param_sharding(config: ModelConfig, mesh: Mesh) -> Callable[[str], NamedSharding]:
    """Where each parameter goes, by its name: a `checkpoints.tensors.Placement`.

    Every device holds all of the norms, routers and unsplit biases, of K and V projections whose heads are copied, and
    of a vocabulary that the tensor axis does not divide.
    """

    def sharding_for(name: str) -> NamedSharding:
        spec = next((axes for pattern, axes in SPLIT.items() if re.fullmatch(rf"(.*\.)?{pattern}", name)), ())
        copied = re.search(r"\.[kv]_proj\.", name) and kv_copies(config.num_kv_heads, mesh) > 1
        if copied or (".weight" in name and _of_vocabulary(name) and config.vocab_size % mesh.shape["tensor"]):
            spec = ()
        return NamedSharding(mesh, PartitionSpec(*spec))

    return sharding_for


def rows_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of arrays with a row per sequence, or per shard of sequences."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def pool_spec() -> PartitionSpec:
    """The split of a pool `[kv_heads, num_pages, …]`: heads over `tensor`, pages over `data` and `expert`."""
    return PartitionSpec("tensor", ROWS)


def constrained(array: jax.Array, mesh: Mesh | None, *axes: str | tuple[str, ...] | None) -> jax.Array:
    """The array with its dimensions split over `axes` of the mesh, for use under jit; unchanged without a mesh."""
    if mesh is None:
        return array
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, PartitionSpec(*axes)))


def _of_vocabulary(name: str) -> bool:
    return name.startswith(("embed_tokens.", "lm_head."))
