"""Every kernel lowers for the hardware it is for, with whichever jax is installed; no accelerator, no compiler."""

import functools
import inspect

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import pytest
from kinetics_kernels.backends import KERNEL_OPS, kernel_backends

BATCH, KV_HEADS, GROUP, HEAD_DIM, PAGE, CONTEXT = 4, 8, 4, 128, 64, 2048
DEVICES = {"triton": "cuda", "mosaic_gpu": "cuda", "mosaic_tpu": "tpu"}
# What each backend's kernels are called in the lowered text.
KERNEL = {"triton": "xla.gpu.triton", "mosaic_gpu": "mosaic_gpu", "mosaic_tpu": "tpu_custom_call"}
CASES = [(op, backend) for op in KERNEL_OPS for backend in kernel_backends(op)]


KINDS = {"cuda": "NVIDIA H100 80GB HBM3", "tpu": "TPU v5 lite"}


def target_device(kind: str):
    """A context that traces and lowers for a device of a kind."""
    cores, platform = (1, "tpu") if kind.startswith("TPU") else (132, "gpu")
    named = "platform" in inspect.signature(jax.sharding.AbstractDevice).parameters  # from jax 0.11
    named = {"platform": platform} if named else {}
    abstract = jax.sharding.AbstractDevice(device_kind=kind, num_cores=cores, **named)
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=abstract))


def arguments(op: str) -> tuple[dict[str, int], list[jax.ShapeDtypeStruct]]:
    """Settings and abstract arguments of an op."""
    if op == "grouped_matmul":
        rows, matrices = ((8, 2048), (128, 2048, 768))
        abstract = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (rows, matrices)]
        return {}, [*abstract, jax.ShapeDtypeStruct((128,), jnp.int32)]
    pages = CONTEXT // PAGE
    pool = jax.ShapeDtypeStruct((KV_HEADS, BATCH * pages, PAGE, HEAD_DIM), jnp.bfloat16)
    summaries = jax.ShapeDtypeStruct((KV_HEADS, BATCH * pages, HEAD_DIM), jnp.bfloat16)
    q = jax.ShapeDtypeStruct((BATCH, KV_HEADS * GROUP, HEAD_DIM), jnp.bfloat16)
    new = jax.ShapeDtypeStruct((BATCH, KV_HEADS, HEAD_DIM), jnp.bfloat16)
    tables = [jax.ShapeDtypeStruct((BATCH, pages), jnp.int32), jax.ShapeDtypeStruct((BATCH,), jnp.int32)]
    if op == "append_kv":
        return {}, [pool, pool, summaries, new, new, *tables]
    if op == "select_pages":
        return {"page_size": PAGE, "pages": 16}, [q, summaries, *tables]
    return {}, [q, pool, pool, *tables]


@pytest.mark.parametrize(("op", "backend"), CASES)
def test_it_lowers(op, backend):
    if backend == "mosaic_gpu" and jax.__version_info__ < (0, 11):
        pytest.skip("the mosaic_gpu kernels need jax 0.11")
    settings, shapes = arguments(op)
    function = functools.partial(getattr(kernels, op), backend=backend, **settings)
    with target_device(KINDS[DEVICES[backend]]):
        lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=(DEVICES[backend],))
    assert KERNEL[backend] in lowered.as_text()


@pytest.mark.parametrize(("op", "backend"), [case for case in CASES if case[1] != "mosaic_gpu"])
def test_by_default_the_kernels_of_the_device_are_lowered(op, backend):
    settings, shapes = arguments(op)
    function = functools.partial(getattr(kernels, op), **settings)
    platform = DEVICES[backend]
    with target_device(KINDS[platform]):
        lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=(platform,))
    assert KERNEL[backend] in lowered.as_text()


def test_every_backend_is_lowered():
    assert {backend for _, backend in CASES} == {*DEVICES}
