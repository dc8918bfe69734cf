"""What decode steps read, counted on the device, and what is wrong with a policy's choices, as codes.

Counts of one step are summed over layers for each KV head and row, in uint32: a step reads at most 2**24 tokens in each
of fewer than 256 layers. Steps and KV heads are summed by the host in 64 bits, from halves of 16 bits (`split_halves`)
that no device has to carry over. Nothing is read back before the tokens of a chunk are.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax.nnx.tracers import TraceState
from jaxtyping import Array, Bool, Int, Int32, UInt32

from kinetics_jax.attention.policies.base import AttentionPolicy, PolicyError

FAULTS = {  # code → what is wrong
    1: "scores pages with NaN; give finite scores, -inf for a page that must not be chosen",
    2: "returns pages that are not its sequence's; take ids from step.page_table, or let step.choose_pages and "
    "step.keep_pages name them",
    3: "names a page twice, or its pages out of order; give ids in the order of the text, -1 behind the last",
    4: "covers more tokens than its pages hold; let step.cover count them",
    5: "keeps more pages than at_most; mask fewer, or choose_pages by scores",
    6: "attends to more tokens than its budget",
    7: "attends to nothing; keep the current page at least",
}
CODES = 16  # a fault is its layer times this, and its code


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reads:
    """What one step has read so far, over layers: KV tokens and summary vectors; `fault`: 0, or the first one found."""

    tokens: UInt32[Array, "kv_heads rows"]
    vectors: UInt32[Array, "kv_heads rows"]
    fault: Int32[Array, "kv_heads rows"]

    @classmethod
    def none(cls, kv_heads: int, rows: int) -> Reads:
        """Nothing read yet."""
        zeros = jnp.zeros((kv_heads, rows), jnp.uint32)
        return cls(zeros, zeros, jnp.zeros((kv_heads, rows), jnp.int32))

    def plus(self, tally: Tally, layer: int) -> Reads:
        """With what a layer's ops read."""
        fault = tally.fault()
        coded = jnp.where(fault > 0, fault + layer * CODES, 0)
        return Reads(
            self.tokens + _total(tally.tokens, self.tokens),
            self.vectors + _total(tally.vectors, self.vectors),
            jnp.where(self.fault > 0, self.fault, coded.T),
        )


class Tally:
    """What the ops of one layer's step read, gathered while the step is traced: `[batch, kv_heads]` each. `where` names
    the policy and the layer. Raises PolicyError for an op that is called inside another trace than the step's.
    """

    def __init__(self, where: str, batch: int, kv_heads: int, lengths: Int[Array, " batch"]):
        self.where, self.shape, self.active = where, (batch, kv_heads), lengths > 0
        self.trace = TraceState()
        self.tokens: list[jax.Array] = []
        self.vectors: list[jax.Array] = []
        self.faults: list[tuple[int, jax.Array]] = []
        self.known: list[tuple[jax.Array, jax.Array]] = []  # tables and tokens covered, as ops returned them

    def add(self, tokens: jax.Array | None = None, vectors: jax.Array | None = None) -> None:
        """Counts tokens attended and summary vectors read, whole numbers that broadcast to `[batch, kv_heads]`."""
        self.check_trace()
        for counts, more in ((self.tokens, tokens), (self.vectors, vectors)):
            if more is not None:
                try:
                    more = jnp.broadcast_to(more, self.shape)
                except ValueError as error:
                    shape = list(jnp.shape(more))
                    raise PolicyError(
                        f"{self.where} it counts {shape} reads; they must be {list(self.shape)}: batch, KV heads"
                    ) from error
                counts.append(jnp.where(self.active[:, None], more, 0).astype(jnp.uint32))

    def blame(self, code: int, where: Bool[Array, "batch kv_heads"]) -> None:
        """Notes a fault where it is true."""
        self.check_trace()
        self.faults.append((code, where & self.active[:, None]))

    def trust(self, tables: jax.Array, covered: jax.Array) -> None:
        """Notes pages that an op named: they need no check."""
        self.known.append((tables, covered))

    def knows(self, tables: jax.Array, covered: jax.Array) -> bool:
        """Whether pages are as an op named them."""
        return any(tables is known and covered is count for known, count in self.known)

    def check_trace(self) -> None:
        if not self.trace.is_valid():
            raise PolicyError(
                f"{self.where} it calls the step's ops inside jit, lax.cond, scan or vmap, where reads cannot be "
                "counted; call them outside, or kinetics_kernels' inside and step.count outside"
            )

    def fault(self) -> Int32[Array, "batch kv_heads"]:
        """The code of the first fault, 0 for none."""
        found = jnp.zeros(self.shape, jnp.int32)
        for code, where in reversed(self.faults):
            found = jnp.where(where, jnp.int32(code), found)
        return found


