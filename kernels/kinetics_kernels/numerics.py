"""How failures show, and what jax's modes ask of the reference.

NaN and infinities pass through every op as through a float64 softmax. Emptiness is counted in tokens and never inferred
from a sum: a log-sum-exp of -inf says that there was no token, and nothing else does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

BEST = float(jnp.finfo(jnp.float32).max)


def ranked(scores: jax.Array) -> jax.Array:
    """Float32 scores as they are ranked: NaN of either sign and +inf count as the largest finite number.

    Below what is forced, which ranks as +inf, and above every other page: a page whose summary is NaN is attended, so
    that the failure shows. Both zeros are one, as top-k would not have it.
    """
    scores = jnp.where(scores < BEST, scores, BEST)
    return jnp.where(scores == 0, 0.0, scores)


def softmax_end(out: jax.Array, top: jax.Array, total: jax.Array, held: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The end of a running softmax: `out [..., head_dim]` divided by `total [...]`, and the log-sum-exp `[...]`.

    `top` is the anchor of the weights that were summed, `held` whether there was a token: without one 0 and -inf. Where
    every score of some tokens is -inf both are NaN, as float64 has it.
    """
    divisor = jnp.where(held, total, 1.0)
    lse = jnp.where(divisor == 0, jnp.nan, top + jnp.log(divisor))
    return out / divisor[..., None], jnp.where(held, lse, -jnp.inf)


def whole(numbers: Any) -> jax.Array:
    """Page ids or lengths of any integer dtype as int32."""
    return jnp.asarray(numbers).astype(jnp.int32)


def result_shapes(*arrays: Any) -> Callable[..., jax.ShapeDtypeStruct]:
    """`jax.ShapeDtypeStruct` of a kernel's results, which vary over shard_map's axes as the arrays that it reads do."""
    types = [jax.typeof(array).manual_axis_type for array in arrays]
    varying = frozenset[Any]().union(*(each.varying for each in types))
    if not varying:
        return jax.ShapeDtypeStruct
    return functools.partial(jax.ShapeDtypeStruct, manual_axis_type=type(types[0])(varying=varying))


def varying_as(start: Any, *arrays: Any) -> Any:
    """The start of a loop's carry, varying over the axes of shard_map over which any of the arrays does."""
    axes = frozenset[Any]().union(*(jax.typeof(array).manual_axis_type.varying for array in jax.tree.leaves(arrays)))

    def vary(leaf: jax.Array) -> jax.Array:
        missing = tuple(sorted(axes - jax.typeof(leaf).manual_axis_type.varying))
        return jax.lax.pcast(leaf, missing, to="varying") if missing else leaf

    return jax.tree.map(vary, start) if axes else start


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def without_gradient(op: str, arrays: Any) -> Any:
    """The arrays as they are; an op that takes them through it refuses to be differentiated, in one line."""
    del op
    return arrays


@without_gradient.defjvp
def _refuse_gradient(op: str, primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        f"{op} is an op of decoding and has no gradient; differentiate a full forward instead, or take its inputs "
        "through jax.lax.stop_gradient"
    )


def check_heads(op: str, q_heads: int, kv_heads: int) -> None:
    """Raises ValueError unless every KV head serves equally many query heads."""
    if not kv_heads or q_heads % kv_heads:
        raise ValueError(f"{op}: {q_heads} query heads are no multiple of {kv_heads} KV heads")
