"""Overlapping blocks, as the published code chooses them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kinetics_jax.attention.policies.base import PAGE_SIZE, PolicyError, check_settings
from kinetics_jax.attention.policies.counts import StepCounts
from kinetics_jax.attention.policies.tokens import TokenPolicy

if TYPE_CHECKING:
    import jax
    from jaxtyping import Array, Bool, Float, Int

    from kinetics_jax.attention.decode_step import DecodeStep


@dataclasses.dataclass(frozen=True)
class LiteSysStridedBlocks(TokenPolicy):
    """Strided block top-k by the rule of the paper's own code (LiteSys, `attn_stride`), to read its traces.

    Blocks of `page_size` tokens begin every `stride` tokens after the 4 sink tokens, as many as end before the last
    `local` tokens. A decode step attends to the sinks, to the window, and to the union of the 2 `pages` blocks with the
    largest mean logit, cut to its first `pages * page_size` tokens. What no block covers is left out; with `local = 0`
    that can be the current token. A sequence without a whole block attends to all of itself.
    """

    pages: int = 0
    page_size: int = PAGE_SIZE
    stride: int = 0
    local: int = 0
    dense_layers: tuple[int, ...] = (0,)

    kind: ClassVar[str] = "litesys_strided_blocks"
    place: ClassVar[int] = 11
    spelled: ClassVar[tuple[str, ...]] = ("pages", "page_size", "stride")
    sink_tokens: ClassVar[int] = 4
    price: ClassVar[str] = "upper bound"

    def __post_init__(self) -> None:
        check_settings(self)
        for name, least in (("pages", 1), ("page_size", 1), ("stride", 1), ("local", 0)):
            if getattr(self, name) < least:
                raise PolicyError(f"{self.kind}: {name} must be at least {least}, got {getattr(self, name)}")

    @property
    def nominal_budget(self) -> int:
        """The most tokens of its blocks; sink tokens and window come on top."""
        return self.pages * self.page_size

    @property
    def summary_vectors(self) -> int:
        """The mean key of every block that begins in a page: what an engine for this rule would keep."""
        return -(-self.page_size // self.stride)

    def attend(self, step: DecodeStep) -> jax.Array:
        """Attention over the tokens of the mask, once each block's mean is looked at."""
        import jax.numpy as jnp

        between = step.lengths - self.sink_tokens - self.local
        blocks = jnp.maximum((between - self.page_size) // self.stride + 1, 0)
        step.count(vectors=blocks[:, None])
        return super().attend(step)

    def mask(
        self, logits: Float[Array, "batch heads time"], lengths: Int[Array, " batch"], kv_heads: int
    ) -> Bool[Array, "batch heads time"]:
        """The sink tokens, the first tokens of the best blocks' union, and the window."""
        import jax
        import jax.numpy as jnp
        from kinetics_kernels.numerics import ranked

        batch, heads, time = logits.shape
        length, position = lengths[:, None, None], jnp.arange(time, dtype=jnp.int32)[None, None]
        present = position < length
        begins = np.arange(self.sink_tokens, time - self.page_size + 1, self.stride, dtype=np.int32)
        if not len(begins):
            return jnp.broadcast_to(present, logits.shape)
        inside = begins[:, None] + np.arange(self.page_size, dtype=np.int32)  # [blocks, page_size]
        mean = jnp.where(present, logits, 0).reshape(batch, kv_heads, -1, time).mean(axis=2)
        is_whole = begins[None, None] + self.page_size <= length - self.local  # [batch, 1, blocks]
        scores = jnp.where(is_whole, ranked(mean[..., inside].mean(axis=-1)), -jnp.inf)
        best, block = jax.lax.top_k(scores, min(2 * self.pages, len(begins)))
        row, head = jnp.arange(batch)[:, None, None, None], jnp.arange(kv_heads)[None, :, None, None]
        tokens = jnp.where(best[..., None] > -jnp.inf, jnp.asarray(inside)[block], time)
        union = jnp.zeros((batch, kv_heads, time), bool).at[row, head, tokens].set(True, mode="drop")
        chosen = union & (jnp.cumsum(union, axis=-1) <= self.nominal_budget)
        optional = (position >= self.sink_tokens) & (position < length - self.local) & is_whole[..., :1]
        return jnp.repeat(present & (~optional | chosen), heads // kv_heads, axis=1)

    def step_counts(self, lengths: np.ndarray) -> StepCounts:
        """Exact where any 2 `pages` blocks hold the budget, or where there are no more; else the most they can hold."""
        outside = np.minimum(lengths, self.sink_tokens + self.local)
        between = lengths - outside
        blocks = np.maximum(np.floor((between - self.page_size) / self.stride) + 1, 0)
        step = min(self.stride, self.page_size)
        covered = (blocks - 1) * step + self.page_size  # by all blocks
        most = np.minimum(covered, min(self.nominal_budget, 2 * self.pages * self.page_size))
        return StepCounts(forced=outside, chosen=np.where(blocks > 0, most, between), scores=blocks, vectors=blocks)

    @property
    def exact(self) -> bool:
        """Whether `step_counts` says what is attended at every length, and not only the most that can be."""
        step = min(self.stride, self.page_size)
        return (2 * self.pages - 1) * step + self.page_size >= self.nominal_budget
