"""The choice of a backend: by default, by name, and refused."""

import inspect

import kinetics_kernels as kernels
import numpy as np
import pytest
from kinetics_kernels import reference
from kinetics_kernels.backends import BACKENDS, chosen_backend, implementation, kernel_backends

from . import oracle

OPS = ("append_kv", "select_pages", "paged_decode", "block_topk_decode")


@pytest.mark.parametrize("op", OPS)
def test_public_ops_take_what_the_reference_takes_and_a_backend(op):
    public = inspect.signature(getattr(kernels, op)).parameters
    specified = inspect.signature(getattr(reference, op)).parameters
    assert [*public] == [*specified, "backend"]
    assert all(public[name].default == parameter.default for name, parameter in specified.items())


@pytest.mark.parametrize("op", ["append_kv", "select_pages", "paged_decode"])
def test_kernels_take_what_the_reference_takes(op):
    """Every backend that is found, whichever there are: the same arguments, then its own with defaults."""
    assert "triton" in kernel_backends(op)
    specified = inspect.signature(getattr(reference, op)).parameters
    for backend in kernel_backends(op):
        parameters = inspect.signature(implementation(op, backend)).parameters
        assert [*parameters][: len(specified)] == [*specified]
        own = [*parameters.values()][len(specified) :]
        assert all(parameter.default is not inspect.Parameter.empty for parameter in own)


@pytest.mark.parametrize("platform", ["cpu", "gpu", "cuda", "tpu"])
def test_the_reference_is_chosen_everywhere_and_says_why(platform):
    for op in kernels.__all__:
        name, why = chosen_backend(op, platform)
        assert name == "xla"
        assert why
    assert ("triton" in chosen_backend("block_topk_decode", platform)[1]) == (platform in ("gpu", "cuda"))
    assert "no backend but" in chosen_backend("masked_decode", platform)[1]


def test_a_forced_reference_is_the_default():
    state = oracle.random_state(np.random.default_rng(0), [30, 7, 0])
    pools = (state.k_pages, state.v_pages, state.summaries, state.page_table, state.lengths)
    for actual, expected in zip(
        kernels.block_topk_decode(state.q, *pools, pages=4, backend="xla"),
        kernels.block_topk_decode(state.q, *pools, pages=4),
        strict=True,
    ):
        np.testing.assert_array_equal(actual, expected)


def test_backends_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"paged_decode: backend 'cuda' is not known \(known: xla, triton"):
        implementation("paged_decode", "cuda")
    absent = [name for name in BACKENDS[1:] if name not in kernel_backends("masked_decode")]
    assert absent == [*BACKENDS[1:]]
    with pytest.raises(NotImplementedError, match="masked_decode: no triton kernel is written; it has: xla"):
        implementation("masked_decode", "triton")
