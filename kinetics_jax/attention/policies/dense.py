"""Dense attention."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.counts import PublishedCounts, StepCounts

if TYPE_CHECKING:
    import jax

    from kinetics_jax.attention.decode_step import DecodeStep


@dataclasses.dataclass(frozen=True)
class Dense(AttentionPolicy):
    """Every decode step attends to every token."""

    kind: ClassVar[str] = "dense"
    place: ClassVar[int] = 0
    ops: ClassVar[tuple[str, ...]] = ("paged_decode",)

    def is_dense(self, layer: int) -> bool:
        """True."""
        return True

    def attend(self, step: DecodeStep) -> jax.Array:
        """Attention over the whole page table, as in a dense layer of any policy."""
        return step.attend_all()

    def step_counts(self, lengths: np.ndarray) -> StepCounts:
        """The whole sequence."""
        return StepCounts(forced=lengths)

    def paper_counts(self, prompt: np.ndarray, output: np.ndarray) -> PublishedCounts:
        """Equations (1) and (2): the prompt is read once for all trials."""
        return PublishedCounts(output**2 / 2, attended_once=prompt * output)

    def upstream_counts(self, prompt: np.ndarray, output: np.ndarray, trials: np.ndarray) -> PublishedCounts:
        """As in the paper."""
        return self.paper_counts(prompt, output)


DENSE = Dense()
