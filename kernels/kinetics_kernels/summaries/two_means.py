"""The means of a page's two halves, split across its widest direction, scored by the mean of their weights.

One step of balanced 2-means: the direction leads from the mean key to the key farthest from it, and the half of the
keys that reach farthest along it is one group. A page that holds two topics keeps both, where one mean keeps neither.
The reference alone has code for it: kernels refuse it by name.
"""

from __future__ import annotations

from kinetics_kernels.summaries.kind import SummaryKind


def make(keys):
    """`[..., page_size, head_dim]` → the mean of the farther half (the larger, of an odd page), and of the other."""
    import jax.numpy as jnp

    size = keys.shape[-2]
    apart = keys - jnp.mean(keys, axis=-2, keepdims=True)
    farthest = jnp.argmax(jnp.sum(jnp.square(apart), axis=-1), axis=-1)
    direction = jnp.take_along_axis(apart, farthest[..., None, None], axis=-2)
    reach = jnp.sum(apart * direction, axis=-1)
    place = jnp.argsort(jnp.argsort(-reach, axis=-1, stable=True), axis=-1)
    half = -(-size // 2)
    first = (place < half)[..., None]
    one = jnp.sum(jnp.where(first, keys, 0.0), axis=-2) / half
    return one, jnp.sum(jnp.where(first, 0.0, keys), axis=-2) / (size - half) if size > half else one


def score(query, vectors, scale, dot):
    """log ½(exp(s q̄·μ₁) + exp(s q̄·μ₂))."""
    import jax.numpy as jnp

    scaled = query * scale
    return jnp.logaddexp(dot(scaled, vectors[0]), dot(scaled, vectors[1])) - jnp.log(2.0)


TWO_MEANS = SummaryKind("two_means", vectors=2, make=make, score=score)
