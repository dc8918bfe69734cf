"""Compiling for accelerators on a machine that has none. Each target skips with a reason where its compiler lacks."""

from collections.abc import Callable

import pytest
from kinetics_kernels import targets


def there(make: Callable[..., targets.Target], *args) -> targets.Target:
    try:
        return make(*args)
    except targets.TargetUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def h100_target() -> targets.Target:
    return there(targets.gpu, "h100")


@pytest.fixture(params=targets.GPUS)
def gpu_target(request) -> targets.Target:
    return there(targets.gpu, request.param)


@pytest.fixture(params=list(targets.TPU_TOPOLOGIES))
def tpu_target(request) -> targets.Target:
    return there(targets.tpu, request.param)


@pytest.fixture(params=[(targets.gpu, "h100"), (targets.tpu, "v5e")], ids=["h100", "v5e"])
def target(request) -> targets.Target:
    return there(*request.param)
