"""The engine's jitted programs: prefill of a prompt, the start of its samples, a chunk of decode steps, and the copies
of a preempted sample's pages to the host and back.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key
from kinetics_kernels.backends import Backend

from kinetics_jax.attention.cache import PagedCache
from kinetics_jax.attention.causal import prefill_attend, prefill_chunk_attend
from kinetics_jax.attention.decode import decode_attend
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.shared_prefix import SharedPrefix
from kinetics_jax.engine.logits import Drawn, Rows, draw_rows
from kinetics_jax.engine.sampling import IDLE, NONFINITE, sample_keys, sample_tokens
from kinetics_jax.engine.slots import ChunkReads, Resumed, Slots, Starts
from kinetics_jax.settings import Sampling
from kinetics_jax.sharding.mesh import AXES, ROWS, constrained, pool_spec, rows_spec


@functools.partial(jax.jit, static_argnames=("graph",), donate_argnames=("cache",))
def prefill(
    graph: nnx.GraphDef,
    weights: nnx.State,
    cache: PagedCache,
    tokens: Int[Array, "shards time"],
    length: Int[Array, "*shards"],
    pages: Int[Array, "*shards prompt_pages"],
) -> tuple[PagedCache, Float[Array, "shards vocab"]]:
    """Runs one prompt, `tokens [1, time]` padded beyond `length`; stores its K and V in `pages [time / page_size]`.

    Returns the cache and the logits after the last prompt token, `[1, vocab]` float32. On a mesh it runs a prompt for
    each shard of the sequences: `tokens [shards, time]`, `length [shards]` (0: none), `pages [shards, …]` and the
    logits have a row for each.
    """
    model = nnx.merge(graph, weights)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape)
    hidden, cache = model(tokens, positions, prefill_attend(pages, length), cache)
    return cache, model.logits(_token_at(hidden, length - 1))


@functools.partial(jax.jit, static_argnames=("graph",), donate_argnames=("cache",))
def prefill_chunk(
    graph: nnx.GraphDef,
    weights: nnx.State,
    cache: PagedCache,
    tokens: Int[Array, "shards time"],
    start: Int[Array, ""],
    length: Int[Array, "*shards"],
    page_table: Int[Array, "*shards pages"],
) -> tuple[PagedCache, Float[Array, "shards vocab"]]:
    """Runs tokens `start … start + time` of a long prompt, `tokens [1, time]`; those before are in the cache already.

    `start` is a multiple of time, and time of `padding.paged_tile(page_size)`; `length` counts the whole prompt's
    tokens, beyond which `tokens` is padding; `page_table [pages]` names the whole prompt's pages, -1 unused, and covers
    whole chunks. Returns the cache and the logits after the chunk's last token, `[1, vocab]` float32. On a mesh it runs
    a prompt for each shard, as `prefill` does.
    """
    model = nnx.merge(graph, weights)
    time = tokens.shape[1]
    positions = jnp.broadcast_to(start + jnp.arange(time, dtype=jnp.int32)[None], tokens.shape)
    hidden, cache = model(tokens, positions, prefill_chunk_attend(page_table, start, length), cache)
    return cache, model.logits(_token_at(hidden, jnp.minimum(length - start, time) - 1))


def _token_at(hidden: jax.Array, place: jax.Array) -> jax.Array:
    """`hidden [rows, time, …]` at one place of each row; `place [rows]`, or a scalar for the only row."""
    if not place.ndim:
        return jax.lax.dynamic_slice_in_dim(hidden[0], place, 1)
    return jax.vmap(lambda row, at: jax.lax.dynamic_index_in_dim(row, at, keepdims=False))(hidden, place)


@functools.partial(jax.jit, static_argnames=("sampling", "eos"), donate_argnames=("cache",))
def start_samples(
    cache: PagedCache,
    slots: Slots,
    starts: Starts,
    known_ids: Bool[Array, " vocab"] | None = None,
    *,
    sampling: Sampling,
    eos: tuple[int, ...],
) -> tuple[PagedCache, Slots]:
    """Starts samples of one prompt in their slots: copies its partial page to each, draws the first token of each
    (NONFINITE where the logits are not finite: that sample does not decode).
    """
    keys = sample_keys(starts.seed, starts.problem, starts.samples)
    cache, logits = _beginnings(cache, slots, starts, known_ids)
    first = _draw(logits, keys, jnp.zeros_like(starts.samples), sampling, slots.mesh)
    return cache, _begun(slots, starts, keys, first, may_go_on(first, eos))


@functools.partial(jax.jit, static_argnames=("eos",), donate_argnames=("cache",))
def start_open_samples(
    cache: PagedCache,
    slots: Slots,
    starts: Starts,
    rows: Rows,
    forced: Int[Array, " slots"],
    keys: Key[Array, " slots"] | None = None,
    known_ids: Bool[Array, " vocab"] | None = None,
    *,
    eos: tuple[int, ...],
) -> tuple[PagedCache, Slots, Float[Array, "slots 2"] | None]:
    """`start_samples` where every slot draws by its own `rows`, or is given its first token (`forced`, -1: drawn).

    `keys` are those of samples that have not their problem's and index's own. Returns the log-probabilities of the
    first tokens too, if some row wants them.
    """
    keys = sample_keys(starts.seed, starts.problem, starts.samples) if keys is None else keys
    cache, logits = _beginnings(cache, slots, starts, known_ids)
    first = _draw_rows(logits, keys, jnp.zeros_like(starts.samples), forced, rows, eos, slots.mesh)
    begun = _begun(slots, starts, keys, first.token, (forced >= 0) | ~rows.ends(first.token, eos))
    return cache, begun, first.log_probs


def _beginnings(
    cache: PagedCache, slots: Slots, starts: Starts, known_ids: jax.Array | None
) -> tuple[PagedCache, jax.Array]:
    """The cache with the pages of samples that start, and the logits `[slots, vocab]` of their first tokens."""
    rows, logits = slots.token.shape[0], starts.logits
    cache = cache.copy_pages(jnp.broadcast_to(starts.source, (rows,)), starts.target).with_new_rows(starts.chosen)
    each = jnp.broadcast_to(logits[:, None], (logits.shape[0], rows // logits.shape[0], logits.shape[1]))
    return cache, allowed_logits(each.reshape(rows, -1), known_ids)


def _begun(slots: Slots, starts: Starts, keys: jax.Array, first: jax.Array, goes_on: jax.Array) -> Slots:
    """The slots with the samples that start, and their first tokens."""
    chosen = starts.chosen
    started = Slots(
        token=jnp.where(chosen, first, slots.token),
        stored=jnp.where(chosen, starts.length, slots.stored),
        produced=jnp.where(chosen, 1, slots.produced),
        limit=jnp.where(chosen, starts.limit, slots.limit),
        active=jnp.where(chosen, goes_on & (starts.limit > 1), slots.active),
        key=jnp.where(chosen, keys, slots.key),
        mesh=slots.mesh,
    )
    return started.in_place()


def allowed_logits(logits: jax.Array, known_ids: jax.Array | None) -> jax.Array:
    """Logits `[rows, vocab]`, -inf for ids that may not be drawn. A row that is not finite stays so."""
    if known_ids is None:
        return logits
    return jnp.where(known_ids[None] | jnp.isnan(logits) | (logits == jnp.inf), logits, -jnp.inf)


def _draw(logits: jax.Array, keys: jax.Array, positions: jax.Array, sampling: Sampling, mesh: Mesh | None) -> jax.Array:
    """`sample_tokens`; on a mesh each device draws for its own rows, a part of them where they divide."""
    if mesh is None:
        return sample_tokens(logits, keys, positions, sampling)
    rows = PartitionSpec(rows_spec(mesh, logits.shape[0], AXES) or ROWS)
    # Under shard_map: jit turns a sharded top-k into a full sort, which crashes the TPU compiler.
    local = functools.partial(sample_tokens, sampling=sampling)
    return jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)(logits, keys, positions)


def _draw_rows(
    logits: jax.Array,
    keys: jax.Array,
    places: jax.Array,
    forced: jax.Array,
    rows: Rows,
    eos: tuple[int, ...],
    mesh: Mesh | None,
) -> Drawn:
    """`draw_rows`, on a mesh as `_draw`."""
    draw = functools.partial(draw_rows, eos=eos)
    if mesh is not None:
        spec = PartitionSpec(rows_spec(mesh, logits.shape[0], AXES) or ROWS)
        draw = jax.shard_map(draw, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return draw(logits, keys, places, forced, rows)


@functools.partial(
    jax.jit, static_argnames=("graph", "policy", "sampling", "eos", "chunk", "backend"), donate_argnames=("cache",)
)
def decode_chunk(
    graph: nnx.GraphDef,
    weights: nnx.State,
    cache: PagedCache,
    slots: Slots,
    page_table: Int[Array, "slots max_pages"],
    patience: Int[Array, ""],
    shared: SharedPrefix | None = None,
    known_ids: Bool[Array, " vocab"] | None = None,
    *,
    policy: AttentionPolicy,
    sampling: Sampling,
    eos: tuple[int, ...],
    chunk: int,
    backend: Backend | None = None,
) -> tuple[PagedCache, Slots, Int[Array, "slots chunk"], ChunkReads]:
    """Up to `chunk` decode steps in one while_loop; ends early when `patience` slots have stopped since it began.

    `page_table [slots, max_pages]` int32 must name pages for the next `chunk` tokens of every active slot; `patience`
    is a scalar int32. `shared`, `backend`: see decode_attend; `known_ids` are those that may be drawn, None: all.
    Returns the cache, the slots and the tokens drawn, `[slots, chunk]` int32, IDLE where a slot was not active,
    NONFINITE where its logits were not finite; and what each step read.
    """
    steps = _Steps(graph, weights, page_table, patience, shared, known_ids, policy, eos, chunk, backend)

    def draw(logits: jax.Array, slots: Slots, step: jax.Array, rows: None) -> tuple[Drawn, jax.Array, None]:
        token = _draw(logits, slots.key, slots.produced, sampling, slots.mesh)
        return Drawn(token, None), may_go_on(token, eos), rows

    cache, slots, drawn, reads, _ = steps.run(cache, slots, draw, None, log_probs=False)
    return cache, slots, drawn, reads


@functools.partial(jax.jit, static_argnames=("graph", "policy", "eos", "chunk", "backend"), donate_argnames=("cache",))
def decode_open_chunk(
    graph: nnx.GraphDef,
    weights: nnx.State,
    cache: PagedCache,
    slots: Slots,
    page_table: Int[Array, "slots max_pages"],
    patience: Int[Array, ""],
    rows: Rows,
    forced: Int[Array, "slots chunk"],
    shared: SharedPrefix | None = None,
    known_ids: Bool[Array, " vocab"] | None = None,
    *,
    policy: AttentionPolicy,
    eos: tuple[int, ...],
    chunk: int,
    backend: Backend | None = None,
) -> tuple[PagedCache, Slots, Int[Array, "slots chunk"], ChunkReads, Float[Array, "slots chunk 2"] | None]:
    """`decode_chunk` where every slot draws by its own `rows`, or is given the tokens of `forced` (-1: drawn), at which
    no sample ends. Returns the log-probabilities of the tokens too, if some row wants them.
    """
    steps = _Steps(graph, weights, page_table, patience, shared, known_ids, policy, eos, chunk, backend)

    def draw(logits: jax.Array, slots: Slots, step: jax.Array, rows: Rows) -> tuple[Drawn, jax.Array, Rows]:
        given = jax.lax.dynamic_index_in_dim(forced, step, axis=1, keepdims=False)
        drawn = _draw_rows(logits, slots.key, slots.produced, given, rows, eos, slots.mesh)
        goes_on = ((given >= 0) & (drawn.token >= 0)) | ~rows.ends(drawn.token, eos)
        return drawn, goes_on, rows.after(drawn.token, slots.produced, slots.active & (drawn.token >= 0))

    rows = rows.after(slots.token, slots.produced - 1, slots.active)  # the host has not seen a first token yet
    return steps.run(cache, slots, draw, rows, log_probs=rows.log_probs)


class _Steps(NamedTuple):
    """The decode steps of a chunk, whatever draws their tokens."""

    graph: nnx.GraphDef
    weights: nnx.State
    page_table: jax.Array
    patience: jax.Array
    shared: SharedPrefix | None
    known_ids: jax.Array | None
    policy: AttentionPolicy
    eos: tuple[int, ...]
    chunk: int
    backend: Backend | None

    def run(
        self, cache: PagedCache, slots: Slots, draw: Callable[..., Any], rows: Rows | None, *, log_probs: bool
    ) -> tuple[PagedCache, Slots, jax.Array, ChunkReads, jax.Array | None]:
        """One while_loop; `draw(logits, slots, step, rows)` returns what each slot drew, whether it goes on, and what
        `rows` become.
        """
        model = nnx.merge(self.graph, self.weights)
        count, kv_heads, chunk = slots.token.shape[0], cache.k[0].shape[0], self.chunk
        began = jnp.sum(slots.active, dtype=jnp.int32)

        def running(carry) -> jax.Array:
            step, slots = carry[0], carry[2]
            left = jnp.sum(slots.active, dtype=jnp.int32)
            return (step < chunk) & (left > 0) & (began - left < self.patience)

        def one_step(carry):
            step, before, slots, drawn, counts, faults, rows, chances = carry
            lengths = jnp.where(slots.active, slots.stored + 1, 0)
            keys = jax.vmap(jax.random.fold_in)(slots.key, slots.produced)
            attend = decode_attend(
                self.policy, self.page_table, lengths, keys, shared=self.shared, backend=self.backend
            )
            hidden, cache = model(slots.token[:, None], slots.stored[:, None], attend, before.counting(count))
            if rows is not None:  # a sample that ended goes on from what was carried then
                cache = cache.with_carried_of(before, ~slots.active)
            cache, reads = cache.counted()
            logits = allowed_logits(model.logits(hidden[:, 0]), self.known_ids)
            (token, pairs), goes_on, rows = draw(logits, slots, step, rows)
            token = jnp.where(slots.active, token, slots.token)
            drew = slots.active.astype(jnp.int32)
            produced = slots.produced + drew
            drawn = drawn.at[:, step].set(jnp.where(slots.active, token, IDLE))
            chances = None if chances is None else chances.at[:, step].set(pairs)
            counts = counts.at[:, :, step].set(jnp.stack([reads.tokens, reads.vectors], axis=-1))
            # Where logits are not finite the model failed, not the policy, whatever its scores are.
            faults = jnp.where((faults == 0) & (token != NONFINITE)[None], reads.fault, faults)
            slots = dataclasses.replace(
                slots,
                token=token,
                stored=slots.stored + drew,
                produced=produced,
                active=slots.active & goes_on & (produced < slots.limit),
            )
            return step + 1, cache, slots.in_place(), drawn, counts, faults, rows, chances

        drawn = constrained(jnp.full((count, chunk), IDLE, jnp.int32), slots.mesh, ROWS)
        counts = constrained(jnp.zeros((kv_heads, count, chunk, 2), jnp.uint32), slots.mesh, *pool_spec())
        faults = constrained(jnp.zeros((kv_heads, count), jnp.int32), slots.mesh, *pool_spec())
        chances = constrained(jnp.zeros((count, chunk, 2)), slots.mesh, ROWS) if log_probs else None
        start = np.int32(0), cache, slots, drawn, counts, faults, rows, chances
        _, cache, slots, drawn, counts, faults, _, chances = jax.lax.while_loop(running, one_step, start)
        return cache, slots, drawn, ChunkReads.of(counts, faults, copies=cache.kv_copies), chances


@functools.partial(jax.jit, donate_argnames=("cache",))
def copy_page(cache: PagedCache, source: Int[Array, " shards"], target: Int[Array, " shards"]) -> PagedCache:
    """Copies one partial page of each shard to another, -1: none; one entry where there is no mesh."""
    return cache.copy_pages(source, target)


@jax.jit
def save_pages(cache: PagedCache, shard: Int[Array, ""], pages: Int[Array, " count"]) -> tuple[jax.Array, ...]:
    """Copies pages `[count]` int32 of every layer, with summaries, for the host: the leaves of a cache of these pages.

    `shard` (scalar int32) is the one whose pages they are, 0 where there is no mesh.
    """
    cache = cache.without_rows()
    if cache.mesh is None:
        return tuple(jax.tree.leaves(jax.tree.map(lambda pool: pool.at[:, pages].get(mode="clip"), cache)))

    def copied(cache: PagedCache, shard: jax.Array, pages: jax.Array) -> PagedCache:
        def gather_pool(pool: jax.Array) -> jax.Array:
            of_all_shards = jax.lax.all_gather(pool.at[:, pages].get(mode="clip"), ROWS)
            return jax.lax.dynamic_index_in_dim(of_all_shards, shard, keepdims=False)

        return jax.tree.map(gather_pool, cache)

    whole = PartitionSpec()
    saved = cache.on_shards(copied, (whole, whole), PartitionSpec("tensor"))(cache, shard, pages)
    return tuple(jax.tree.leaves(saved))


@functools.partial(jax.jit, donate_argnames=("cache",))
def load_pages(
    cache: PagedCache, shard: Int[Array, ""], pages: Int[Array, " count"], saved: tuple[jax.Array, ...]
) -> PagedCache:
    """Writes what `save_pages` returned into pages `[count]` int32 of a shard; -1: that page is skipped."""

    def written(cache: PagedCache, shard: jax.Array, pages: jax.Array, saved: PagedCache) -> PagedCache:
        ours = pages >= 0 if cache.mesh is None else (pages >= 0) & (jax.lax.axis_index(ROWS) == shard)

        def write_pool(pool: jax.Array, saved_pool: jax.Array) -> jax.Array:
            return pool.at[:, jnp.where(ours, pages, pool.shape[1])].set(saved_pool, mode="drop")

        return jax.tree.map(write_pool, cache, saved)

    whole, stored = PartitionSpec(), cache.without_rows()
    on_shards = cache.on_shards(written, (whole, whole, PartitionSpec("tensor")), pool_spec())
    loaded = on_shards(stored, shard, pages, jax.tree.unflatten(jax.tree.structure(stored), saved))
    return dataclasses.replace(loaded, carried=cache.carried)


@jax.jit
def save_carried(cache: PagedCache, slot: Int[Array, ""]) -> dict[str, jax.Array]:
    """What the policy carries for a slot's sequence: arrays `[kv_heads, …]` by name."""
    return {name: array[:, slot] for name, array in cache.carried.items()}


@functools.partial(jax.jit, donate_argnames=("cache",))
def load_carried(cache: PagedCache, slot: Int[Array, ""], saved: dict[str, jax.Array]) -> PagedCache:
    """Writes what `save_carried` returned to another slot."""
    carried = {name: array.at[:, slot].set(saved[name]) for name, array in cache.carried.items()}
    return dataclasses.replace(cache, carried=carried)


@jax.jit
def resume_sample(slots: Slots, resumed: Resumed) -> Slots:
    """Lets a sample go on in its slot."""
    slot = resumed.slot
    running = Slots(
        token=slots.token.at[slot].set(resumed.token),
        stored=slots.stored.at[slot].set(resumed.stored),
        produced=slots.produced.at[slot].set(resumed.produced),
        limit=slots.limit.at[slot].set(resumed.limit),
        active=slots.active.at[slot].set(True),
        key=slots.key.at[slot].set(resumed.key),
        mesh=slots.mesh,
    )
    return running.in_place()


def may_go_on(token: jax.Array, eos: tuple[int, ...]) -> jax.Array:
    """Whether a sample goes on behind a token: not behind an end token, nor where there was none to draw."""
    return ~jnp.isin(token, jnp.array((*eos, NONFINITE), jnp.int32))
