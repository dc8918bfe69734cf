"""Block top-k with sampled pages that stand for the rest."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, ClassVar

from kinetics_jax.attention.policies.base import PolicyError
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.random_blocks import random_scores
from kinetics_jax.attention.policies.ranked_pages import keep_ranked, log_masses, page_set, rank_pages

if TYPE_CHECKING:
    import jax
    from jaxtyping import Array, Float, Int

    from kinetics_jax.attention.decode_step import DecodeStep, Pages


@dataclasses.dataclass(frozen=True)
class UnbiasedBlockTopK(BlockTopK):
    """Of `pages` pages `samples` are drawn, weighted by what they stand for; the others are those of block top-k.

    The pages left over are drawn without replacement by priority sampling (Duffield, Lund, Thorup, J. ACM 54, 2007):
    the `samples` largest w/u, u uniform and w the page's estimated mass. A drawn page counts max(1, t/w)-fold, t being
    the largest w/u that was not drawn. The expectations of numerator and denominator of the softmax are then those of
    dense attention, whatever w is (the idea of arXiv 2605.24168); their ratio's bias falls with the number of samples.
    """

    samples: int = 1
    summary: str = "mean_std"

    kind: ClassVar[str] = "unbiased_block_topk"
    place: ClassVar[int] = 9
    ops: ClassVar[tuple[str, ...]] = ("score_pages", "paged_decode", "merge_partials")
    spelled: ClassVar[tuple[str, ...]] = ("budget", "page_size", "samples")
    needs_keys: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        most = self.pages - self.sink_pages - self.recent_pages
        if not 1 <= self.samples <= most:
            raise PolicyError(
                f"{self.kind}: samples must be at least 1 and at most {most}, the pages that are not forced, got "
                f"{self.samples}"
            )

    def choose(self, step: DecodeStep) -> Pages:
        """All pages that it reads, the drawn ones too, which attention weights."""
        import jax.numpy as jnp

        exact, drawn, _ = self.ranked(step)
        return step.keep_pages(page_set(step, jnp.concatenate([exact, drawn], axis=-1)), at_most=self.pages)

    def attend(self, step: DecodeStep) -> jax.Array:
        """The estimate."""
        return self.estimate(step)[0].astype(step.queries.dtype)

    def estimate(self, step: DecodeStep) -> tuple[Float[Array, "batch heads head_dim"], Float[Array, "batch heads"]]:
        """Output and log-sum-exp, float32: exp(lse), and exp(lse) times the output, have the expectations of dense
        attention.

        Each drawn page is attended alone and merged with its weight.
        """
        import jax.numpy as jnp
        import kinetics_kernels as kernels

        exact, drawn, weights = self.ranked(step)
        out, lse = step.paged_decode(*keep_ranked(step, exact, jnp.full(exact.shape, True)))
        outs, lses = step.paged_decode_each(*keep_ranked(step, drawn, drawn < step.max_pages))
        heads, group = step.queries.shape[1], step.group_queries.shape[1] // step.kv_heads
        of_head = (step.first_in_group + jnp.arange(heads)) // group
        in_order = jnp.take_along_axis(weights, jnp.argsort(drawn, axis=-1), axis=2)  # as the table has the pages
        lses = lses + jnp.moveaxis(in_order, 2, 0)[..., of_head]
        return kernels.merge_partials(
            jnp.concatenate([out[None], outs]).astype(jnp.float32), jnp.concatenate([lse[None], lses])
        )

    def ranked(
        self, step: DecodeStep
    ) -> tuple[
        Int[Array, "batch kv_heads exact"], Int[Array, "batch kv_heads drawn"], Float[Array, "batch kv_heads drawn"]
    ]:
        """The pages attended to as they are, those drawn, logical and max_pages for none, and the drawn ones' log
        weights.
        """
        import jax
        import jax.numpy as jnp
        from kinetics_kernels.numerics import ranked

        assert step.keys is not None
        masses = log_masses(step, step.lengths > self.budget)
        most = self.pages - self.samples
        exact = rank_pages(step, masses, most=most, sink_pages=self.sink_pages, recent_pages=self.recent_pages)
        logical = jnp.arange(step.max_pages, dtype=jnp.int32)[None, None]
        rest = (logical < step.pages_in_use[:, None, None]) & ~page_set(step, exact)
        draws = random_scores(step.keys, step.layer, step.kv_heads, step.max_pages, step.first_kv_head)
        priorities = jnp.where(rest, ranked(masses - jnp.log(draws)), -jnp.inf)
        best, drawn = jax.lax.top_k(priorities, min(self.samples + 1, step.max_pages))
        threshold = best[..., self.samples :] if best.shape[-1] > self.samples else jnp.float32(-jnp.inf)
        best, drawn = best[..., : self.samples], drawn[..., : self.samples]
        there = best > -jnp.inf
        weights = jnp.maximum(threshold - jnp.where(there, jnp.take_along_axis(masses, drawn, axis=2), 0), 0)
        return exact, jnp.where(there, drawn, step.max_pages), weights
