"""From logits to the next token: pure functions over a batch of rows, each row with its own key."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt32

from kinetics_jax.settings import Sampling

# In place of a token: nothing was drawn; the logits were not finite; a hook made them so; a request's rules left none.
IDLE, NONFINITE, HOOK_NONFINITE, BLOCKED = -1, -2, -3, -4


def problem_hash(problem: str) -> int:
    """32 bits of BLAKE2b of a problem's id: what its samples' keys are folded from."""
    return int.from_bytes(hashlib.blake2b(problem.encode(), digest_size=4).digest(), "little")


def prompt_digest(prompt: Sequence[int]) -> str:
    """64 bits of BLAKE2b of a prompt's token ids."""
    return hashlib.blake2b(np.asarray(prompt, "<i4").tobytes(), digest_size=8).hexdigest()


def prompt_name(digest: str, occurrence: int) -> str:
    """The id of a prompt that has none: its digest, and how often it stood before in the same call or decoder."""
    return f"{digest}:{occurrence}"


def sample_keys(
    seed: Key[Array, ""], problem: UInt32[Array, ""], samples: Int[Array, " batch"]
) -> Key[Array, " batch"]:
    """The key of each (problem, sample); the key of its token at output position p is `fold_in(key, p)`."""
    key = jax.random.fold_in(seed, problem)
    return jax.vmap(lambda sample: jax.random.fold_in(key, sample))(samples)


def fork_key(key: Key[Array, ""], fork: int) -> Key[Array, ""]:
    """The key of a sample's fork, which no output position folds in: those lie below 2**31."""
    return jax.random.fold_in(key, (1 << 31) + fork)


def seed_key(seed: int) -> Key[Array, ""]:
    """The root key of a run; threefry whatever jax's default generator is."""
    return jax.random.key(seed, impl="threefry2x32")


def filter_logits(logits: Float[Array, "batch vocab"], sampling: Sampling) -> Float[Array, "batch vocab"]:
    """Temperature, top-k, top-p, min-p in the order of transformers' logits processors; what is dropped is -inf.

    Each filter is a threshold on the logit, so tokens that tie with the last one kept are kept too (transformers does
    so for top-k; its top-p breaks ties by sort order). For `temperature > 0`.
    """
    logits = logits.astype(jnp.float32) / sampling.temperature
    vocab = logits.shape[-1]
    best = None
    if 0 < sampling.top_k < vocab:
        # The barrier keeps XLA from merging the slice below into the top-k, which would turn into a full sort.
        best = jax.lax.optimization_barrier(jax.lax.top_k(logits, sampling.top_k)[0])
        logits = jnp.where(logits >= best[:, -1:], logits, -jnp.inf)
    if sampling.top_p < 1:
        threshold = (
            _nucleus_by_search(logits, sampling.top_p) if best is None else _nucleus(logits, best, sampling.top_p)
        )
        top = jnp.max(logits, axis=-1, keepdims=True)  # the best token survives even a top_p that rounds to nothing
        logits = jnp.where(logits >= jnp.where(threshold < top, threshold, top), logits, -jnp.inf)
    if sampling.min_p > 0:
        threshold = jnp.max(logits, axis=-1, keepdims=True) + jnp.log(sampling.min_p)
        logits = jnp.where(logits >= threshold, logits, -jnp.inf)
    return logits


def _nucleus(logits: jax.Array, best: jax.Array, top_p: float) -> jax.Array:
    """The nucleus' threshold: the least logit `[batch, 1]` whose more likely tokens weigh less than top_p.

    `best [batch, k]` are the k largest in descending order; `logits` holds them, ties of the last one, and -inf.
    """
    top = best[:, :1]
    total = jnp.sum(jnp.exp(logits - top), axis=-1, keepdims=True)
    weights = jnp.exp(best - top)
    above = jnp.cumsum(weights, axis=-1) - weights
    return jnp.min(jnp.where(above < top_p * total, best, jnp.inf), axis=-1, keepdims=True)


def _nucleus_by_search(logits: jax.Array, top_p: float) -> jax.Array:
    """The same threshold over a whole vocabulary, without sorting it.

    It is the largest t with weight(logits >= t) >= top_p, built bit by bit in integers ordered like the floats.
    """
    bits = jax.lax.bitcast_convert_type(logits + 0.0, jnp.uint32)  # + 0.0: -0.0 and 0.0 are one number
    sign = jnp.uint32(1 << 31)
    ordered = jnp.where(bits >= sign, ~bits, bits | sign)
    weights = jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))
    wanted = top_p * jnp.sum(weights, axis=-1, keepdims=True)

    def refine(step: jax.Array, threshold: jax.Array) -> jax.Array:
        higher = threshold | (sign >> step.astype(jnp.uint32))
        weight = jnp.sum(jnp.where(ordered >= higher, weights, 0.0), axis=-1, keepdims=True)
        return jnp.where(weight >= wanted, higher, threshold)

    largest = jax.lax.fori_loop(0, 32, refine, jnp.zeros_like(ordered[:, :1]))
    return jax.lax.bitcast_convert_type(jnp.where(largest >= sign, largest ^ sign, ~largest), jnp.float32)


def sample_tokens(
    logits: Float[Array, "batch vocab"],
    keys: Key[Array, " batch"],
    positions: Int[Array, " batch"],
    sampling: Sampling,
) -> Int[Array, " batch"]:
    """One token per row: the largest logit when greedy, else a Gumbel draw with the key of its output position.

    NONFINITE for a row that says nothing: one with NaN or +inf, or with -inf alone. Single logits of -inf are legal.
    """
    if sampling.temperature == 0:
        token = jnp.argmax(logits, axis=-1).astype(jnp.int32)  # the first NaN, where there is one
        best = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    else:
        filtered = filter_logits(logits, sampling)
        token_keys = jax.vmap(jax.random.fold_in)(keys, positions)
        token = jax.vmap(jax.random.categorical)(token_keys, filtered).astype(jnp.int32)
        best = jnp.max(logits, axis=-1)
    return jnp.where(jnp.isfinite(best), token, NONFINITE)
