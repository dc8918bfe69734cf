"""The mean key, scored by its dot product with the query (paper, section 4.1)."""

from __future__ import annotations

from kinetics_kernels.summaries.kind import KernelCode, SummaryKind


def make(keys):
    """`[..., page_size, head_dim]` → the mean key."""
    import jax.numpy as jnp

    return (jnp.mean(keys, axis=-2),)


def score(query, vectors, scale, dot):
    """q̄·μ."""
    return dot(query, vectors[0])


def gpu_score(query, vector, scale, total):
    """q̄·μ."""
    return total(query * vector(0))


def triton_make(over_tiles, zeros, page_size):
    """The mean key, tile by tile."""
    import jax.numpy as jnp

    return (over_tiles(lambda total, keys: total + jnp.sum(keys, axis=0), zeros) / page_size,)


def mosaic_gpu_make(over_page, page_size):
    """The mean key."""
    import jax.numpy as jnp

    return (over_page(jnp.sum, jnp.add, 0.0) / page_size,)


def mosaic_tpu_make(keys):
    """`[kv_heads, page_size, head_dim]` → the mean key."""
    import jax.numpy as jnp

    return (jnp.mean(keys, axis=1, keepdims=True),)


MEAN = SummaryKind(
    "mean",
    vectors=1,
    make=make,
    score=score,
    kernels={
        "triton": KernelCode(triton_make, gpu_score),
        "mosaic_gpu": KernelCode(mosaic_gpu_make, gpu_score),
        "mosaic_tpu": KernelCode(mosaic_tpu_make, score),
    },
)
