"""Mean and population standard deviation, scored as if the page's keys were independent Gaussians.

The score is the logarithm of the mean exp(s q·k) over such keys, s the scale of the logits.
"""

from __future__ import annotations

from kinetics_kernels.summaries import mean
from kinetics_kernels.summaries.kind import KernelCode, SummaryKind


def make(keys):
    """`[..., page_size, head_dim]` → mean and standard deviation."""
    import jax.numpy as jnp

    (middle,) = mean.make(keys)
    return middle, jnp.sqrt(jnp.mean(jnp.square(keys - middle[..., None, :]), axis=-2))


def score(query, vectors, scale, dot):
    """s q̄·μ + ½ s² Σ q̄² σ²."""
    import jax.numpy as jnp

    scaled = query * scale
    return dot(scaled, vectors[0]) + dot(0.5 * jnp.square(scaled), jnp.square(vectors[1].astype(jnp.float32)))


def gpu_score(query, vector, scale, total):
    """s q̄·μ + ½ s² Σ q̄² σ², as one sum."""
    scaled, spread = query * scale, vector(1)
    return total(scaled * vector(0) + 0.5 * (scaled * scaled) * (spread * spread))


def triton_make(over_tiles, zeros, page_size):
    """Mean, then the squares of what differs from it: two passes."""
    import jax.numpy as jnp

    (middle,) = mean.triton_make(over_tiles, zeros, page_size)

    def squares(total, keys):
        return total + jnp.sum((keys - middle[None, :]) * (keys - middle[None, :]), axis=0)

    return middle, jnp.sqrt(over_tiles(squares, zeros) / page_size)


def mosaic_gpu_make(over_page, page_size):
    """Mean, then the squares of what differs from it: two passes."""
    import jax
    import jax.numpy as jnp

    (middle,) = mean.mosaic_gpu_make(over_page, page_size)

    def squares(keys):
        return jnp.square(keys - jax.lax.broadcast_in_dim(middle, keys.shape, (1,)))

    return middle, jnp.sqrt(over_page(jnp.sum, jnp.add, 0.0, squares) / page_size)


def mosaic_tpu_make(keys):
    """`[kv_heads, page_size, head_dim]` → mean and standard deviation."""
    import jax.numpy as jnp

    (middle,) = mean.mosaic_tpu_make(keys)
    return middle, jnp.sqrt(jnp.mean(jnp.square(keys - middle), axis=1, keepdims=True))


MEAN_STD = SummaryKind(
    "mean_std",
    vectors=2,
    make=make,
    score=score,
    kernels={
        "triton": KernelCode(triton_make, gpu_score),
        "mosaic_gpu": KernelCode(mosaic_gpu_make, gpu_score),
        "mosaic_tpu": KernelCode(mosaic_tpu_make, score),
    },
)
