"""Random tokens, as the published code draws them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kinetics_jax.attention.policies.base import AttentionPolicy, PolicyError, check_settings
from kinetics_jax.attention.policies.counts import StepCounts
from kinetics_jax.attention.policies.random_blocks import random_scores

if TYPE_CHECKING:
    import jax

    from kinetics_jax.attention.decode_step import DecodeStep

WEIGHTS = ("none", "importance")


@dataclasses.dataclass(frozen=True)
class LiteSysRandomTokens(AttentionPolicy):
    """Random tokens by the rule of the paper's own code (LiteSys), to read its traces.

    Once a sequence is longer than 4 + local + samples tokens, a decode step attends per KV head to the 4 sink tokens,
    to the last `local` tokens, and to `samples` draws of the R tokens between, with replacement: a token that is drawn
    twice counts once. `weights` are those of the drawn tokens: `none` (`attn_random_select`), or `importance`, R /
    samples (`attn_random_nsample`), which leaves a bias where draws repeat.
    """

    samples: int = 0
    local: int = 0
    weights: str = "none"
    dense_layers: tuple[int, ...] = (0,)

    kind: ClassVar[str] = "litesys_random_tokens"
    place: ClassVar[int] = 12
    ops: ClassVar[tuple[str, ...]] = ("token_logits", "masked_decode")
    spelled: ClassVar[tuple[str, ...]] = ("samples",)
    needs_keys: ClassVar[bool] = True
    masks_logits: ClassVar[bool] = True
    price: ClassVar[str] = "upper bound"
    sink_tokens: ClassVar[int] = 4

    def __post_init__(self) -> None:
        check_settings(self)
        if self.samples < 1 or self.local < 0:
            raise PolicyError(
                f"{self.kind}: samples must be at least 1 and local at least 0, got {self.samples} and {self.local}"
            )
        if self.weights not in WEIGHTS:
            raise PolicyError(f"{self.kind}: weights {self.weights!r} is not known (known: {', '.join(WEIGHTS)})")

    @property
    def nominal_budget(self) -> int:
        """The most tokens that it attends to."""
        return self.sink_tokens + self.local + self.samples

    def attend(self, step: DecodeStep) -> jax.Array:
        """Draw i of a KV head takes token floor(R u), u being RandomBlocks' number of "page" i."""
        import jax.numpy as jnp

        assert step.keys is not None
        logits = step.token_logits()
        batch, heads, time = logits.shape
        length, position = step.lengths[:, None, None], jnp.arange(time, dtype=jnp.int32)[None, None]
        draws = random_scores(step.keys, step.layer, step.kv_heads, self.samples, step.first_kv_head)
        between = length - self.sink_tokens - self.local
        drawn = jnp.clip((draws * between.astype(jnp.float32)).astype(jnp.int32), 0, between - 1) + self.sink_tokens
        row, head = jnp.arange(batch)[:, None, None], jnp.arange(step.kv_heads)[None, :, None]
        chosen = jnp.zeros((batch, step.kv_heads, time), bool).at[row, head, drawn].set(True, mode="drop")
        chosen = jnp.repeat(chosen, heads // step.kv_heads, axis=1)
        optional = (position >= self.sink_tokens) & (position < length - self.local) & (length > self.nominal_budget)
        if self.weights == "importance":
            more = jnp.log(jnp.maximum(between, 1).astype(jnp.float32)) - math.log(self.samples)
            logits = jnp.where(optional, logits + more, logits)
        return step.attend_tokens(logits, (position < length) & (~optional | chosen))

    def step_counts(self, lengths: np.ndarray) -> StepCounts:
        """The most: repeated draws attend to fewer. The draw costs nothing."""
        forced = np.where(lengths > self.nominal_budget, self.sink_tokens + self.local, lengths)
        return StepCounts(forced, np.where(lengths > self.nominal_budget, float(self.samples), 0.0))
