"""What the Triton kernels share: their dtypes, the size of the chip, and what they refuse."""

from __future__ import annotations

import functools

import jax.numpy as jnp

from kinetics_kernels.ops import limits

INPUT_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
PROGRAMS = 264  # that fill the chip: two for each of an H100's 132 multiprocessors

refuse_unless = functools.partial(limits.refuse_unless, "triton")
