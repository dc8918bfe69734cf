"""Which device a call is for, and which backend suits one that no tuning table speaks for.

The choice is a heuristic: of the kernels made for the device, which all read their bytes once. Nothing is measured.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import re

import jax

# Compute capabilities of the GPUs that `targets` describes; of a GPU that is here, the device itself is asked.
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
    """The device of the abstract mesh where one is set (under shard_map, or to compile for another), else the default.

    Arrays that lie elsewhere are not looked at: set `jax.default_device` for them.
    """
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    default = chosen if isinstance(chosen, jax.Device) else jax.devices(chosen)[0]
    abstract = jax.sharding.get_abstract_mesh().abstract_device
    if abstract is not None and abstract.device_kind != default.device_kind:
        return described(abstract.device_kind)
    capability = re.fullmatch(r"(\d+)\.(\d+)", str(getattr(default, "compute_capability", "")))
    known = (int(capability[1]), int(capability[2])) if capability else None
    return Device(default.device_kind, default.platform, known)


def described(kind: str) -> Device:
    """A device that is not here, by the name that jax gives it; one of no known name counts as a CPU."""
    if kind.startswith("TPU"):
        return Device(kind, "tpu")
    if kind.startswith("NVIDIA"):
        return Device(kind, "gpu", next((known for name, known in CAPABILITIES.items() if name in kind), None))
    return Device(kind, "cpu")


def suited_backend(device: Device) -> str:
    """The backend made for a device; `xla` where no kernel is.

    NVIDIA GPUs from Ampere on: `triton`, or, on Hopper, `mosaic_gpu` where jax has no Pallas-Triton any more. TPU v5e,
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
    """Whether this jax has it: it is deprecated, to be removed."""
    return importlib.util.find_spec("jax.experimental.pallas.triton") is not None
