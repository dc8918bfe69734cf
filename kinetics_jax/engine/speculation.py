"""Lossless self-speculation: a sparse policy drafts a few tokens, one dense pass verifies them all.

Drafts are drawn from the policy's distribution q, and kept or replaced so that what is left is drawn from the dense
model's p (Leviathan et al., arXiv 2211.17192): token d is kept with probability min(1, p(d) / q(d)); in place of the
first that is not, one is drawn from max(p - q, 0), normalised; behind drafts that are all kept, one from p. Both p and
q are what temperature and filters leave. A greedy draft is kept where it is the dense model's own choice. The pass
reads K and V once for all of a row's tokens, and only what it kept is stored, by the dense model's K and V: the next
drafts attend sparsely to those, and nothing of a token that was not kept is left (`attention.verify`).
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key
from kinetics_kernels.backends import Backend

from kinetics_jax.attention.cache import PagedCache
from kinetics_jax.attention.decode import decode_attend
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.verify import Beside, store_tokens, verify_attend
from kinetics_jax.engine.programs import ChunkReads, Slots, allowed_logits, may_go_on
from kinetics_jax.engine.sampling import IDLE, NONFINITE, filter_logits
from kinetics_jax.settings import Sampling

# Folded into a token's key: beyond any vocabulary, as RANDOM_BLOCKS. The token that ends a round has the plain key.
DRAFT, ACCEPT = 0x44524654, 0x41435054


@functools.partial(
    jax.jit,
    static_argnames=("graph", "policy", "sampling", "eos", "chunk", "ahead", "backend"),
    donate_argnames=("cache",),
)
def speculate_chunk(
    graph: nnx.GraphDef,
    weights: nnx.State,
    cache: PagedCache,
    slots: Slots,
    page_table: Int[Array, "slots max_pages"],
    patience: Int[Array, ""],
    known_ids: Bool[Array, " vocab"] | None = None,
    *,
    policy: AttentionPolicy,
    sampling: Sampling,
    eos: tuple[int, ...],
    chunk: int,
    ahead: int,
    backend: Backend | None = None,
) -> tuple[PagedCache, Slots, Int[Array, "slots tokens"], ChunkReads]:
    """Rounds of drafts and their verification in one while_loop, as `programs.decode_chunk` runs steps.

    A round drafts `ahead` tokens for a slot (less before its limit) and gives it up to one more; there are `chunk //
    (ahead + 1)` rounds, at least one, and `page_table` must name pages for `chunk` tokens of every active slot. Returns
    the cache, the slots and the tokens, `[slots, rounds * (ahead + 1)]` int32, those of a round from its place on, IDLE
    elsewhere, NONFINITE where the dense logits were not finite; and what each step of each round read: its
    drafts, then its dense pass, which reads what is stored and its own tokens once.
    """
    model = nnx.merge(graph, weights)
    rows, kv_heads, layers = slots.token.shape[0], cache.k[0].shape[0], len(cache.k)
    began, size, rounds = jnp.sum(slots.active, dtype=jnp.int32), ahead + 1, chunk // (ahead + 1)

    def running(carry) -> jax.Array:
        index, _, slots, *_ = carry
        left = jnp.sum(slots.active, dtype=jnp.int32)
        return (index < rounds) & (left > 0) & (began - left < patience)

    def one_round(carry):
        index, cache, slots, drawn, counts, faults = carry
        count = jnp.where(slots.active, jnp.clip(slots.limit - slots.produced - 1, 0, ahead), 0)
        before = cache.carried
        follow = int(bool(before))  # what carries something takes a step for the last draft too, as for any token

        def draft(carry, place: jax.Array):
            cache, token = carry
            keys = jax.vmap(jax.random.fold_in)(slots.key, slots.produced + place)
            lengths = jnp.where(slots.active & (place < count + follow), slots.stored + place + 1, 0)
            attend = decode_attend(policy, page_table, lengths, keys, backend=backend)
            positions = (slots.stored + place)[:, None]
            hidden, cache = model(token[:, None], positions, attend, cache.counting(rows))
            cache, reads = cache.counted()
            logits = allowed_logits(model.logits(hidden[:, 0]), known_ids)
            # Where logits are not finite the model failed, not the policy, whatever its scores are.
            fault = jnp.where(jnp.isfinite(jnp.max(logits, axis=-1)), reads.fault, 0)
            chances = chances_of(logits, sampling)
            draft_keys = jax.vmap(lambda key: jax.random.fold_in(key, DRAFT))(keys)
            token = jax.vmap(jax.random.categorical)(draft_keys, jnp.log(chances)).astype(jnp.int32)
            return (cache, token), (token, chances, cache.carried, (reads.tokens, reads.vectors, fault))

        (cache, _), (drafts, chances, carried, read) = jax.lax.scan(
            draft, (cache, slots.token), jnp.arange(ahead + follow, dtype=jnp.int32)
        )
        drafts, chances = drafts[:ahead], chances[:ahead]
        tokens = jnp.concatenate([slots.token[None], drafts]).T  # [slots, size]
        stored = jnp.where(slots.active, slots.stored, 0)
        positions = slots.stored[:, None] + jnp.arange(size, dtype=jnp.int32)[None]
        attend = verify_attend(page_table, stored, backend=backend)
        hidden, beside = model(tokens, positions, attend, Beside(cache))
        logits = allowed_logits(model.logits(hidden).reshape(tokens.size, -1), known_ids).reshape(*tokens.shape, -1)
        kept = judge(logits, jnp.swapaxes(chances, 0, 1), drafts.T, count, slots.key, slots.produced, sampling)
        goes_on = may_go_on(kept, eos) & (kept != IDLE)
        # The token behind which a sample ends is its last, whatever the round has behind it.
        mine = jnp.cumprod(jnp.pad(goes_on[:, :-1], ((0, 0), (1, 0)), constant_values=True), axis=1) > 0
        kept = jnp.where(slots.active[:, None] & mine, kept, IDLE)
        new = jnp.sum(kept != IDLE, axis=1, dtype=jnp.int32)
        cache = store_tokens(beside, page_table, stored, new, backend=backend)
        cache = dataclasses.replace(cache, carried=_carried(before, carried, new))
        last = jnp.take_along_axis(kept, jnp.maximum(new - 1, 0)[:, None], axis=1)[:, 0]
        produced = slots.produced + new
        slots = dataclasses.replace(
            slots,
            token=jnp.where(slots.active, last, slots.token),
            stored=slots.stored + new,
            produced=produced,
            active=slots.active & may_go_on(last, eos) & (produced < slots.limit),
        )
        drawn = jax.lax.dynamic_update_slice_in_dim(drawn, kept, index * size, axis=1)
        verified = jnp.where(stored > 0, layers * (stored + count + 1), 0).astype(jnp.uint32)
        verified = jnp.broadcast_to(verified, (1, kv_heads, rows))
        kv_tokens, vectors, fault = read  # of each draft, [drafts, kv_heads, slots]
        steps = [jnp.concatenate(each) for each in ((kv_tokens, verified), (vectors, jnp.zeros_like(verified)))]
        steps = jnp.stack([jnp.moveaxis(each, 0, -1) for each in steps], axis=-1)  # [kv_heads, slots, steps, 2]
        counts = jax.lax.dynamic_update_slice_in_dim(counts, steps, index * steps.shape[2], axis=2)
        faults = jnp.where(faults == 0, jnp.max(fault, axis=0), faults)
        return index + 1, cache, slots, drawn, counts, faults

    drawn = jnp.full((rows, rounds * size), IDLE, jnp.int32)
    steps = rounds * (size + int(bool(cache.carried)))
    counts, faults = jnp.zeros((kv_heads, rows, steps, 2), jnp.uint32), jnp.zeros((kv_heads, rows), jnp.int32)
    start = np.int32(0), cache, slots, drawn, counts, faults
    _, cache, slots, drawn, counts, faults = jax.lax.while_loop(running, one_round, start)
    return cache, slots, drawn, ChunkReads.of(counts, faults, copies=1)


def chances_of(logits: Float[Array, "rows vocab"], sampling: Sampling) -> Float[Array, "rows vocab"]:
    """The probabilities that a sampling draws a token with; all on the largest logit when greedy."""
    if sampling.temperature == 0:
        return jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=jnp.float32)
    return jax.nn.softmax(filter_logits(logits, sampling))


def judge(
    logits: Float[Array, "rows size vocab"],
    chances: Float[Array, "rows ahead vocab"],
    drafts: Int[Array, "rows ahead"],
    count: Int[Array, " rows"],
    keys: Key[Array, " rows"],
    produced: Int[Array, " rows"],
    sampling: Sampling,
) -> Int[Array, "rows size"]:
    """Which drafts are kept, and the token behind them: `[rows, ahead + 1]` int32, IDLE from there on.

    `logits` are the dense model's before each draft and behind the last; `chances` the probabilities that drafts were
    drawn with, of which the first `count` of each row count; `keys` the samples', `produced` their tokens so far. The
    token is NONFINITE where its logits say nothing.
    """
    size, vocab = logits.shape[1:]
    places = jnp.arange(size, dtype=jnp.int32)[None]
    token_keys = jax.vmap(lambda key, first: jax.vmap(lambda place: jax.random.fold_in(key, first + place))(places[0]))
    token_keys = token_keys(keys, produced)
    finite = jnp.isfinite(jnp.max(logits, axis=-1))
    wanted = chances_of(logits.reshape(-1, vocab), sampling).reshape(logits.shape)
    p, q = (jnp.take_along_axis(each, drafts[..., None], axis=-1)[..., 0] for each in (wanted[:, :-1], chances))
    uniform = jax.vmap(jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, ACCEPT), dtype=jnp.float32)))
    kept = uniform(token_keys[:, :-1]) * q < p  # never where one of them is NaN
    kept &= finite[:, :-1] & (places[:, :-1] < count[:, None])
    accepted = jnp.sum(jnp.cumprod(kept, axis=1), axis=1, dtype=jnp.int32)

    def here(array: jax.Array) -> jax.Array:  # of the place behind the accepted drafts
        return jax.vmap(lambda row, place: jax.lax.dynamic_index_in_dim(row, place, keepdims=False))(array, accepted)

    ours = here(wanted)
    # Drafts beyond a row's count, and those that came of nothing, were not refused: the token is drawn from p.
    theirs = here(jnp.pad(chances, ((0, 0), (0, 1), (0, 0))))
    refused = (accepted < count)[:, None] & ~jnp.isnan(theirs)
    rest = jnp.maximum(ours - jnp.where(refused, theirs, 0), 0)
    rest = jnp.where(jnp.sum(rest, axis=-1, keepdims=True) > 0, rest, ours)  # p = q but for rounding
    last = jax.vmap(jax.random.categorical)(here(token_keys), jnp.log(rest)).astype(jnp.int32)
    last = jnp.where(here(finite), last, NONFINITE)
    tokens = jnp.where(places < accepted[:, None], jnp.pad(drafts, ((0, 0), (0, 1))), IDLE)
    return jnp.where(places == accepted[:, None], last[:, None], tokens)


def _carried(
    before: dict[str, jax.Array], after: dict[str, jax.Array], steps: Int[Array, " rows"]
) -> dict[str, jax.Array]:
    """What the policy carries after `steps` tokens of each row: `before [kv_heads, rows, …]`, and `after` each
    `[ahead + 1, kv_heads, rows, …]`.
    """

    def chosen(start: jax.Array, then: jax.Array) -> jax.Array:
        every = jnp.concatenate([start[None], then])
        return every[steps[None], jnp.arange(start.shape[0])[:, None], jnp.arange(start.shape[1])[None]]

    return {name: chosen(start, after[name]) for name, start in before.items()}
