"""From logits to tokens where every row has settings of its own: arrays beside the logits, so that other values do not
compile anew. What no row asks for is None, and costs nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Int32, Key, UInt8

from kinetics_jax.engine.sampling import BLOCKED, HOOK_NONFINITE, NONFINITE

IN_PROMPT, IN_OUTPUT = 1, 2  # bits of `Rows.seen`


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """How the next token of each slot is drawn; see `Sampling` and `DrawRules`. None where nobody asks for it."""

    temperature: Float[Array, " slots"]  # 0: greedy
    top_k: Int32[Array, " slots"] | None = None  # 0: off
    top_p: Float[Array, " slots"] | None = None
    min_p: Float[Array, " slots"] | None = None
    min_tokens: Int32[Array, " slots"] | None = None
    stop_ids: Int32[Array, "slots stops"] | None = None  # -1 unused
    repetition_penalty: Float[Array, " slots"] | None = None
    presence_penalty: Float[Array, " slots"] | None = None
    seen: UInt8[Array, "slots vocab"] | None = None  # of IN_PROMPT and IN_OUTPUT, for the penalties
    allowed: Bool[Array, "slots vocab"] | None = None
    hook: Int32[Array, " slots"] | None = None  # its place in `hooks`, -1: none
    output: Int32[Array, "slots positions"] | None = None  # tokens so far, -1 behind them, for the hooks
    hooks: tuple[Callable[..., jax.Array], ...] = dataclasses.field(default=(), metadata={"static": True})
    greedy: bool = dataclasses.field(default=False, metadata={"static": True})  # all rows
    log_probs: bool = dataclasses.field(default=False, metadata={"static": True})  # whether some row wants them

    def after(self, tokens: Int[Array, " slots"], places: Int[Array, " slots"], drew: Bool[Array, " slots"]) -> Rows:
        """With the tokens that rows drew at their output positions."""
        seen, output, row = self.seen, self.output, jnp.arange(tokens.shape[0])
        if seen is not None:
            old = seen.at[row, tokens].get(mode="clip")
            seen = seen.at[row, jnp.where(drew, tokens, seen.shape[1])].set(old | IN_OUTPUT, mode="drop")
        if output is not None:
            output = output.at[row, jnp.where(drew, places, output.shape[1])].set(tokens, mode="drop")
        return dataclasses.replace(self, seen=seen, output=output)

    def ends(self, tokens: Int[Array, " slots"], eos: tuple[int, ...]) -> Bool[Array, " slots"]:
        """Whether each row ends with its token: an end token, a stop id, or none that could be drawn."""
        ended = (tokens < 0) | jnp.isin(tokens, jnp.array(eos, jnp.int32))
        return ended if self.stop_ids is None else ended | jnp.any(tokens[:, None] == self.stop_ids, axis=1)


class Drawn(NamedTuple):
    """The tokens of one step, or why there is none, and two log-probabilities of each, None if nobody wants them: of
    the model's own logits, and of what it was drawn from.
    """

    token: Int[Array, " slots"]
    log_probs: Float[Array, "slots 2"] | None


def draw_rows(
    logits: Float[Array, "slots vocab"],
    keys: Key[Array, " slots"],
    places: Int[Array, " slots"],
    forced: Int[Array, " slots"],
    rows: Rows,
    eos: tuple[int, ...],
) -> Drawn:
    """The next token of each row at its output position: `forced` where that is one (-1: draw), else as `rows` says.

    NONFINITE, HOOK_NONFINITE and BLOCKED stand for a token where there was none to draw.
    """
    ruled = ruled_logits(logits, places, rows, eos)
    best = jnp.max(ruled, axis=-1)  # a NaN is the largest of its row
    fine, sound = jnp.isfinite(jnp.max(logits, axis=-1)), jnp.isfinite(best)
    ruled = jnp.where(sound[:, None], ruled, 0.0)  # where nothing can be drawn, nothing is computed with it
    token = jnp.argmax(ruled, axis=-1).astype(jnp.int32)
    filtered = ruled
    if not rows.greedy:
        filtered = filter_rows(ruled, rows)
        own = jax.vmap(jax.random.fold_in)(keys, places)
        drawn = jax.vmap(jax.random.categorical)(own, filtered).astype(jnp.int32)
        token = jnp.where(rows.temperature > 0, drawn, token)
    token = jnp.where(sound, token, jnp.where(best == -jnp.inf, BLOCKED, HOOK_NONFINITE))
    token = jnp.where(fine, jnp.where(forced >= 0, forced, token), NONFINITE)
    if not rows.log_probs:
        return Drawn(token, None)
    place = jnp.maximum(token, 0)[:, None]
    own = _log_probs(jnp.where(fine[:, None], logits, 0.0), place)
    drawn = jnp.where(rows.temperature > 0, _log_probs(filtered, place), 0.0)  # greedy: the token was certain
    return Drawn(token, jnp.stack([own, drawn], axis=-1))


def _log_probs(logits: jax.Array, place: jax.Array) -> jax.Array:
    """Log-probabilities `[slots]` of one token of each row, `place [slots, 1]`."""
    return jnp.take_along_axis(jax.nn.log_softmax(logits), place, axis=-1)[:, 0]


def ruled_logits(
    logits: Float[Array, "slots vocab"], places: Int[Array, " slots"], rows: Rows, eos: tuple[int, ...]
) -> Float[Array, "slots vocab"]:
    """Logits after penalties, `min_tokens`, `allowed` and hooks; -inf for what may not be drawn."""
    vocab = logits.shape[1]
    if rows.seen is not None:
        if rows.repetition_penalty is not None:
            by = rows.repetition_penalty[:, None]
            logits = jnp.where(rows.seen > 0, jnp.where(logits > 0, logits / by, logits * by), logits)
        if rows.presence_penalty is not None:
            logits = jnp.where((rows.seen & IN_OUTPUT) > 0, logits - rows.presence_penalty[:, None], logits)
    if rows.min_tokens is not None:
        ending = jnp.zeros(vocab, bool).at[jnp.array(eos, jnp.int32)].set(True, mode="drop")[None]
        if rows.stop_ids is not None:
            row = jnp.arange(logits.shape[0])[:, None]
            stops = jnp.where(rows.stop_ids >= 0, rows.stop_ids, vocab)
            ending = jnp.broadcast_to(ending, logits.shape).at[row, stops].set(True, mode="drop")
        logits = jnp.where(ending & (places < rows.min_tokens)[:, None], -jnp.inf, logits)
    if rows.allowed is not None:
        logits = jnp.where(rows.allowed, logits, -jnp.inf)
    if rows.hook is not None:
        for index, hook in enumerate(rows.hooks):
            hooked = jax.vmap(hook)(logits, rows.output, places)
            logits = jnp.where((rows.hook == index)[:, None], hooked, logits)
    return logits


def filter_rows(logits: Float[Array, "slots vocab"], rows: Rows) -> Float[Array, "slots vocab"]:
    """`sampling.filter_logits` with settings by row: the same thresholds, found without sorting a row."""
    warm = jnp.where(rows.temperature > 0, rows.temperature, 1.0)
    # As XLA divides by a constant: samples are those of a run whose sampling is the same for all.
    logits = logits.astype(jnp.float32) * (1.0 / warm)[:, None]
    vocab = logits.shape[-1]
    if rows.top_k is not None:
        wanted = jnp.where(rows.top_k > 0, jnp.minimum(rows.top_k, vocab), vocab)[:, None]
        threshold = _largest(logits, lambda kept: jnp.sum(kept, axis=-1, keepdims=True) >= wanted)
        off = (rows.top_k == 0)[:, None]
        logits = jnp.where(off | (logits >= threshold), logits, -jnp.inf)
    top = jnp.max(logits, axis=-1, keepdims=True)
    if rows.top_p is not None:
        weights = jnp.exp(logits - top)
        wanted = rows.top_p[:, None] * jnp.sum(weights, axis=-1, keepdims=True)
        heavy = _largest(logits, lambda kept: jnp.sum(jnp.where(kept, weights, 0.0), axis=-1, keepdims=True) >= wanted)
        off = (rows.top_p >= 1)[:, None]
        logits = jnp.where(off | (logits >= jnp.where(heavy < top, heavy, top)), logits, -jnp.inf)
    if rows.min_p is not None:
        logits = jnp.where(logits >= top + jnp.log(rows.min_p)[:, None], logits, -jnp.inf)
    return logits


def _largest(logits: Float[Array, "slots vocab"], enough: Callable[[jax.Array], jax.Array]) -> Float[Array, "slots 1"]:
    """The largest threshold `[slots, 1]` of which `enough` of `logits >= threshold` still holds, built bit by bit in
    integers ordered like the floats.
    """
    bits = jax.lax.bitcast_convert_type(logits + 0.0, jnp.uint32)  # + 0.0: -0.0 and 0.0 are one number
    sign = jnp.uint32(1 << 31)
    ordered = jnp.where(bits >= sign, ~bits, bits | sign)

    def refine(step: jax.Array, threshold: jax.Array) -> jax.Array:
        higher = threshold | (sign >> step.astype(jnp.uint32))
        return jnp.where(enough(ordered >= higher), higher, threshold)

    largest = jax.lax.fori_loop(0, 32, refine, jnp.zeros_like(ordered[:, :1]))
    return jax.lax.bitcast_convert_type(jnp.where(largest >= sign, largest ^ sign, ~largest), jnp.float32)
