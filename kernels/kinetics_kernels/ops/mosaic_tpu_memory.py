"""Where the TPU kernels' pools lie."""

from __future__ import annotations

from typing import Any

import jax
from jax.core import Tracer
from jax.experimental.pallas import tpu as pltpu


def kept_in_hbm(pool: jax.Array, interpret: Any) -> jax.Array:
    """The pool as an operand that stays where it is.

    Without it XLA may bring a whole pool that fits into VMEM before the kernel that gathers from it: 67 MB of summaries
    on a v6e. A call outside jit has nothing to hide that behind, and knows no such constraint; an interpreter has no
    memories to choose from. XLA refuses it for a pool that a kernel writes in place, and moves none.
    """
    if interpret or not isinstance(pool, Tracer):
        return pool
    return pltpu.with_memory_space_constraint(pool, pltpu.HBM)
