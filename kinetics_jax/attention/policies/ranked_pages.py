"""What policies share that keep another number of pages in every step, row or KV head: pages by their estimated mass.

All of it is plain jnp; attention to the pages that are kept runs on the kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from kinetics_jax.attention.policies.counts import StepCounts

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

    from kinetics_jax.attention.decode_step import DecodeStep, Pages

    PageScores = Float[Array, "batch kv_heads max_pages"]
    Ranking = Int[Array, "batch kv_heads most"]  # logical pages, best first; max_pages for none


def page_logits(step: DecodeStep, searched: Bool[Array, " batch"]) -> PageScores:
    """Each full page's score by its summary, in the scale of logits, float32; counted as read in rows `searched`.

    A kind of summary that is scored by a plain dot product is so given the scaled query.
    """
    import jax.numpy as jnp
    import kinetics_kernels as kernels

    summaries = step.own_summaries()
    query = step.mean_query * np.float32(step.queries.shape[-1] ** -0.5)
    scores = kernels.score_pages(query, summaries, step.page_table, summary=step.summary, scale=1.0)
    full = jnp.where(searched, step.lengths // step.page_size, 0)[:, None]
    step.count(vectors=full * step.policy.summary_vectors)
    return scores


def log_masses(step: DecodeStep, searched: Bool[Array, " batch"]) -> PageScores:
    """The logarithm of each page's estimated mass, Σ exp(logit) over its tokens for the mean query. Float32.

    Of a full page by its summary, of the current one by its keys; -inf beyond it.
    """
    import jax
    import jax.numpy as jnp

    size, place = step.page_size, jnp.maximum(step.lengths - 1, 0)
    current = (place // size)[:, None]
    page = jnp.take_along_axis(step.page_table, current, axis=1)[:, 0]
    keys = step.k_pages.at[:, page].get(mode="clip").astype(jnp.float32)  # [kv_heads, batch, size, head_dim]
    query = step.mean_query * np.float32(keys.shape[-1] ** -0.5)
    logits = jnp.einsum("bhd,hbtd->bht", query, keys, precision=jax.lax.Precision.HIGHEST)
    held = (jnp.arange(size, dtype=jnp.int32)[None] <= (place % size)[:, None])[:, None]
    own = jax.nn.logsumexp(jnp.where(held, logits, -jnp.inf), axis=-1, keepdims=True)
    logical = jnp.arange(step.max_pages, dtype=jnp.int32)[None]
    full = page_logits(step, searched) + np.float32(np.log(size))
    return jnp.where((logical == current)[:, None], own, jnp.where((logical < current)[:, None], full, -jnp.inf))


def rank_pages(step: DecodeStep, scores: PageScores, *, most: int, sink_pages: int, recent_pages: int) -> Ranking:
    """The `most` best pages in use of each row and KV head, best first.

    The first `sink_pages` and the last `recent_pages` come before all others, which follow by score, ties to the lower
    page, NaN and +inf above every other score.
    """
    import jax
    import jax.numpy as jnp
    from kinetics_kernels.numerics import ranked

    logical, count = jnp.arange(step.max_pages, dtype=jnp.int32)[None, None], step.pages_in_use[:, None, None]
    forced = (logical < sink_pages) | (logical >= count - recent_pages)
    scores = jnp.where(logical < count, jnp.where(forced, jnp.inf, ranked(scores)), -jnp.inf)
    order = jax.lax.top_k(scores, min(most, step.max_pages))[1]
    return jnp.where(order < count, order, step.max_pages)


def keep_ranked(step: DecodeStep, order: Ranking, kept: Bool[Array, "batch kv_heads most"]) -> Pages:
    """The ranked pages where `kept` is true."""
    import jax.numpy as jnp

    return step.keep_pages(page_set(step, jnp.where(kept, order, step.max_pages)), at_most=order.shape[2])


def page_set(step: DecodeStep, pages: Ranking) -> Bool[Array, "batch kv_heads max_pages"]:
    """True for the logical pages named; max_pages and above name none."""
    import jax.numpy as jnp

    row, head = (jnp.arange(n, dtype=jnp.int32) for n in (step.batch, step.kv_heads))
    none = jnp.zeros((step.batch, step.kv_heads, step.max_pages), bool)
    return none.at[row[:, None, None], head[None, :, None], pages].set(True, mode="drop")


def page_counts(
    lengths: np.ndarray, pages: np.ndarray | float, *, page_size: int, sink_pages: int, recent_pages: int
) -> StepCounts:
    """Tokens that a step at each of `lengths` attends to in `pages` pages, forced and chosen; nothing searched."""
    used = np.ceil(lengths / page_size)
    last = lengths - (used - 1) * page_size

    def tokens(count: np.ndarray | float) -> np.ndarray:
        return (np.minimum(used, count) - 1) * page_size + last

    forced = tokens(float(sink_pages + recent_pages))
    return StepCounts(forced, tokens(pages) - forced)
