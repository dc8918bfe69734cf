"""Where the TPU kernels' pools lie."""

from __future__ import annotations

import jax
from jax.experimental.pallas import tpu as pltpu


def kept_in_hbm(pool: jax.Array) -> jax.Array:
    """The pool as an operand that stays where it is.

    Without it XLA may bring a whole pool that fits into VMEM before the kernel that gathers from it: 67 MB of summaries
    on a v6e. A call outside jit has nothing to bring it behind, and knows no such constraint.
    """
    return pltpu.with_memory_space_constraint(pool, pltpu.HBM) if isinstance(pool, jax.core.Tracer) else pool
