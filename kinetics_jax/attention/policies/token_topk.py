"""Token top-k, the oracle."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kinetics_jax.attention.policies.base import PolicyError, check_settings
from kinetics_jax.attention.policies.counts import Counts, PublishedCounts, Share, split_steps, triangle
from kinetics_jax.attention.policies.tokens import TokenPolicy

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class TokenTopK(TokenPolicy):
    """The oracle: every decode step attends, per KV head, to the `budget` tokens with the largest logits.

    Logits are averaged over the GQA group, in float32; the current token is always among the tokens, and counted. All
    logits are computed to find the largest: this says how well a budget could be spent, not what it saves.
    """

    budget: int = 0
    dense_layers: tuple[int, ...] = (0,)

    kind: ClassVar[str] = "token_topk"
    place: ClassVar[int] = 2
    spelled: ClassVar[tuple[str, ...]] = ("budget",)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.budget < 1:
            raise PolicyError(f"{self.kind}: give budget= (tokens), at least 1, got {self.budget}")

    def mask(
        self, logits: Float[Array, "batch heads time"], lengths: Int[Array, " batch"], kv_heads: int
    ) -> Bool[Array, "batch heads time"]:
        """The `budget` largest logits, the current token's among them."""
        import kinetics_kernels as kernels

        return kernels.token_topk_mask(logits, lengths, num_kv_heads=kv_heads, tokens=self.budget)

    def sparse_counts(self, prompt: np.ndarray, steps: np.ndarray) -> Counts:
        """Steps up to `budget` tokens attend to everything, the later ones to as many. The search costs nothing, by
        definition: that is the paper's idealisation, for no engine finds the largest logits without computing them.
        """
        whole, choosing = split_steps(prompt, steps, self.budget)
        own = triangle(whole) + choosing * self.budget
        return Counts(forced=Share(steps), chosen=Share(own - steps, prompt * whole))  # the current token is forced

    def paper_counts(self, prompt: np.ndarray, output: np.ndarray) -> PublishedCounts:
        """Equations (8) and (9), without a search."""
        return self.budget_filled(prompt, output)

    def upstream_counts(self, prompt: np.ndarray, output: np.ndarray, trials: np.ndarray) -> PublishedCounts:
        """The published sign: what fills the budget is added."""
        return PublishedCounts(self.budget * output + np.maximum(self.budget - prompt, 0) ** 2 / 2)