def _total(counts: list[jax.Array], like: jax.Array) -> jax.Array:
    """The sum of counts `[batch, kv_heads]` as `[kv_heads, batch]`."""
    total = jnp.zeros_like(like)
    for count in counts:
        total = total + count.T
    return total


def check_pages(
    tally: Tally,
    tables: Int[Array, "batch kv_heads pages"],
    covered: Int[Array, "batch kv_heads"],
    page_table: Int[Array, "batch max_pages"],
    lengths: Int[Array, " batch"],
    page_size: int,
) -> None:
    """Blames pages that no op named, where they are another sequence's, named twice or out of order, or hold fewer
    tokens than are covered.
    """
    batch, _, width = tables.shape
    max_pages = page_table.shape[1]
    count = -(-lengths // page_size)  # pages in use
    own = jnp.where(page_table >= 0, page_table, jnp.int32(np.iinfo(np.int32).max))
    order = jnp.argsort(own, axis=1).astype(jnp.int32)
    ids = jnp.take_along_axis(own, order, axis=1)
    flat = tables.reshape(batch, -1).astype(jnp.int32)
    at = jnp.clip(jax.vmap(jnp.searchsorted)(ids, flat), 0, max_pages - 1)
    found = (jnp.take_along_axis(ids, at, axis=1) == flat).reshape(tables.shape)
    logical = jnp.take_along_axis(order, at, axis=1).reshape(tables.shape)
    used = tables >= 0
    tally.blame(2, jnp.any(used & ~found, axis=-1))
    place = jnp.where(used, logical, max_pages + jnp.arange(width, dtype=jnp.int32)[None, None])
    tally.blame(3, jnp.any(place[..., 1:] <= place[..., :-1], axis=-1))
    last = lengths - (count - 1) * page_size  # tokens of the current page
    newest = (count - 1)[:, None, None]
    held = jnp.where(logical < newest, page_size, jnp.where(logical == newest, last[:, None, None], 0))
    tally.blame(4, covered > jnp.sum(jnp.where(used, held, 0), axis=-1, dtype=jnp.int32))


def split_halves(
    counts: UInt32[Array, "kv_heads slots chunk kinds"], copies: int
) -> UInt32[Array, "slots chunk kinds 2"]:
    """Counts summed over KV heads, in a low and a high half of 16 bits, which cannot overflow; `copies` of each KV head
    stand side by side, and one counts.
    """
    counts = counts[::copies]
    return jnp.stack([jnp.sum(half, axis=0) for half in (counts & 0xFFFF, counts >> 16)], axis=-1)


def join_halves(halves: np.ndarray) -> np.ndarray:
    """`split_halves` as int64."""
    return halves[..., 0].astype(np.int64) + (halves[..., 1].astype(np.int64) << 16)


def policy_fault(policy: AttentionPolicy, code: int, where: str) -> PolicyError:
    """The error of a fault's code; `where` names the sample."""
    layer, what = divmod(code, CODES)
    budget = f" of {policy.budget}" if what == 6 else ""
    return PolicyError(f"{policy}: in layer {layer} it {FAULTS[what]}{budget} ({where})")
