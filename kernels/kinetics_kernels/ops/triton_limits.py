"""What the Triton kernels share: their dtypes, the size of the chip, and one manner of refusing the rest."""

from __future__ import annotations

import jax.numpy as jnp

INPUT_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
PROGRAMS = 264  # that fill the chip: two for each of an H100's 132 multiprocessors


def refuse_unless(op: str, *needs: tuple[bool, str]) -> None:
    """Raises NotImplementedError naming the first of `needs` (met or not, and what is needed) that is not met."""
    for met, needed in needs:
        if not met:
            raise NotImplementedError(f"{op}: the triton backend takes {needed}; backend='xla' takes any")
