"""The shapes in the signatures: resolved with jaxtyping, alike in every module, and held by a call of each op."""

import inspect
import subprocess
import sys
import types
import typing

import jax
import jax.numpy as jnp
import jaxtyping
import kinetics_kernels as kernels
import numpy as np
import pytest
from beartype import beartype
from kinetics_kernels import api, grouped, masked, reference
from kinetics_kernels.backends import KERNEL_OPS, implementation, kernel_backends

from . import oracle

NAMES = {name: getattr(jaxtyping, name) for name in ("Array", "Bool", "Float", "Float32", "Int", "Int32")}


def checked(function):
    """The function with its annotations, which name types that only type checkers import, checked at run time."""
    copy = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__annotations__ = typing.get_type_hints(function, localns=NAMES)
    return jaxtyping.jaxtyped(copy, typechecker=beartype)


def public_functions(module) -> dict:
    return {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_") and value.__module__ == module.__name__
    }


CASES = [(module, name) for module in (api, grouped, masked, reference) for name in public_functions(module)]


@pytest.mark.parametrize(("module", "name"), CASES, ids=[f"{m.__name__.split('.')[-1]}.{name}" for m, name in CASES])
def test_every_array_of_a_public_function_has_a_shape(module, name):
    function = getattr(module, name)
    for argument, hint in typing.get_type_hints(function, localns=NAMES).items():
        assert hint is not jax.Array, argument


@pytest.mark.parametrize("op", [*KERNEL_OPS, "block_topk_decode"])
def test_shapes_of_the_op_the_reference_and_every_kernel_are_the_same(op):
    specified = getattr(reference, op).__annotations__
    written = [implementation(op, name) for name in kernel_backends(op)] if op in KERNEL_OPS else []
    for function in (getattr(kernels, op), *written):
        assert {name: function.__annotations__[name] for name in specified} == specified


@pytest.mark.slow
@pytest.mark.parametrize("summary", ["mean", "min_max", "mean_std"])
@pytest.mark.parametrize("module", [api, reference])
def test_a_call_of_each_attention_op_has_the_shapes_of_its_signature(module, summary):
    state = oracle.random_state(np.random.default_rng(0), [30, 7, 0], page_size=8, summary=summary)
    q, table, lengths = (jnp.asarray(array) for array in (state.q, state.page_table, state.lengths))
    pools = [jnp.asarray(pool) for pool in (state.k_pages, state.v_pages, state.summaries)]
    append, select, decode, block_topk = (
        checked(getattr(module, op)) for op in ("append_kv", "select_pages", "paged_decode", "block_topk_decode")
    )

    def calls(q, pools, new, table, lengths):
        pools = append(*pools, new, new, table, lengths, summary=summary)
        assert append(*pools[:2], None, new, new, table, lengths)[2] is None
        chosen = select(q, pools[2], table, lengths, page_size=8, pages=3, summary=summary)
        out, lse = decode(q, *pools[:2], *chosen)
        decode(q, *pools[:2], table, lengths)
        block_topk(q, *pools, table, lengths, pages=3, summary=summary)
        checked(reference.merge_partials)(jnp.stack([out, out]), jnp.stack([lse, lse]))

    jax.eval_shape(calls, q, pools, jnp.ones((3, 2, 16)), table, lengths)  # shapes are those of a trace
    with pytest.raises(jaxtyping.TypeCheckError):
        decode(q[..., :8], *pools[:2], table, lengths)
    with pytest.raises(jaxtyping.TypeCheckError):
        decode(q, *pools[:2], table, lengths.astype(jnp.float32))


@pytest.mark.parametrize("function", [api.grouped_matmul, grouped.grouped_matmul, grouped.multiply_tiles])
def test_a_call_of_grouped_matmul_has_the_shapes_of_its_signature(function):
    sizes = jnp.array([3, 0, 5])
    assert checked(function)(jnp.ones((8, 16)), jnp.ones((3, 16, 4)), sizes).shape == (8, 4)
    with pytest.raises(jaxtyping.TypeCheckError):
        checked(function)(jnp.ones((8, 16)), jnp.ones((2, 16, 4)), sizes)
    checked(grouped.tiles)(sizes, 8, 16)


@pytest.mark.slow
def test_a_call_of_each_function_over_tokens_has_the_shapes_of_its_signature():
    state = oracle.random_state(np.random.default_rng(0), [30, 7, 0], page_size=8)
    q, k_pages, v_pages, table, lengths = (
        jnp.asarray(a) for a in (state.q, state.k_pages, state.v_pages, state.page_table, state.lengths)
    )

    def calls(q, k_pages, v_pages, table, lengths):
        logits = checked(masked.token_logits)(q, k_pages, table, lengths)
        mask = checked(masked.token_topk_mask)(logits, lengths, num_kv_heads=2, tokens=4)
        checked(masked.litesys_mask)(logits, lengths, num_kv_heads=2, pages=2, page_size=4)
        checked(masked.sliding_window_mask)(lengths, logits.shape[2], tokens=8, sink=2)
        checked(masked.masked_decode)(logits, mask, v_pages, table, lengths)
        scores = jnp.ones((3, 2, table.shape[1]))
        checked(reference.choose_pages)(scores, table, lengths, page_size=8, pages=3)

    jax.eval_shape(calls, q, k_pages, v_pages, table, lengths)


@pytest.mark.slow
def test_the_kernels_import_jax_alone():
    code = "import sys, kinetics_kernels as kernels, kinetics_kernels.targets\n"
    code += "from kinetics_kernels.backends import KERNEL_OPS, implementation, kernel_backends\n"
    code += "[implementation(op, name) for op in KERNEL_OPS for name in kernel_backends(op)]\n"
    code += "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"jax", "numpy", "kinetics_kernels"} <= {*loaded}
    assert not {*loaded} & {"jaxtyping", "beartype", "kinetics_jax", "flax", "scipy", "pandas", "torch", "tyro"}
