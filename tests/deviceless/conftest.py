"""Compiling for accelerators on a machine that has none. Each target skips with a reason where its compiler lacks."""

import importlib.util
import os

import jax
import numpy as np
import pytest
from jax.experimental import topologies
from kinetics_kernels.targets import description

# libtpu looks for a TPU host at start; these tell it which topology to compile for instead.
TPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
# The smallest host of each generation.
TPU_TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


class Target:
    """One device to compile for (and its neighbours); kernels ask the abstract mesh which it is."""

    def __init__(self, name: str, platform: str, devices, abstract: jax.sharding.AbstractDevice):
        self.name, self.platform, self.devices, self.abstract = name, platform, devices, abstract
        mesh = jax.sharding.Mesh(np.array(devices[:1]), ("x",))
        self.sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def compile(self, function, *args, **static):
        """Compiles a jitted function for abstract arguments placed on the device."""
        placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=self.sharding), args)
        with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=self.abstract)):
            traced = function.trace(*placed, **static)
            return traced.lower(lowering_platforms=(self.platform,)).compile()


def h100() -> Target:
    if not (importlib.util.find_spec("jax_plugins") and importlib.util.find_spec("jax_plugins.xla_cuda13")):
        pytest.skip("jax-cuda13-plugin and jax-cuda13-pjrt are not installed")
    if jax.__version_info__ < (0, 11):
        pytest.skip("deviceless compilation for GPUs needs jax 0.11")
    topology = topologies.get_topology_desc(platform="cuda", target_config=description("h100"), topology="1x1x1")
    kind = "NVIDIA H100 80GB HBM3"
    abstract = jax.sharding.AbstractDevice(device_kind=kind, num_cores=132, platform="gpu")
    return Target("h100", "cuda", topology.devices, abstract)


def tpu(name: str) -> Target:
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed")
    if jax.__version_info__ < (0, 11):
        pytest.skip("deviceless compilation needs jax 0.11")
    absent = [name for name in TPU_ENVIRONMENT if name not in os.environ]
    if absent:
        pytest.skip(f"set {', '.join(absent)} before Python starts")
    devices = topologies.get_topology_desc(platform="tpu", topology_name=TPU_TOPOLOGIES[name]).devices
    kind, cores = devices[0].device_kind, devices[0].num_cores
    abstract = jax.sharding.AbstractDevice(device_kind=kind, num_cores=cores, platform="tpu")
    return Target(name, "tpu", devices, abstract)


@pytest.fixture(params=list(TPU_TOPOLOGIES))
def tpu_target(request) -> Target:
    return tpu(request.param)


def v5e() -> Target:
    return tpu("v5e")


@pytest.fixture(params=[h100, v5e], ids=["h100", "v5e"])
def target(request) -> Target:
    return request.param()


@pytest.fixture
def h100_target() -> Target:
    return h100()
