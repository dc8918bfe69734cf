"""Samples given to a model once more, side by side, a few tokens at a time: what their replays have in common."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int32

from kinetics_jax.attention.cache import PagedCache
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.reads import Reads, policy_fault
from kinetics_jax.engine.programs import prefill, prefill_chunk
from kinetics_jax.engine.sampling import problem_hash, sample_keys, seed_key
from kinetics_jax.padding import pages_for, prefill_size, prompt_shape, table_width

STEPS = 16  # tokens of a row that are replayed at a time: bounds what is kept of each


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A sample that was drawn: its prompt, its tokens, and what its random key is made of beside the run's seed, or
    that `key` itself.
    """

    prompt: Sequence[int]
    tokens: Sequence[int]
    problem: str = "0"
    sample: int = 0
    key: jax.Array | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Part:
    """The next tokens of every row: those that steps are given, and those that they drew; `count` of them are tokens.
    `stored` are in the cache, `produced` were drawn before.
    """

    tokens: Int32[Array, "rows steps"]
    following: Int32[Array, "rows steps"]
    stored: Int32[Array, " rows"]
    count: Int32[Array, " rows"]
    produced: Int32[Array, " rows"]


class Rows:
    """Up to `rows` samples with a row and pages each: `table [rows, width]` int32, `num_pages` in all, and `keys
    [rows]`, the samples' random keys. The table has room for `longest` tokens at least.
    """

    def __init__(self, samples: Sequence[Drawn], *, rows: int, page_size: int, seed: int, longest: int = 0):
        self.samples, self.page_size = samples, page_size
        longest = max(longest, *(len(each.prompt) + len(each.tokens) for each in samples))
        self.width = table_width(pages_for(longest, page_size))
        self.num_pages = rows * self.width
        self.table = np.full((rows, self.width), -1, np.int32)
        for row, sample in enumerate(samples):
            held = pages_for(len(sample.prompt) + len(sample.tokens), page_size)
            self.table[row, :held] = row * self.width + np.arange(held)
        idle = [Drawn([], [])] * (rows - len(samples))
        self.keys = jnp.stack([_key(each, seed_key(seed)) for each in (*samples, *idle)])

    @property
    def steps(self) -> int:
        """Decode steps of the longest sample; its first token takes none."""
        return max(len(sample.tokens) for sample in self.samples) - 1

    def part(self, start: int) -> Part:
        """STEPS decode steps of every row, from its `start` on."""
        rows = len(self.table)
        tokens, following = np.zeros((2, rows, STEPS), np.int32)
        stored, count, produced = np.zeros((3, rows), np.int32)
        for row, sample in enumerate(self.samples):
            given = list(sample.tokens[start : start + STEPS + 1])
            count[row] = max(len(given) - 1, 0)
            tokens[row, : count[row]], following[row, : count[row]] = given[:-1], given[1:]
            stored[row], produced[row] = len(sample.prompt) + start, start + 1
        return Part(*map(jnp.asarray, (tokens, following, stored, count, produced)))

    def prefill(
        self, graph: nnx.GraphDef, weights: nnx.State, cache: PagedCache, row: int
    ) -> tuple[PagedCache, Float[Array, "1 vocab"]]:
        """The cache with a row's prompt, as an engine prefills it, and the logits behind it."""
        prompt = self.samples[row].prompt
        chunk, whole = prompt_shape(len(prompt), self.page_size)
        tokens, pages = np.zeros((1, whole), np.int32), np.full(whole // self.page_size, -1, np.int32)
        tokens[0, : len(prompt)] = prompt
        held = pages_for(len(prompt), self.page_size)
        pages[:held] = self.table[row, :held]
        length, held_pages = jnp.int32(len(prompt)), jnp.asarray(pages)
        if whole <= prefill_size(self.page_size):
            return prefill(graph, weights, cache, jnp.asarray(tokens), length, held_pages)
        logits: Any = None
        for start in range(0, whole, chunk):
            some = jnp.asarray(tokens[:, start : start + chunk])
            cache, logits = prefill_chunk(graph, weights, cache, some, jnp.int32(start), length, held_pages)
        return cache, logits


def step_fault(reads: Reads, logits: Float[Array, "rows vocab"]) -> Int32[Array, " rows"]:
    """A policy's fault in one step of every row; none where the logits are not finite: there the model failed."""
    return jnp.where(jnp.isfinite(jnp.max(logits, axis=-1)), jnp.max(reads.fault, axis=0), 0)


def check_steps(policy: AttentionPolicy, faults: Int32[np.ndarray, "steps rows"], first: int) -> None:
    """Raises PolicyError for the first fault of some rows' steps (0: none); the first row is sample `first`."""
    for step, row in np.argwhere(faults)[:1].tolist():
        raise policy_fault(policy, int(faults[step, row]), f"sample {first + row}")


def _key(sample: Drawn, seed: jax.Array) -> jax.Array:
    if sample.key is not None:
        return sample.key
    return sample_keys(seed, jnp.uint32(problem_hash(sample.problem)), jnp.array([sample.sample], jnp.int32))[0]
