"""The engine's programs on the device: prefill of one prompt, the start of its samples, a chunk of decode steps, and
a sample's way to the host and back.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import nnx

from kinetics_jax.attention import decode_attend, prefill_attend, prefill_chunk_attend
from kinetics_jax.cache import PagedCache
from kinetics_jax.policies import Policy, Sampling
from kinetics_jax.sampling import sample_keys, sample_tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Device state, one row per slot: the newest token (not in the cache yet), tokens stored in the cache, tokens
    produced, the most it may produce, whether it runs, and its sample's key. All `[slots]`.
    """

    token: jax.Array
    stored: jax.Array
    produced: jax.Array
    limit: jax.Array
    active: jax.Array
    key: jax.Array

    @classmethod
    def idle(cls, slots: int, seed: jax.Array) -> Slots:
        zeros = jnp.zeros(slots, jnp.int32)
        return cls(zeros, zeros, zeros, zeros, jnp.zeros(slots, bool), jnp.broadcast_to(seed, (slots,)))


@functools.partial(jax.jit, static_argnames=("graph",), donate_argnames=("cache",))
def prefill(
    graph: nnx.GraphDef, weights: nnx.State, cache: PagedCache, tokens: jax.Array, length: jax.Array, pages: jax.Array
) -> tuple[PagedCache, jax.Array]:
    """Runs one prompt, `tokens [1, time]` padded beyond `length`; stores its K and V in `pages [time / page_size]`.

    Returns the cache and the logits after the last prompt token, `[1, vocab]` float32.
    """
    model = nnx.merge(graph, weights)
    positions = jnp.arange(tokens.shape[1])[None]
    hidden, cache = model(tokens, positions, prefill_attend(pages, length), cache)
    return cache, model.logits(jax.lax.dynamic_slice_in_dim(hidden[0], length - 1, 1))


@functools.partial(jax.jit, static_argnames=("graph",), donate_argnames=("cache",))
def prefill_chunk(
    graph: nnx.GraphDef,
    weights: nnx.State,
    cache: PagedCache,
    tokens: jax.Array,
    start: jax.Array,
    length: jax.Array,
    page_table: jax.Array,
) -> tuple[PagedCache, jax.Array]:
    """Runs tokens `start … start + time` of a long prompt, `tokens [1, time]`; those before are in the cache already.

    `start` is a multiple of time, and time of `attention.paged_tile(page_size)`; `length` counts the whole prompt's
    tokens, beyond which `tokens` is padding; `page_table [pages]` names the whole prompt's pages, -1 unused, and covers
    whole chunks. Returns the cache and the logits after the chunk's last token, `[1, vocab]` float32.
    """
    model = nnx.merge(graph, weights)
    time = tokens.shape[1]
    positions = start + jnp.arange(time)[None]
    hidden, cache = model(tokens, positions, prefill_chunk_attend(page_table, start, length), cache)
    last = jnp.minimum(length - start, time) - 1
    return cache, model.logits(jax.lax.dynamic_slice_in_dim(hidden[0], last, 1))


@functools.partial(jax.jit, static_argnames=("sampling", "eos"), donate_argnames=("cache",))
def start_samples(
    cache: PagedCache,
    slots: Slots,
    logits: jax.Array,
    chosen: jax.Array,
    samples: jax.Array,
    limit: jax.Array,
    length: jax.Array,
    seed: jax.Array,
    problem: jax.Array,
    source: jax.Array,
    target: jax.Array,
    *,
    sampling: Sampling,
    eos: tuple[int, ...],
) -> tuple[PagedCache, Slots]:
    """Starts samples of one prompt in the `chosen [slots]` bool slots: copies its partial page, draws the first token.

    `logits [1, vocab]` and `length` (scalar int32, the prompt's tokens) are prefill's; `samples [slots]` int32 are the
    sample indices, `limit` (scalar int32) the most tokens each may produce; `seed` the run's key, `problem` (scalar
    uint32) the problem's hash; page `source` is copied to `target [slots]` int32 (-1: nothing to copy).
    """
    rows = slots.token.shape[0]
    cache = cache.copy_pages(jnp.broadcast_to(source, (rows,)), target)
    keys = sample_keys(seed, problem, samples)
    first = sample_tokens(jnp.broadcast_to(logits, (rows, logits.shape[1])), keys, jnp.zeros_like(samples), sampling)
    return cache, Slots(
        token=jnp.where(chosen, first, slots.token),
        stored=jnp.where(chosen, length, slots.stored),
        produced=jnp.where(chosen, 1, slots.produced),
        limit=jnp.where(chosen, limit, slots.limit),
        active=jnp.where(chosen, ~_is_end(first, eos) & (limit > 1), slots.active),
        key=jnp.where(chosen, keys, slots.key),
    )


