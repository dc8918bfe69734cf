"""What the TPU kernels share: their dtypes, the longest table, where the pools lie, and how they refuse a call."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.experimental.pallas import tpu as pltpu

from kinetics_kernels.ops import limits

INPUT_DTYPES = (jnp.bfloat16, jnp.float32)
# Two tables, this step's and the next one's, two buffers each, in 1 MB of SMEM.
MAX_TABLE = 48 << 10

refuse_unless = functools.partial(limits.refuse_unless, "mosaic_tpu")


def kept_in_hbm(pool: jax.Array, interpret: Any) -> jax.Array:
    """The pool as an operand that stays where it is.

    Without it XLA may bring a whole pool that fits into VMEM before the kernel that gathers from it: 67 MB of summaries
    on a v6e. A call outside jit has nothing to hide that behind, and knows no such constraint; an interpreter has no
    memories to choose from. XLA refuses it for a pool that a kernel writes in place, and moves none.
    """
    if interpret or not isinstance(pool, Tracer):
        return pool
    return pltpu.with_memory_space_constraint(pool, pltpu.HBM)
