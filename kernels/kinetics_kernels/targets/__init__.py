"""Compiling for accelerators of other machines: `gpu("h100").compile(jax.jit(f), *shapes)`.

GPUs need jax >= 0.11 with jax-cuda13-plugin, jax-cuda13-pjrt and ptxas; TPUs need libtpu and, before Python starts, the
variables of TPU_ENVIRONMENT. JAX_PLATFORMS=cpu keeps jax from looking for the devices themselves.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from importlib import resources
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies

# libtpu looks for a TPU host when it starts; these name the topology to compile for instead.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# Of each generation, the smallest slices, of 4 and of 8 chips: a program may be compiled for some of them.
TPU_TOPOLOGIES = {
    "v5e": ("v5e:2x2", "v5e:2x4"),
    "v5p": ("v5p:2x2x1", "v5p:2x2x2"),
    "v6e": ("v6e:2x2", "v6e:2x4"),
}
GPUS = ("a100", "h100", "h200")


class TargetUnavailable(RuntimeError):
    """The compiler of a target is not installed; the message says what is missing."""


@dataclasses.dataclass(frozen=True)
class Target:
    """One kind of device to compile for; kernels ask the abstract mesh which it is. `devices`: of one host or slice."""

    name: str
    platform: str  # cuda or tpu
    devices: list[Any]
    abstract: jax.sharding.AbstractDevice

    @property
    def sharding(self) -> jax.sharding.NamedSharding:
        """Whole arrays on the first device."""
        mesh = jax.sharding.Mesh(np.array(self.devices[:1]), ("x",))
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def compile(self, function: Any, *args: Any, **static: Any) -> Any:
        """A jitted function compiled for abstract arguments, placed on the first device unless they say where."""

        def placed(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding or self.sharding)

        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=self.abstract)):
            traced = function.trace(*jax.tree.map(placed, args), **static)
            return traced.lower(lowering_platforms=(self.platform,)).compile()


def description(name: str) -> str:
    """XLA's text proto of a GPU. Raises FileNotFoundError if there is none for it."""
    return resources.files(__name__).joinpath(f"{name}.textproto").read_text()


def gpu(name: str, count: int = 1) -> Target:
    """`count` GPUs of one host, of a kind in GPUS. Raises TargetUnavailable if their compiler is not installed."""
    _needs_jax_011()
    if not (importlib.util.find_spec("jax_plugins") and importlib.util.find_spec("jax_plugins.xla_cuda13")):
        raise TargetUnavailable("jax-cuda13-plugin and jax-cuda13-pjrt are not installed")
    text = description(name)
    devices = topologies.get_topology_desc(platform="cuda", target_config=text, topology=f"1x{count}x1").devices
    kind, cores = re.findall(r'name: "(NVIDIA.*)"', text)[0], int(re.findall(r"core_count: (\d+)", text)[0])
    abstract = jax.sharding.AbstractDevice(device_kind=kind, num_cores=cores, platform="gpu")
    return Target(name, "cuda", devices, abstract)


def tpu(name: str, count: int = 1) -> Target:
    """The smallest slice with `count` chips (up to 8) of a TPU generation in TPU_TOPOLOGIES.

    Raises TargetUnavailable if libtpu is not installed, or a variable of TPU_ENVIRONMENT is not set.
    """
    _needs_jax_011()
    if importlib.util.find_spec("libtpu") is None:
        raise TargetUnavailable("libtpu is not installed")
    if absent := [variable for variable in TPU_ENVIRONMENT if variable not in os.environ]:
        raise TargetUnavailable(f"set {', '.join(absent)} before Python starts")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TPU_TOPOLOGIES[name][count > 4]).devices
    kind, cores = devices[0].device_kind, devices[0].num_cores
    return Target(name, "tpu", devices, jax.sharding.AbstractDevice(device_kind=kind, num_cores=cores, platform="tpu"))


def _needs_jax_011() -> None:
    if jax.__version_info__ < (0, 11):
        raise TargetUnavailable(f"compiling without the device needs jax 0.11, not {jax.__version__}")
