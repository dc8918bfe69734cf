"""The least and the largest value in every dimension, scored by the largest dot product within these bounds.

Quest, arXiv 2406.10774: no key of the page has a larger dot product with the query.
"""

from __future__ import annotations

from kinetics_kernels.summaries.kind import KernelCode, SummaryKind


def make(keys):
    """`[..., page_size, head_dim]` → the bounds."""
    import jax.numpy as jnp

    return jnp.min(keys, axis=-2), jnp.max(keys, axis=-2)


def score(query, vectors, scale, dot):
    """min(q̄, 0)·min + max(q̄, 0)·max."""
    import jax.numpy as jnp

    return dot(jnp.minimum(query, 0), vectors[0]) + dot(jnp.maximum(query, 0), vectors[1])


def gpu_score(query, vector, scale, total):
    """min(q̄, 0)·min + max(q̄, 0)·max, as one sum."""
    import jax.numpy as jnp

    return total(jnp.minimum(query, 0.0) * vector(0) + jnp.maximum(query, 0.0) * vector(1))


def triton_make(over_tiles, zeros, page_size):
    """The bounds in one pass, and a sum in which NaN shows, which Triton's minimum passes over."""
    import jax.numpy as jnp

    infinite = jnp.full(zeros.shape, jnp.inf, jnp.float32)
    least, largest, odd = over_tiles(
        lambda so_far, keys: (
            jnp.minimum(so_far[0], jnp.min(keys, axis=0)),
            jnp.maximum(so_far[1], jnp.max(keys, axis=0)),
            so_far[2] + jnp.sum(jnp.where(keys == keys, 0.0, keys), axis=0),
        ),
        (infinite, -infinite, zeros),
    )
    return jnp.where(odd == 0, least, odd), jnp.where(odd == 0, largest, odd)


def mosaic_gpu_make(over_page, page_size):
    """The bounds, one after the other."""
    import jax.numpy as jnp

    return over_page(jnp.min, jnp.minimum, jnp.inf), over_page(jnp.max, jnp.maximum, -jnp.inf)


def mosaic_tpu_make(keys):
    """`[kv_heads, page_size, head_dim]` → the bounds."""
    import jax.numpy as jnp

    return jnp.min(keys, axis=1, keepdims=True), jnp.max(keys, axis=1, keepdims=True)


MIN_MAX = SummaryKind(
    "min_max",
    vectors=2,
    make=make,
    score=score,
    kernels={
        "triton": KernelCode(triton_make, gpu_score),
        "mosaic_gpu": KernelCode(mosaic_gpu_make, gpu_score),
        "mosaic_tpu": KernelCode(mosaic_tpu_make, score),
    },
)
