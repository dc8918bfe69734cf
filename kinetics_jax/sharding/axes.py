"""The axes of a mesh and how users spell it. No jax: a slip is told before anything is downloaded or imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import UserError

AXES = ("data", "expert", "tensor")  # neighbouring devices share a layer's tensors, which talk most


class MeshError(UserError):
    """A mesh that cannot be made, or that does not divide a model; the message names the axis and the cure."""


def mesh_sizes(mesh: Mapping[str, int] | str) -> dict[str, int]:
    """Devices along each axis of `data=2,tensor=4` or its mapping.

    Raises MeshError for another spelling, an axis that is not in AXES, or a size below 1.
    """
    sizes = _read(mesh) if isinstance(mesh, str) else dict(mesh)
    check_axes(sizes, spelled(sizes))
    if wrong := [axis for axis, size in sizes.items() if size < 1]:
        raise MeshError(f"mesh {spelled(sizes)!r}: {wrong[0]} must be at least 1")
    return sizes


def check_axes(axes: Iterable[str], name: str) -> None:
    """Raises MeshError, calling the mesh `name`, unless all are in AXES."""
    if wrong := [axis for axis in axes if axis not in AXES]:
        raise MeshError(f"mesh {name!r}: {wrong[0]!r} is not an axis (axes: {', '.join(AXES)})")


def spelled(sizes: Mapping[str, int]) -> str:
    """`data=2,tensor=4`"""
    return ",".join(f"{axis}={size}" for axis, size in sizes.items())


def _read(text: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = (piece.strip() for piece in part.partition("="))
        if axis in sizes or not size.isdecimal():
            told = "is given twice" if axis in sizes else "needs a number of devices"
            raise MeshError(f"mesh {text!r}: {axis or part!r} {told}; write it like data=2,tensor=4")
        sizes[axis] = int(size)
    return sizes


def tensor_misfit(config: ModelConfig, tensor: int) -> str | None:
    """What of a model so many tensor-parallel devices do not split evenly, to be read after their number; else None."""
    inner = {"intermediate_size": config.intermediate_size} if len(config.moe_layers) < config.num_layers else {}
    inner |= {"moe_intermediate_size": config.moe_intermediate_size} if config.moe_layers else {}
    for field, size in ({"num_heads": config.num_heads} | inner).items():
        if size % tensor:
            return f"does not divide the model's {field}, {size}"
    kv = config.num_kv_heads
    if kv % tensor and tensor % kv:
        return f"neither divides the model's {kv} KV heads nor is a multiple"
    return None
