"""The axes of a mesh and how users spell it: checked before jax is imported or a checkpoint downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import UserError

AXES = ("data", "expert", "tensor")  # the last gets neighbouring devices: it communicates most


class MeshError(UserError):
    """A mesh that cannot be made, or that does not divide a model; the message names the axis and the cure."""


def mesh_sizes(mesh: Mapping[str, int] | str) -> dict[str, int]:
    """Devices along each axis of `data=2,tensor=4` or its mapping.

    Raises MeshError for another spelling, an axis that is not in AXES, or a size below 1.
    """
    sizes = _read(mesh) if isinstance(mesh, str) else dict(mesh)
    check_axes(sizes, spell_sizes(sizes))
    if wrong := [axis for axis, size in sizes.items() if size < 1]:
        raise MeshError(f"mesh {spell_sizes(sizes)!r}: {wrong[0]} must be at least 1")
    return sizes


def check_axes(axes: Iterable[str], name: str) -> None:
    """Raises MeshError, calling the mesh `name`, unless all are in AXES."""
    if wrong := [axis for axis in axes if axis not in AXES]:
        raise MeshError(f"mesh {name!r}: {wrong[0]!r} is not an axis (axes: {', '.join(AXES)})")


def spell_sizes(sizes: Mapping[str, int]) -> str:
    """`data=2,tensor=4`"""
    return ",".join(f"{axis}={size}" for axis, size in sizes.items())


def _read(text: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part in text.split(","):
        axis, _, size = (piece.strip() for piece in part.partition("="))
        if axis in sizes or not size.isdecimal():
            fault = "is given twice" if axis in sizes else "needs a number of devices"
            raise MeshError(f"mesh {text!r}: {axis or part!r} {fault}; write it like data=2,tensor=4")
        sizes[axis] = int(size)
    return sizes


def tensor_misfit(config: ModelConfig, tensor: int) -> str | None:
    """Why a model cannot be split over `tensor` devices, to be read after that number; None if it can."""
    inner = {"intermediate_size": config.intermediate_size} if len(config.moe_layers) < config.num_layers else {}
    inner |= {"moe_intermediate_size": config.moe_intermediate_size} if config.moe_layers else {}
    for field, size in ({"num_heads": config.num_heads} | inner).items():
        if size % tensor:
            return f"does not divide the model's {field}, {size}"
    kv = config.num_kv_heads
    if kv % tensor and tensor % kv:
        return f"neither divides the model's {kv} KV heads nor is a multiple"
    return None
