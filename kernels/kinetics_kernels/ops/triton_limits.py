"""What the Triton kernels share: their dtypes, and how they refuse a call."""

from __future__ import annotations

import functools

import jax.numpy as jnp

from kinetics_kernels.ops import limits

INPUT_DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)

refuse_unless = functools.partial(limits.refuse_unless, "triton")
