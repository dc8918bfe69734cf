"""A sliding window."""

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
class SlidingWindow(TokenPolicy):
    """Every decode step attends to the first `sink_tokens` tokens and the last `budget - sink_tokens`."""

    budget: int = 0
    sink_tokens: int = 4
    dense_layers: tuple[int, ...] = (0,)

    kind: ClassVar[str] = "sliding_window"
    place: ClassVar[int] = 3
    spelled: ClassVar[tuple[str, ...]] = ("budget",)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.budget < 1:
            raise PolicyError(f"{self.kind}: give budget= (tokens), at least 1, got {self.budget}")
        if self.sink_tokens < 0:
            raise PolicyError(f"{self.kind}: sink_tokens must not be negative, got {self.sink_tokens}")
        if self.budget <= self.sink_tokens:
            raise PolicyError(
                f"{self.kind}: budget {self.budget} leaves no window beside {self.sink_tokens} sink tokens; the least "
                f"is budget={self.sink_tokens + 1}"
            )

    def mask(
        self, logits: Float[Array, "batch heads time"], lengths: Int[Array, " batch"], kv_heads: int
    ) -> Bool[Array, "batch heads time"]:
        """The sink tokens and the newest ones."""
        import jax.numpy as jnp
        import kinetics_kernels as kernels

        window = kernels.sliding_window_mask(lengths, logits.shape[2], tokens=self.budget, sink=self.sink_tokens)
        return jnp.broadcast_to(window[:, None], logits.shape)

    def sparse_counts(self, prompt: np.ndarray, steps: np.ndarray) -> Counts:
        """Steps up to `budget` tokens attend to everything, the later ones to as many; all of it forced."""
        whole, choosing = split_steps(prompt, steps, self.budget)
        return Counts(forced=Share(triangle(whole) + choosing * self.budget, prompt * whole))

    def paper_counts(self, prompt: np.ndarray, output: np.ndarray) -> PublishedCounts:
        """Equations (8) and (9), without a search."""
        return self.budget_filled(prompt, output)

    def upstream_counts(self, prompt: np.ndarray, output: np.ndarray, trials: np.ndarray) -> PublishedCounts:
        """The window beside the sink tokens is its local budget; the published sign."""
        window = float(self.budget - self.sink_tokens)
        return PublishedCounts(window * output + np.maximum(window - prompt, 0) ** 2 / 2)
