"""Decode attention of samples that share a prompt: whole pages of the prompt are read once for all of them.

Two passes of `paged_decode` and a merge by log-sum-exp. In the first the queries of up to `width` samples of a prompt
stand side by side as one larger query group, so that K and V of the prompt's pages are read once for them. In the
second every sample attends to the pages behind its prompt's. Every sample takes both passes, whoever decodes beside
it. Neighbours that come and go, or pages of its own after it was preempted, change no bit: every sample sums the same
tokens in the same order.

The byte floor of a dense layer and step, for m samples of a prompt with P tokens in whole pages and o tokens of their
own, E bytes of K and V a token: (ceil(m / width) · P + m · o) · E, against m · (P + o) · E without sharing, beside the
packed queries and two partial outputs for each sample and head (`prefix_saving`). Products: 4 · heads ·
head_dim · (P + o) · m either way; in the first pass width times as many for each byte.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
from kinetics_kernels.backends import Backend, used_backend

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.config import ModelConfig

# Query heads per KV head that a kernel takes at once; the reference takes any number, a kernel of others 16 or more.
GROUP_ROWS = {"xla": 64, "triton": 16, "mosaic_gpu": 64, "mosaic_tpu": 16}
OTHERS_ROWS = 16


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SharedPrefix:
    """Which samples share which pages in a decode chunk; all int32.

    Rows of the first pass, used ones before the rest: `table [rows, prefix_pages]` physical ids, -1 unused, `lengths
    [rows]` tokens (0: unused), `members [rows, width]` slots, -1 none. For each slot: its `place [slots]` among
    `rows * width` members (-1: none), `skipped [slots]` tokens that the first pass attends to, and `own_table [slots,
    max_pages]`, the pages behind them.
    """

    table: jax.Array | np.ndarray
    lengths: jax.Array | np.ndarray
    members: jax.Array | np.ndarray
    place: jax.Array | np.ndarray
    skipped: jax.Array | np.ndarray
    own_table: jax.Array | np.ndarray


def resolved_backend(backend: Backend | None) -> str:
    """The backend that paged_decode uses: the forced one, or what suits the device."""
    return used_backend("paged_decode", backend)


def prefix_width(slots: int, query_group: int, backend: Backend | None) -> int:
    """How many samples the first pass takes at once: as many as fit a kernel's query group; 1: nothing to share."""
    return max(1, min(slots, GROUP_ROWS.get(resolved_backend(backend), OTHERS_ROWS) // query_group))


def prefix_obstacle(
    config: ModelConfig, policy: AttentionPolicy, *, slots: int, backend: Backend | None, mesh: Mesh | None
) -> str | None:
    """Why an engine cannot share prefixes, as the end of a sentence on shared_prefix; None if it can."""
    if mesh is not None:
        return "is for one device, not for a mesh"
    if not any(policy.is_dense(layer) for layer in range(config.num_layers)):
        return f"is for dense layers, and {policy} has none"
    if prefix_width(slots, config.group, backend) == 1:
        return f"needs more than one slot, and a kernel with room beside the {config.group} query heads of a KV head"
    return None


def sharing_chosen(
    config: ModelConfig,
    prompts: Iterable[tuple[int, int]],
    *,
    slots: int,
    page_size: int,
    dtype: DTypeLike,
    backend: Backend | None,
) -> bool:
    """Whether the cost model shares the prefixes of `prompts`: tokens and samples of each (`sharing_pays`)."""
    return sharing_pays(
        config,
        [(tokens // page_size * page_size, samples) for tokens, samples in prompts],
        slots=slots,
        width=prefix_width(slots, config.group, backend),
        itemsize=jnp.dtype(dtype).itemsize,
    )


def share_prefixes(
    running: Iterable[tuple[int, Sequence[int], int]],
    *,
    slots: int,
    width: int,
    prefix_pages: int,
    max_pages: int,
    page_size: int,
) -> SharedPrefix:
    """Rows for the samples that run: `(slot, its pages, how many of them are whole pages of its prompt)`.

    Samples share where these pages are the same ones. At most `slots` rows are needed.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    own_table = np.full((slots, max_pages), -1, np.int32)
    skipped = np.zeros(slots, np.int32)
    for slot, pages, whole in running:
        own_table[slot, : len(pages) - whole] = pages[whole:]
        skipped[slot] = whole * page_size
        if whole:
            groups.setdefault(tuple(pages[:whole]), []).append(slot)
    table = np.full((slots, prefix_pages), -1, np.int32)
    lengths = np.zeros(slots, np.int32)
    members = np.full((slots, width), -1, np.int32)
    place = np.full(slots, -1, np.int32)
    row = 0
    for pages, slots_of_it in groups.items():
        for first in range(0, len(slots_of_it), width):
            some = slots_of_it[first : first + width]
            table[row, : len(pages)] = pages
            lengths[row] = len(pages) * page_size
            members[row, : len(some)] = some
            place[some] = row * width + np.arange(len(some))
            row += 1
    return SharedPrefix(table, lengths, members, place, skipped, own_table)


def shared_prefix_decode(
    q: Float[Array, "batch q_heads head_dim"],
    k_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    v_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    lengths: Int[Array, " batch"],
    shared: SharedPrefix,
    *,
    backend: Backend | None = None,
) -> Float[Array, "batch q_heads head_dim"]:
    """`paged_decode`'s `out [batch, q_heads, head_dim]` within rounding, for rows of which some share pages.

    `q [batch, q_heads, head_dim]`, pools `[kv_heads, num_pages, page_size, head_dim]`, `lengths [batch]` of the whole
    sequences, 0 for an idle row, which gives 0. On a kernel partial outputs are rounded to q's dtype.
    """
    place, used = jnp.asarray(shared.place), jnp.asarray(shared.lengths) > 0
    rows, width = shared.members.shape
    q_heads, head_dim = q.shape[1:]
    kv_heads = k_pages.shape[0]
    group = q_heads // kv_heads
    reference = resolved_backend(backend) == "xla"
    query = q.astype(jnp.float32) if reference else q

    packed = query[jnp.maximum(shared.members, 0)].reshape(rows, width, kv_heads, group, head_dim)
    packed = packed.transpose(0, 2, 1, 3, 4).reshape(rows, kv_heads * width * group, head_dim)
    if reference:  # row by row: it would read every row as far as the longest, and unused ones too

        def attend(row: jax.Array, partial: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            here = (jax.lax.dynamic_slice_in_dim(x, row, 1) for x in (packed, shared.table, shared.lengths))
            queries, table, length = map(jnp.asarray, here)
            row_out, row_lse = kernels.paged_decode(queries, k_pages, v_pages, table, length, backend="xla")
            return partial[0].at[row].set(row_out[0]), partial[1].at[row].set(row_lse[0])

        start = jnp.zeros_like(packed), jnp.full(packed.shape[:2], -jnp.inf)
        out, lse = jax.lax.fori_loop(0, jnp.sum(used), attend, start)
    else:
        table, of_prefix = jnp.asarray(shared.table), jnp.asarray(shared.lengths)
        out, lse = kernels.paged_decode(packed, k_pages, v_pages, table, of_prefix, backend=backend)

    def by_slot(x: jax.Array) -> jax.Array:  # [rows, kv_heads * width * group, …] → [batch, q_heads, …]
        x = x.reshape(rows, kv_heads, width, group, *x.shape[2:])
        x = jnp.swapaxes(x, 1, 2).reshape(rows * width, q_heads, *x.shape[4:])
        return x[jnp.maximum(place, 0)]

    here = (place >= 0) & (lengths > 0)
    lse = jnp.where(here[:, None], by_slot(lse), -jnp.inf)
    own_table, behind = jnp.asarray(shared.own_table), jnp.maximum(lengths - shared.skipped, 0)
    own_out, own_lse = kernels.paged_decode(query, k_pages, v_pages, own_table, behind, backend=backend)
    merged, _ = kernels.merge_partials(jnp.stack([by_slot(out), own_out]), jnp.stack([lse, own_lse]))
    return merged.astype(q.dtype)


# What an H100 reads while it starts a layer's second pass and its merge, about 5 µs at 3.3 TB/s.
STARTING = 16 << 20


def prefix_saving(config: ModelConfig, *, prefix: int, samples: int, width: int, itemsize: int) -> int:
    """Bytes that sharing saves in one dense layer and step; negative where it costs more. STARTING is not in it.

    `samples` samples of one prompt, of which whole pages hold `prefix` tokens; `width` of them are read for at once;
    `itemsize` is the bytes of a number. Attention apart reads the prefix `samples` times, together ceil(samples /
    width) times. Together costs beside that, for each sample and query head: its query packed beside others and read
    once more, and two partial outputs with their log-sum-exps (float32) written and read. Products are the same.
    """
    reads = -(-samples // width)
    token = 2 * config.num_kv_heads * config.head_dim * itemsize  # K and V
    merging = config.num_heads * (2 * config.head_dim * itemsize + 2 * 2 * (config.head_dim + 1) * 4)
    return (samples - reads) * prefix * token - samples * merging


def sharing_pays(
    config: ModelConfig, prompts: Iterable[tuple[int, int]], *, slots: int, width: int, itemsize: int
) -> bool:
    """Whether a mean decode step of a run reads less when its dense layers share prefixes.

    `prompts`: tokens in whole pages, and samples, of every prompt. Samples of a prompt decode side by side, and the
    slots are full or hold every sample; a prompt counts as often as it has samples.
    """
    prompts = [(prefix, samples) for prefix, samples in prompts if samples]
    total = sum(samples for _, samples in prompts)
    saved = 0.0
    for prefix, samples in prompts:
        together = min(samples, slots)
        each = prefix_saving(config, prefix=prefix, samples=together, width=width, itemsize=itemsize) / together
        saved += samples / total * each
    return saved * min(slots, total) > STARTING
