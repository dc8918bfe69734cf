"""Block top-k under a budget that grows with the sequence."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from kinetics_kernels.summaries.registry import summary_kind

from kinetics_jax.attention.policies.base import PAGE_SIZE, AttentionPolicy, PolicyError, check_settings
from kinetics_jax.attention.policies.counts import StepCounts
from kinetics_jax.attention.policies.ranked_pages import keep_ranked, page_counts, page_logits, rank_pages

if TYPE_CHECKING:
    from kinetics_jax.attention.decode_step import DecodeStep, Pages


@dataclasses.dataclass(frozen=True)
class GrowingBlockTopK(AttentionPolicy):
    """Block top-k whose number of pages follows the sequence's: give `ratio` or `schedule`.

    `ratio`: this share of the pages in use, rounded up, and never less than `least` tokens. `schedule`: budgets from
    lengths on, `0:256+4096:512` for 256 tokens, and 512 in sequences of 4096 tokens and more; it begins with 0. All are
    in tokens, whole pages of `page_size`, forced pages included.
    """

    ratio: float = 0.0
    schedule: tuple[str, ...] = ()
    least: int = 0
    page_size: int = PAGE_SIZE
    sink_pages: int = 1
    recent_pages: int = 1
    dense_layers: tuple[int, ...] = (0,)
    summary: str = "mean"

    kind: ClassVar[str] = "growing_block_topk"
    place: ClassVar[int] = 7
    ops: ClassVar[tuple[str, ...]] = ("score_pages", "paged_decode")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.page_size < 1 or self.sink_pages < 0 or self.recent_pages < 1:
            raise PolicyError(
                f"{self.kind}: page_size and recent_pages must be at least 1 and sink_pages at least 0, got "
                f"{self.page_size}, {self.recent_pages} and {self.sink_pages}"
            )
        if bool(self.ratio) == bool(self.schedule) or not 0 <= self.ratio <= 1:
            raise PolicyError(f"{self.kind}: give ratio= (above 0, at most 1) or schedule= (as in 0:256+4096:512)")
        if self.schedule and self.least:
            raise PolicyError(f"{self.kind}: least= is the floor of a ratio; a schedule has its own")
        try:
            summary_kind(self.summary)
        except ValueError as error:
            raise PolicyError(f"{self.kind}: {error}") from error
        fewest = (self.sink_pages + self.recent_pages + 1) * self.page_size
        for budget in (self.least or fewest, *(budget for _, budget in self.steps)):
            if budget % self.page_size or budget < fewest:
                raise PolicyError(
                    f"{self.kind}: a budget of {budget} tokens is not of whole pages of {self.page_size}, or leaves "
                    f"none to choose beside {self.sink_pages} sink and {self.recent_pages} recent ones; the least is "
                    f"{fewest}"
                )

    @property
    def steps(self) -> list[tuple[int, int]]:
        """The schedule as (length, budget), in tokens. Raises PolicyError for what is none."""
        try:
            pairs = [(int(begin), int(budget)) for begin, budget in (part.split(":") for part in self.schedule)]
        except ValueError as error:
            raise PolicyError(f"{self.kind}: schedule is length:budget+length:budget…, as in 0:256+4096:512") from error
        begins = [begin for begin, _ in pairs]
        if pairs and (begins[0] != 0 or begins != sorted(set(begins))):
            raise PolicyError(f"{self.kind}: the lengths of a schedule begin with 0 and grow, got {begins}")
        return pairs

    @property
    def nominal_budget(self) -> int:
        """What tables show: a schedule's last budget; 0 for a ratio, which has none."""
        return self.steps[-1][1] if self.schedule else 0

    @property
    def cache_summary(self) -> str:
        """Its `summary`."""
        return self.summary

    @property
    def summary_vectors(self) -> int:
        """By the kind of summary."""
        return summary_kind(self.summary).vectors

    def pages_at(self, lengths: np.ndarray) -> np.ndarray:
        """Pages that a step at each of `lengths` attends to, of those there are."""
        used = np.ceil(lengths / self.page_size)
        if self.ratio:
            fewest = max(self.least // self.page_size, self.sink_pages + self.recent_pages + 1)
            share = np.ceil(np.round(self.ratio * used, 6))  # 0.1 * 30 is 3.0000000000000004
            return np.minimum(np.maximum(share, fewest), used)
        begins, budgets = np.array(self.steps).T
        return np.minimum(budgets[np.searchsorted(begins, lengths, side="right") - 1] / self.page_size, used)

    def choose(self, step: DecodeStep) -> Pages:
        """The forced pages and the best others, as many as the length allows: looked up, so that prices are exact."""
        import jax.numpy as jnp

        table = self.pages_at(np.arange(step.max_pages * step.page_size + 1.0)).astype(np.int32)
        allowed = jnp.asarray(table)[step.lengths]
        scores = page_logits(step, allowed < step.pages_in_use)
        order = rank_pages(
            step, scores, most=int(table.max()), sink_pages=self.sink_pages, recent_pages=self.recent_pages
        )
        return keep_ranked(
            step, order, jnp.arange(order.shape[2], dtype=jnp.int32)[None, None] < allowed[:, None, None]
        )

    def step_counts(self, lengths: np.ndarray) -> StepCounts:
        """The pages of each length; every full page is searched where some are left out."""
        used, pages = np.ceil(lengths / self.page_size), self.pages_at(lengths)
        counts = page_counts(
            lengths, pages, page_size=self.page_size, sink_pages=self.sink_pages, recent_pages=self.recent_pages
        )
        scores = np.where(pages < used, np.floor(lengths / self.page_size), 0)
        return counts._replace(scores=scores, vectors=scores * self.summary_vectors)
