"""Which device a call is for, and which backend suits a device without a tuning table.

The choice is a heuristic: of the kernels made for the device, which all read their bytes once. Nothing is measured.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re

import jax

# Compute capabilities of the GPUs that `targets` describes; a GPU of this machine is asked for its own.
CAPABILITIES = {"A100": (8, 0), "H100": (9, 0), "H200": (9, 0)}
AMPERE, HOPPER = (8, 0), 9  # wgmma is Hopper's alone: newer GPUs multiply otherwise
TPUS = ("TPU v5 lite", "TPU v5e", "TPU v5", "TPU v5p", "TPU v6 lite", "TPU v6e")


@dataclasses.dataclass(frozen=True)
class Device:
    """A kind of device: jax's name of it, `cpu`, `gpu` or `tpu`, and the compute capability of an NVIDIA GPU."""

    kind: str
    platform: str
    capability: tuple[int, int] | None = None


def target() -> Device:
    """The device of the abstract mesh if one is set (under shard_map, or to compile for another), else the default.

    Where arrays lie does not count: set `jax.default_device` for arrays on another device.
    """
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    default = chosen if isinstance(chosen, jax.Device) else jax.devices(chosen)[0]
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None and abstract.device_kind != default.device_kind:
        return named_device(abstract.device_kind)
    capability = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(default, "compute_capability", "")))
    known = (int(capability[1]), int(capability[2])) if capability else None
    return Device(default.device_kind, default.platform, known)


def named_device(kind: str) -> Device:
    """A device of another machine, by the name that jax gives it; an unknown name counts as a CPU."""
    if kind.startswith("TPU"):
        return Device(kind, "tpu")
    if kind.startswith("NVIDIA"):
        return Device(kind, "gpu", next((known for name, known in CAPABILITIES.items() if name in kind), None))
    return Device(kind, "cpu")


def suited_backend(device: Device) -> str:
    """The backend made for a device; `xla` if none is.

    NVIDIA GPUs from Ampere on: `triton`, or, on Hopper, `mosaic_gpu` if jax no longer has Pallas-Triton. TPU v5e,
    v5p and v6e: `mosaic_tpu`.
    """
    if device.platform == "tpu" and device.kind in TPUS:
        return "mosaic_tpu"
    if device.platform == "gpu" and device.capability is not None and device.capability >= AMPERE:
        if has_pallas_triton():
            return "triton"
        if device.capability[0] == HOPPER:
            return "mosaic_gpu"
    return "xla"


def has_pallas_triton() -> bool:
    """Whether the installed jax has Pallas-Triton, which is deprecated and to be removed."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None
