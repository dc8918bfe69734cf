"""Block top-k."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from kinetics_kernels.summaries.registry import summary_kind

from kinetics_jax.attention.policies.base import PolicyError
from kinetics_jax.attention.policies.blocks import BlockPolicy
from kinetics_jax.attention.policies.counts import PublishedCounts

if TYPE_CHECKING:
    from kinetics_jax.attention.decode_step import DecodeStep, Pages


@dataclasses.dataclass(frozen=True)
class BlockTopK(BlockPolicy):
    """The forced pages, and those whose summary scores best for the step's query (paper, section 4.1).

    The query is the mean over the GQA group. `summary` names what stands for a page: the `mean` of its keys, scored by
    its dot product with the query; `min_max`, the bounds of its keys in every dimension, scored by the largest dot
    product that a key within them could have (Quest, arXiv 2406.10774); `mean_std`, mean and standard deviation, scored
    by the logarithm of the page's mean exp(logit) if its keys were independent Gaussians; or a kind of
    `kinetics_kernels.register_summary`.
    """

    summary: str = "mean"

    kind: ClassVar[str] = "block_topk"
    place: ClassVar[int] = 1
    ops: ClassVar[tuple[str, ...]] = ("select_pages", "paged_decode")

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            summary_kind(self.summary)
        except ValueError as error:
            raise PolicyError(f"{self.kind}: {error}") from error

    @property
    def cache_summary(self) -> str:
        """Its `summary`."""
        return self.summary

    @property
    def summary_vectors(self) -> int:
        """As many as its kind of summary has."""
        return summary_kind(self.summary).vectors

    def choose(self, step: DecodeStep) -> Pages:
        """The pages with the best summaries, found anew for every KV head."""
        return step.select_pages(summary=self.summary, **self.choice(step))

    def paper_counts(self, prompt: np.ndarray, output: np.ndarray) -> PublishedCounts:
        """Equations (8) and (9): the search reads a vector for every page in every step."""
        vectors = (prompt * output + output**2 / 2) / self.page_size
        return self.budget_filled(prompt, output)._replace(vectors=vectors, vectors_read=vectors)

    def upstream_counts(self, prompt: np.ndarray, output: np.ndarray, trials: np.ndarray) -> PublishedCounts | None:
        """`pages` is its k: sink and recent pages are not charged; the search is read once, for all trials' tokens. A
        rule that is built on this one has no published formula.
        """
        if type(self) is not BlockTopK:
            return None
        return published_block_search(self.published_budget, self.page_size, prompt, output, trials)


def published_block_search(
    budget: float, page_size: int, prompt: np.ndarray, output: np.ndarray, trials: np.ndarray
) -> PublishedCounts:
    """Block top-k in the published code, floors included."""
    return PublishedCounts(
        budget * output - np.maximum(budget - prompt, 0) ** 2 / 2,
        vectors=(2 * prompt + output) // page_size * output / 2,
        vectors_read_once=(2 * prompt + output * trials) // page_size * output / 2,
    )
