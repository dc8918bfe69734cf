"""Kernels under the interpreters of TPU and GPU kernels, which call back into jax while a program runs."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as tpu_interpreter


def interpreted(op: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """`op` as one program, which has ended with all its callbacks when the call returns.

    What is dispatched while it runs can lock up with its callbacks, and its last race is noted at its very end.
    """
    program = jax.jit(functools.partial(op, **options))

    def run(*arrays: Any) -> Any:
        results = jax.block_until_ready(program(*arrays))
        jax.effects_barrier()
        return results

    return run


def tpu_races_found() -> bool:
    """Whether the TPU kernel interpreted last made two accesses without an order."""
    assert tpu_interpreter.races is not None
    return tpu_interpreter.races.races_found
