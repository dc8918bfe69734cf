"""Where a forward's numbers stop being finite: one pass over a sample that failed, after the fact, for a warning."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Int

from kinetics_jax.attention.causal import full_attend_on

CURES = {
    "float16": "load the model in bfloat16 (--dtype bfloat16)",
    "bfloat16": "load the model in float32 (--dtype float32)",
    "float32": "its weights overflow in float32 too: look at the checkpoint",
}
IN_A_LAYER = ("its queries, keys or values", "its attention", "its feed-forward")


@functools.partial(jax.jit, static_argnames=("graph",))
def finite_places(graph: nnx.GraphDef, weights: nnx.State, tokens: Int[Array, "1 time"]) -> Bool[Array, " places"]:
    """Whether a full forward is finite after the embedding, at the three places of each layer, and in its logits."""
    model = nnx.merge(graph, weights)
    finite: list[jax.Array] = []

    def watch(x: jax.Array) -> None:
        finite.append(jnp.all(jnp.isfinite(x)))

    full = full_attend_on(model.mesh)

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        watch(jnp.concatenate([x.reshape(-1) for x in (q, k, v)]))
        out, state = full(layer, q, k, v, state)
        watch(out)
        return out, state

    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    hidden, _ = model(tokens, positions, attend, watch=watch)
    watch(model.logits(hidden[:, -1]))
    return jnp.stack(finite)


def nonfinite_warning(graph: nnx.GraphDef, weights: nnx.State, tokens: Sequence[int], where: str) -> str:
    """The warning of a sample whose logits after `tokens` are not finite; `where` names the sample and the place."""
    dtype = jax.tree.leaves(weights)[0].dtype.name
    try:
        finite = jax.device_get(finite_places(graph, weights, jnp.asarray([tokens], jnp.int32)))
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        began = "where it began is not known, for want of memory to repeat it"
    else:
        began = f"it began {_place(finite.tolist())}"
    return (
        f"{where}: the model's logits are not finite; {began}, in {dtype}. Such samples end as 'nonfinite', with the "
        f"tokens before. {CURES[dtype].capitalize()}"
    )


def hook_warning(hook: Any, where: str) -> str:
    """The warning of a sample of which a hook made the logits NaN or infinite."""
    return (
        f"{where}: the hook {getattr(hook, '__name__', type(hook).__name__)!r:.60} returned NaN or an infinite logit. "
        "Such samples end as 'nonfinite', with the tokens before; return -inf for what must not be drawn, and finite "
        "logits else"
    )


def _place(finite: Sequence[bool]) -> str:
    """The first of `finite_places` that is not, in words."""
    if all(finite):
        return "in decoding itself (a full forward of the same tokens is finite)"
    first = finite.index(False)
    layers = (len(finite) - 2) // len(IN_A_LAYER)
    if first == 0:
        return "in the embedding"
    if first == len(finite) - 1:
        return "in the logits"
    layer, part = divmod(first - 1, len(IN_A_LAYER))
    return f"in layer {layer} ({IN_A_LAYER[part]}; layers count from 0 to {layers - 1})"
