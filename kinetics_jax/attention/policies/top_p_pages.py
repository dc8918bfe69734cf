"""Top-p over pages."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from kinetics_jax.attention.policies.base import PolicyError
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.counts import Counts, StepCounts, sum_steps
from kinetics_jax.attention.policies.ranked_pages import keep_ranked, log_masses, page_counts, rank_pages

if TYPE_CHECKING:
    from kinetics_jax.attention.decode_step import DecodeStep, Pages


@dataclasses.dataclass(frozen=True)
class TopPPages(BlockTopK):
    """The fewest pages whose estimated mass is at least `p` of the whole, forced ones first, `pages` of them at most.

    A page's mass is the sum of exp(logit) over its tokens for the mean query of the group, estimated by its summary; of
    the current page it is computed. Forced pages count with their mass. Twilight (arXiv 2502.02770) does so over
    tokens.
    """

    p: float = 0.9
    summary: str = "mean_std"

    kind: ClassVar[str] = "top_p_pages"
    place: ClassVar[int] = 6
    ops: ClassVar[tuple[str, ...]] = ("score_pages", "paged_decode")
    spelled: ClassVar[tuple[str, ...]] = ("p", "budget", "page_size")
    price: ClassVar[str] = "upper bound"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p <= 1:
            raise PolicyError(f"{self.kind}: p must be above 0 and at most 1, got {self.p}")

    def choose(self, step: DecodeStep) -> Pages:
        """A page is kept while those before it in rank hold less than `p`; one whose mass is NaN is kept."""
        import jax
        import jax.numpy as jnp

        forced = self.sink_pages + self.recent_pages
        masses = log_masses(step, step.pages_in_use > forced)
        order = rank_pages(step, masses, most=self.pages, sink_pages=self.sink_pages, recent_pages=self.recent_pages)
        shares = jnp.exp(masses - jax.nn.logsumexp(masses, axis=-1, keepdims=True))
        ranked = jnp.take_along_axis(shares, jnp.minimum(order, step.max_pages - 1), axis=2)
        before = jnp.cumsum(ranked, axis=-1) - ranked
        enough = (before >= self.p) & (jnp.arange(order.shape[2])[None, None] >= forced) & (self.p < 1)
        return keep_ranked(step, order, ~enough)

    def step_counts(self, lengths: np.ndarray) -> StepCounts:
        """The most that it can attend to: `pages` pages. Every full page is searched, unless all are forced."""
        forced = self.sink_pages + self.recent_pages
        counts = page_counts(
            lengths,
            float(self.pages),
            page_size=self.page_size,
            sink_pages=self.sink_pages,
            recent_pages=self.recent_pages,
        )
        used = np.ceil(lengths / self.page_size)
        scores = np.where(used > forced, np.floor(lengths / self.page_size), 0)
        return counts._replace(scores=scores, vectors=scores * self.summary_vectors)

    def sparse_counts(self, prompt: np.ndarray, steps: np.ndarray) -> Counts:
        """Step by step."""
        return sum_steps(self.step_counts, prompt, steps)
