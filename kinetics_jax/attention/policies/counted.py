"""A policy priced by what its samples read, as the device counted it, instead of by its own formula.

Of a sample only totals are known: tokens attended and summary vectors read in its sparse layers. Where a sample is cut,
or a step at another length is wanted, a step is taken to attend to min(length, reach) tokens, with the reach that gives
the sample its total; and to read vectors in proportion to its length once that exceeds the reach.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.counts import Counts, PublishedCounts, Share, triangle
from kinetics_jax.attention.policies.options import PolicyError


@dataclasses.dataclass(frozen=True, eq=False)
class CountedPolicy(AttentionPolicy):
    """`policy`, whose steps attend to min(length, `reach`) tokens per KV head of a sparse layer, times `surplus` (1, or
    more where a step reads tokens more than once), and read `search` vectors a token of lengths beyond `reach`. The
    three broadcast with the lengths that are priced.
    """

    policy: AttentionPolicy
    reach: Any
    surplus: Any
    search: Any

    def __post_init__(self) -> None:
        for name in ("kind", "page_size", "dense_layers", "budget", "needs_keys", "masks_logits"):
            object.__setattr__(self, name, getattr(self.policy, name))

    @property
    def cache_summary(self) -> str | None:
        """The policy's."""
        return self.policy.cache_summary

    @property
    def summary_vectors(self) -> int:
        """The policy's."""
        return self.policy.summary_vectors

    def is_dense(self, layer: int) -> bool:
        """As in the policy."""
        return self.policy.is_dense(layer)

    def searches(self, layer: int) -> bool:
        """As in the policy."""
        return self.policy.searches(layer)

    def sparse_counts(self, prompt: np.ndarray, steps: np.ndarray) -> Counts:
        """Forced tokens are not told from chosen ones; scores are compared for each summary read."""
        tokens, whole = attended(self.reach, prompt, steps)
        vectors = Share(self.search * (prompt * (steps - whole) + triangle(steps) - triangle(whole)))
        of_prompt = prompt * whole * np.minimum(self.surplus, 1)
        return Counts(
            chosen=Share(self.surplus * tokens - of_prompt, of_prompt),
            scores=vectors.times(1 / self.summary_vectors if self.summary_vectors else 0),
            vectors=vectors,
        )

    def paper_counts(self, prompt: np.ndarray, output: np.ndarray) -> PublishedCounts:
        """Raises PolicyError."""
        raise PolicyError(f"{self}: what samples counted is priced in the traffic convention alone, not in paper")

    def upstream_counts(self, prompt: np.ndarray, output: np.ndarray, trials: np.ndarray) -> PublishedCounts:
        """Raises PolicyError."""
        raise PolicyError(f"{self}: what samples counted is priced in the traffic convention alone, not in upstream")

    def __str__(self) -> str:
        """The policy's spelling."""
        return str(self.policy)


def attended(reach: Any, prompt: Any, steps: Any) -> tuple[Any, Any]:
    """Tokens of `steps` steps behind `prompt` tokens that each attend to min(length, reach); and how many of the steps
    attend to everything.
    """
    whole = np.clip(np.floor(reach) - prompt, 0, steps)
    return prompt * whole + triangle(whole) + (steps - whole) * reach, whole


def reach_of(tokens: Any, prompt: Any, steps: Any) -> tuple[np.ndarray, np.ndarray]:
    """The reach that gives each sample its `tokens`, and the surplus where none is enough; arrays that broadcast."""
    tokens, prompt, steps = np.broadcast_arrays(*(np.asarray(each, np.float64) for each in (tokens, prompt, steps)))
    everything = prompt * steps + triangle(steps)
    half = steps + 0.5
    # With m whole steps, reaching p + m: p n + n m - m (m - 1) / 2 tokens; the largest m that is not too many.
    root = np.sqrt(np.maximum(half**2 - 2 * (tokens - prompt * steps), 0))
    whole = np.clip(np.floor(half - root), 0, steps)
    left = np.maximum(steps - whole, 1)
    reach = np.where(whole < steps, (tokens - prompt * whole - triangle(whole)) / left, prompt + steps)
    surplus = np.where(everything > 0, np.maximum(tokens / np.maximum(everything, 1), 1), 1)
    return np.where(surplus > 1, prompt + steps, reach), surplus
