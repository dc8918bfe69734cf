"""Which pages a policy chose while a sample was drawn, layer by layer, and how much attention they hold: by a replay of
the sample's decode steps with a policy that takes notes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Int, Int32, Key
from kinetics_kernels.backends import Backend

from kinetics_jax.attention.cache import PagedCache, empty_cache
from kinetics_jax.attention.decode import decode_attend
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.recorded import MASS, PAGES, Recorded
from kinetics_jax.config import ModelConfig
from kinetics_jax.engine.replay import STEPS, Drawn, Part, Rows, check_steps, step_fault


@dataclasses.dataclass(frozen=True)
class ChosenPages:
    """Of a sample's decode steps, one for each token but the first: `lengths [steps]`, the tokens that a step could
    attend to, its own included; `pages [steps, layers, kv_heads, pages]`, true for a page that a KV head attended to,
    in whole or in part; `mass [steps, layers, kv_heads]`, the weight that dense attention gives to what was attended
    to, in the mean over the query heads of a KV head. Pages have `page_size` tokens and count from the sequence's
    start.

    The weight is that of the step's own queries and keys, those of the run under the policy. In layers of dense
    attention every page is chosen and the mass is 1.
    """

    lengths: np.ndarray
    pages: np.ndarray
    mass: np.ndarray
    page_size: int


def chosen_pages(
    graph: nnx.GraphDef,
    weights: nnx.State,
    config: ModelConfig,
    sample: Drawn,
    *,
    policy: AttentionPolicy,
    seed: int = 0,
    at: Sequence[int] | None = None,
    cache_dtype: DTypeLike = jnp.float32,
    backend: Backend | None = None,
    rows: int = 1,
) -> ChosenPages:
    """The record of a sample's decode steps; of those of `at` alone (output positions from 1 on), to save memory.

    It computes at a batch of `rows`: that of the run's slots gives the run's own numbers, another one those within
    rounding, by which pages of equal score may differ. On one device. Raises PolicyError for a policy that chooses what
    it may not.
    """
    side_by_side = Rows([sample], rows=rows, page_size=policy.page_size, seed=seed)
    width, layers = side_by_side.width, config.num_layers
    recorded = Recorded(policy, layers, width)
    cache = empty_cache(recorded, config, num_pages=side_by_side.num_pages, dtype=cache_dtype, rows=rows)
    cache, _ = side_by_side.prefill(graph, weights, cache, 0)
    wanted = np.arange(1, max(side_by_side.steps, 0) + 1) if at is None else np.asarray(at, int)
    lengths = len(sample.prompt) + wanted
    used = np.arange(width) < -(-lengths[:, None] // policy.page_size)
    pages = np.repeat(np.repeat(used[:, None, None], layers, 1), config.num_kv_heads, 2)
    mass = np.ones(pages.shape[:3], np.float32)
    table = jnp.asarray(side_by_side.table)
    for start in range(0, side_by_side.steps, STEPS):
        cache, record, faults = record_chunk(
            graph, weights, cache, side_by_side.part(start), table, side_by_side.keys, policy=recorded, backend=backend
        )
        check_steps(policy, jax.device_get(faults), 0)
        here = np.flatnonzero((wanted > start) & (wanted <= start + STEPS))
        if not len(here):
            continue
        places = wanted[here] - start - 1
        for name, values in jax.device_get(record).items():
            kind, layer = name.rsplit(" ", 1)
            {PAGES: pages, MASS: mass}[kind][here, int(layer)] = values[places]
    return ChosenPages(lengths, pages, mass, policy.page_size)


@functools.partial(jax.jit, static_argnames=("graph", "policy", "backend"), donate_argnames=("cache",))
def record_chunk(
    graph: nnx.GraphDef,
    weights: nnx.State,
    cache: PagedCache,
    part: Part,
    page_table: Int[Array, "rows max_pages"],
    keys: Key[Array, " rows"],
    *,
    policy: Recorded,
    backend: Backend | None = None,
) -> tuple[PagedCache, dict[str, jax.Array], Int32[Array, "steps rows"]]:
    """The next decode steps of every row. Returns the cache, of the first row what the policy noted in each step,
    `[steps, kv_heads, …]` by name, and the policy's faults (`replay.step_fault`).
    """
    model = nnx.merge(graph, weights)

    def step(cache: PagedCache, place: jax.Array) -> tuple[PagedCache, tuple[dict[str, jax.Array], jax.Array]]:
        lengths = jnp.where(place < part.count, part.stored + place + 1, 0)
        step_keys = jax.vmap(jax.random.fold_in)(keys, part.produced + place)
        attend = decode_attend(policy, page_table, lengths, step_keys, backend=backend)
        counting = cache.counting(part.count.shape[0])
        hidden, cache = model(part.tokens[:, place, None], (part.stored + place)[:, None], attend, counting)
        cache, reads = cache.counted()
        noted = {name: array[:, 0] for name, array in cache.carried.items() if name.startswith((PAGES, MASS))}
        return cache, (noted, step_fault(reads, model.logits(hidden[:, 0])))

    cache, (noted, faults) = jax.lax.scan(step, cache, jnp.arange(part.tokens.shape[1], dtype=jnp.int32))
    return cache, noted, faults
