"""What no Triton kernel here takes is refused in one manner."""

from __future__ import annotations

import jax.numpy as jnp

INPUT_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def refuse_unless(op: str, *needs: tuple[bool, str]) -> None:
    """Raises NotImplementedError naming the first of `needs` (met or not, and what is needed) that is not met."""
    for met, needed in needs:
        if not met:
            raise NotImplementedError(f"{op}: the triton backend takes {needed}; backend='xla' takes any")
