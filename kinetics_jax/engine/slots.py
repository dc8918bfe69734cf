"""What the engine's programs are given and return: the state of slots, samples that start or go on, what was read."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32, Key, UInt32

from kinetics_jax.attention.reads import split_halves
from kinetics_jax.sharding.mesh import ROWS, constrained, rows_sharding


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Slots:
    """Device state, one row per slot; on a mesh the first slots are those of the first shard of the
    sequences, and so on.
    """

    token: Int32[Array, " slots"]  # the newest, not in the cache yet
    stored: Int32[Array, " slots"]  # tokens in the cache
    produced: Int32[Array, " slots"]  # tokens drawn so far
    limit: Int32[Array, " slots"]  # the most tokens it may draw
    active: Bool[Array, " slots"]  # whether it decodes
    key: Key[Array, " slots"]  # of its sample
    mesh: Mesh | None = dataclasses.field(default=None, metadata={"static": True})

    @classmethod
    def idle(cls, slots: int, seed: jax.Array, mesh: Mesh | None = None) -> Slots:
        """Slots of which none decodes; `seed` is the run's key."""
        zeros = jnp.zeros(slots, jnp.int32)
        idle = cls(zeros, zeros, zeros, zeros, jnp.zeros(slots, bool), jnp.broadcast_to(seed, (slots,)), mesh)
        return jax.device_put(idle, rows_sharding(mesh)) if mesh else idle

    def in_place(self) -> Slots:
        """The same, each row on the devices of its shard: the compiler may have moved them."""
        return jax.tree.map(lambda row: constrained(row, self.mesh, ROWS), self)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Starts:
    """Samples of one prompt that start side by side. On a mesh they are all of one shard, whose row of `logits` and
    whose pages are meant.
    """

    logits: Float[Array, "shards vocab"]  # what prefill returned, float32; one shard where there is no mesh
    chosen: Bool[Array, " slots"]  # where a sample starts
    samples: Int32[Array, " slots"]  # its index
    limit: Int32[Array, ""]  # the most tokens each may draw
    length: Int32[Array, ""]  # tokens of the prompt
    seed: Key[Array, ""]  # of the run
    problem: UInt32[Array, ""]  # the problem's hash
    source: Int32[Array, ""]  # the prompt's last page
    target: Int32[Array, " slots"]  # the page it is copied to, -1: it is full and shared instead


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Resumed:
    """A sample that goes on: the fields of its row in `Slots`."""

    slot: Int32[Array, ""]
    token: Int32[Array, ""]
    stored: Int32[Array, ""]
    produced: Int32[Array, ""]
    limit: Int32[Array, ""]
    key: Key[Array, ""]  # of the sample


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ChunkReads:
    """What the decode steps of a chunk read, summed over layers and KV heads: KV tokens, then summary vectors, in
    halves (`attention.reads.join_halves`); and the first fault of the policy in each slot, 0 for none.
    """

    counts: UInt32[Array, "slots chunk 2 2"]
    fault: Int32[Array, " slots"]

    @classmethod
    def of(cls, counts: jax.Array, faults: jax.Array, *, copies: int) -> ChunkReads:
        """From counts `[kv_heads, slots, chunk, 2]` and faults `[kv_heads, slots]`; `copies` of each KV head."""
        return cls(split_halves(counts, copies), jnp.max(faults, axis=0))
