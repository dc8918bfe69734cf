"""Compiling for accelerators on a machine that has none. A target whose compiler is not installed skips its tests."""

from collections.abc import Callable

import pytest
from kinetics_kernels import targets


@pytest.fixture(scope="session", autouse=True)
def _compiled_as_users_do(request: pytest.FixtureRequest) -> None:
    """What these tests read from machine code is the optimised program's."""
    if not request.config.getoption("--optimised"):
        pytest.skip("compiles as users do: pytest --optimised tests/deviceless")


def target_or_skip(make: Callable[..., targets.Target], *args) -> targets.Target:
    try:
        return make(*args)
    except targets.TargetUnavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def h100_target() -> targets.Target:
    return target_or_skip(targets.gpu, "h100")


@pytest.fixture(params=targets.GPUS)
def gpu_target(request) -> targets.Target:
    return target_or_skip(targets.gpu, request.param)


@pytest.fixture(params=list(targets.TPU_TOPOLOGIES))
def tpu_target(request) -> targets.Target:
    return target_or_skip(targets.tpu, request.param)


@pytest.fixture(params=[(targets.gpu, "h100"), (targets.tpu, "v5e")], ids=["h100", "v5e"])
def target(request) -> targets.Target:
    return target_or_skip(*request.param)