@functools.partial(
    jax.jit, static_argnames=("graph", "policy", "sampling", "eos", "chunk", "backend"), donate_argnames=("cache",)
)
def decode_chunk(
    graph: nnx.GraphDef,
    weights: nnx.State,
    cache: PagedCache,
    slots: Slots,
    page_table: jax.Array,
    patience: jax.Array,
    *,
    policy: Policy,
    sampling: Sampling,
    eos: tuple[int, ...],
    chunk: int,
    backend: str | None = None,
) -> tuple[PagedCache, Slots, jax.Array]:
    """Up to `chunk` decode steps in one while_loop; ends early when `patience` slots have stopped since it began.

    `page_table [slots, max_pages]` must name pages for the next `chunk` tokens of every running slot. `backend`:
    see decode_attend. Returns the cache, the slots and the tokens drawn, `[slots, chunk]` int32, -1 where a slot was
    not running.
    """
    model = nnx.merge(graph, weights)
    began = jnp.sum(slots.active)

    def running(carry) -> jax.Array:
        step, _, slots, _ = carry
        left = jnp.sum(slots.active)
        return (step < chunk) & (left > 0) & (began - left < patience)

    def one_step(carry):
        step, cache, slots, drawn = carry
        lengths = jnp.where(slots.active, slots.stored + 1, 0)
        keys = jax.vmap(jax.random.fold_in)(slots.key, slots.produced)
        attend = decode_attend(policy, page_table, lengths, keys, backend=backend)
        hidden, cache = model(slots.token[:, None], slots.stored[:, None], attend, cache)
        token = sample_tokens(model.logits(hidden[:, 0]), slots.key, slots.produced, sampling)
        token = jnp.where(slots.active, token, slots.token)
        produced = slots.produced + slots.active
        drawn = drawn.at[:, step].set(jnp.where(slots.active, token, -1))
        slots = dataclasses.replace(
            slots,
            token=token,
            stored=slots.stored + slots.active,
            produced=produced,
            active=slots.active & ~_is_end(token, eos) & (produced < slots.limit),
        )
        return step + 1, cache, slots, drawn

    drawn = jnp.full((slots.token.shape[0], chunk), -1, jnp.int32)
    _, cache, slots, drawn = jax.lax.while_loop(running, one_step, (0, cache, slots, drawn))
    return cache, slots, drawn


@jax.jit
def save_pages(cache: PagedCache, pages: jax.Array) -> PagedCache:
    """Copies of pages `[count]` int32 of every layer, with their summaries: a cache of `count` pages, for the host."""
    return jax.tree.map(lambda pool: pool.at[:, pages].get(mode="clip"), cache)


@functools.partial(jax.jit, donate_argnames=("cache",))
def load_pages(cache: PagedCache, pages: jax.Array, saved: PagedCache) -> PagedCache:
    """Writes what `save_pages` gave into pages `[count]` int32; -1: that one is left out."""

    def written(pool: jax.Array, pages_of_it: jax.Array) -> jax.Array:
        return pool.at[:, jnp.where(pages >= 0, pages, pool.shape[1])].set(pages_of_it, mode="drop")

    return jax.tree.map(written, cache, saved)


@jax.jit
def resume_sample(
    slots: Slots,
    slot: jax.Array,
    token: jax.Array,
    stored: jax.Array,
    produced: jax.Array,
    limit: jax.Array,
    seed: jax.Array,
    problem: jax.Array,
    sample: jax.Array,
) -> Slots:
    """A sample that was set aside goes on in a slot; scalars, the row's fields and what its key is folded from."""
    key = sample_keys(seed, problem, sample[None])[0]
    return Slots(
        token=slots.token.at[slot].set(token),
        stored=slots.stored.at[slot].set(stored),
        produced=slots.produced.at[slot].set(produced),
        limit=slots.limit.at[slot].set(limit),
        active=slots.active.at[slot].set(True),
        key=slots.key.at[slot].set(key),
    )


def _is_end(token: jax.Array, eos: tuple[int, ...]) -> jax.Array:
    return jnp.isin(token, jnp.array(eos, jnp.int32))
