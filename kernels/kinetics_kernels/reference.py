"""The specification of every op in plain jnp: the path of every device without a kernel, and the kernels' oracle.

Shared meanings. A page is `page_size` consecutive tokens, aligned from position 0. Pools are head-major,
`[kv_heads, num_pages, page_size, head_dim]`. `page_table [batch, max_pages]` holds physical page ids in logical order,
-1 where unused. `lengths [batch]` counts a sequence's tokens after the step's append; 0 marks an idle row, which reads
and writes nothing. Nothing that a table does not name, or that lies beyond a length, is ever let into a result: such
memory may hold NaN. `*vectors` in a shape of summaries is no axis for a kind of one vector, such as `mean`, else an
axis of its vectors. What a kind is made of and how it is scored stands in its own file of `summaries/`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from kinetics_kernels.grouped import grouped_matmul as grouped_matmul
from kinetics_kernels.masked import litesys_mask as litesys_mask
from kinetics_kernels.numerics import ranked, softmax_end, varying_as, whole
from kinetics_kernels.summaries.kind import SummaryKind
from kinetics_kernels.summaries.registry import summary_kind

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Int, Int32

# Tokens attended per pass of the decode loop. Every table is padded to whole passes, so that a short table and a long
# one do the same arithmetic in the same order on the tokens they share: selection that keeps everything equals dense
# attention to the bit.
PASS_TOKENS = 128

# Products of float32 in float32: by default a TPU rounds them to bfloat16 and an Ampere GPU to TF32.
EXACT = jax.lax.Precision.HIGHEST


def page_summary(
    pages: Float[Array, "*pages page_size head_dim"], summary: str = "mean"
) -> Float[Array, "... head_dim"]:
    """Summary of whole pages of keys, accumulated in float32 and rounded once.

    Returns the pages' dtype: `[*pages, head_dim]` for a kind of one vector, else `[*pages, vectors, head_dim]`. Raises
    ValueError for an unknown kind, and for one whose `make` returns other shapes.
    """
    kind = check_summary("page_summary", summary)
    made = kind.make(pages.astype(jnp.float32))
    made, wanted = made if isinstance(made, tuple | list) else (made,), (*pages.shape[:-2], pages.shape[-1])
    shapes = [jnp.shape(vector) for vector in made]
    if shapes != [wanted] * kind.vectors:
        raise ValueError(f"summary {kind.name!r}: make returned arrays of {shapes}, not {kind.vectors} of {wanted}")
    return (made[0] if kind.vectors == 1 else jnp.stack(made, axis=-2)).astype(pages.dtype)


def check_summary(op: str, summary: str, summaries: jax.Array | None = None) -> SummaryKind:
    """The kind. Raises ValueError if it is unknown, or if `summaries` have the shape of another kind."""
    try:
        kind = summary_kind(summary)
    except ValueError as error:
        raise ValueError(f"{op}: {error}") from None
    if summaries is not None and summaries.shape[2:-1] != kind.axis:
        raise ValueError(
            f"{op}: summaries of shape {summaries.shape} are not of kind {summary}, which is "
            f"{kind.vectors} x head_dim for each KV head and page"
        )
    return kind


def append_kv(
    k_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    v_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    summaries: Float[Array, "kv_heads num_pages *vectors head_dim"] | None,
    k_new: Float[Array, "batch kv_heads head_dim"],
    v_new: Float[Array, "batch kv_heads head_dim"],
    page_table: Int[Array, "batch max_pages"],
    lengths: Int[Array, " batch"],
    *,
    summary: str = "mean",
) -> tuple[
    Float[Array, "kv_heads num_pages page_size head_dim"],
    Float[Array, "kv_heads num_pages page_size head_dim"],
    Float[Array, "kv_heads num_pages *vectors head_dim"] | None,
]:
    """Writes one token per sequence at position `lengths - 1`; a page that this fills gets its summary.

    `lengths` count the new token; `k_new` and `v_new` are cast to the pools' dtypes. `summary` names the kind of the
    summaries, see `page_summary`; they are None if no policy needs them. Returns the three pools; donate them to update
    in place. Raises ValueError for an unknown kind, or summaries of another kind's shape.
    """
    check_summary("append_kv", summary, summaries)
    k_pages, v_pages = jnp.asarray(k_pages), jnp.asarray(v_pages)
    page_table, lengths = whole(page_table), whole(lengths)
    num_pages, page_size = k_pages.shape[1:3]
    position = jnp.maximum(lengths - 1, 0)
    page = jnp.take_along_axis(page_table, (position // page_size)[:, None], axis=1)[:, 0]
    page = jnp.where((lengths > 0) & (page >= 0), page, num_pages)  # out of range: the write is dropped
    slot = position % page_size
    # Rows of head_dim alone: a wider window makes a TPU copy the pools.
    heads, page, slot = jnp.arange(k_pages.shape[0], dtype=jnp.int32)[:, None], page[None], slot[None]
    k_pages = k_pages.at[heads, page, slot].set(jnp.swapaxes(k_new, 0, 1).astype(k_pages.dtype), mode="drop")
    v_pages = v_pages.at[heads, page, slot].set(jnp.swapaxes(v_new, 0, 1).astype(v_pages.dtype), mode="drop")
    if summaries is not None:
        new = page_summary(k_pages.at[:, page[0]].get(mode="clip"), summary)
        closed = jnp.where(lengths % page_size == 0, page[0], num_pages)
        summaries = set_summaries(summaries, closed, new, summary)
    return k_pages, v_pages, summaries


def set_summaries(
    summaries: Float[Array, "kv_heads num_pages *vectors head_dim"],
    pages: Int[Array, " count"],
    new: Float[Array, "kv_heads count *vectors head_dim"],
    summary: str,
) -> Float[Array, "kv_heads num_pages *vectors head_dim"]:
    """Returns the pool with the summaries of `pages` replaced by `new`; ids from num_pages up are left out.

    `summary` names the kind of both. Raises ValueError for summaries of another kind's shape.
    """
    kind = check_summary("set_summaries", summary, summaries)
    summaries = jnp.asarray(summaries)
    heads, pages = jnp.arange(summaries.shape[0], dtype=jnp.int32)[:, None], pages[None]
    vectors = jnp.arange(kind.vectors, dtype=jnp.int32)[None, None]
    where = (heads, pages) if kind.vectors == 1 else (heads[..., None], pages[..., None], vectors)
    return summaries.at[where].set(new.astype(summaries.dtype), mode="drop")  # rows of head_dim, as above


def score_pages(
    q: Float[Array, "batch q_heads head_dim"],
    summaries: Float[Array, "kv_heads num_pages *vectors head_dim"],
    page_table: Int[Array, "batch max_pages"],
    *,
    summary: str = "mean",
    scale: float | None = None,
) -> Float32[Array, "batch kv_heads max_pages"]:
    """The scores by which `select_pages` chooses, of every page that the table names; of others, and of pages that are
    not full, what is stored there says nothing. Raises ValueError for an unknown kind of summary, summaries of another
    kind's shape, or a kind whose scores are not one a page.
    """
    kind = check_summary("score_pages", summary, summaries)
    batch, q_heads, head_dim = q.shape
    kv_heads = summaries.shape[0]
    query = jnp.mean(q.astype(jnp.float32).reshape(batch, kv_heads, q_heads // kv_heads, head_dim), axis=2)
    stored = (
        jnp.asarray(summaries).at[:, whole(page_table)].get(mode="clip").astype(jnp.float32)
    )  # [kv_heads, batch, max_pages, *vectors, head_dim]
    vectors = (stored,) if kind.vectors == 1 else tuple(stored[..., which, :] for which in range(kind.vectors))

    def dot(vector: jax.Array, of_pages: jax.Array) -> jax.Array:
        return jnp.einsum("bhd,hbpd->bhp", vector, of_pages, precision=EXACT)

    scores = kind.score(query, vectors, head_dim**-0.5 if scale is None else scale, dot)
    wanted = (batch, kv_heads, page_table.shape[1])
    if jnp.shape(scores) != wanted:
        raise ValueError(f"summary {kind.name!r}: score returned an array of {jnp.shape(scores)}, not {wanted}")
    return scores.astype(jnp.float32)


def select_pages(
    q: Float[Array, "batch q_heads head_dim"],
    summaries: Float[Array, "kv_heads num_pages *vectors head_dim"],
    page_table: Int[Array, "batch max_pages"],
    lengths: Int[Array, " batch"],
    *,
    page_size: int,
    pages: int,
    sink_pages: int = 1,
    recent_pages: int = 1,
    summary: str = "mean",
    scale: float | None = None,
) -> tuple[Int32[Array, "batch kv_heads pages"], Int32[Array, "batch kv_heads"]]:
    """Exact block top-k: the pages each KV head attends to this step (paper, section 4.1).

    `choose_pages` by the score that the summary's kind gives each page for q̄, the mean query of the group, in float32;
    `scale` is that of the logits, by default head_dim ** -0.5. Returns and raises what `choose_pages` does, ValueError
    also what `score_pages` does.
    """
    check_summary("select_pages", summary, summaries)
    scores = score_pages(q, summaries, page_table, summary=summary, scale=scale)
    return choose_pages(
        scores, page_table, lengths, page_size=page_size, pages=pages, sink_pages=sink_pages, recent_pages=recent_pages
    )


def choose_pages(
    scores: Float32[Array, "batch kv_heads max_pages"],
    page_table: Int[Array, "batch max_pages"],
    lengths: Int[Array, " batch"],
    *,
    page_size: int,
    pages: int,
    sink_pages: int = 1,
    recent_pages: int = 1,
) -> tuple[Int32[Array, "batch kv_heads pages"], Int32[Array, "batch kv_heads"]]:
    """The forced pages and the best of the rest: `pages` of them per sequence and KV head.

    `scores` are by logical page. The first `sink_pages` and the last `recent_pages` pages are always kept; the largest
    scores of the rest fill up to `pages`, ties to the lower page; NaN and +inf rank alike, above every other score
    (`numerics.ranked`). Returns `selected [batch, kv_heads, pages]`, physical
    ids in ascending logical order, the current page last, padded with -1, and `covered [batch, kv_heads]`, the tokens
    they hold. Raises ValueError if nothing is left to choose.
    """
    check_choice(pages, sink_pages, recent_pages)
    batch, kv_heads, max_pages = scores.shape
    page_table, lengths = whole(page_table), whole(lengths)
    logical = jnp.arange(max_pages, dtype=jnp.int32)[None]
    count = -(-lengths // page_size)[:, None]  # pages in use; the last one is the current page
    forced = (logical < sink_pages) | (logical >= count - recent_pages)
    scores = jnp.where(forced[:, None], jnp.inf, ranked(scores))
    scores = jnp.where((logical < count)[:, None], scores, -jnp.inf)
    _, order = jax.lax.top_k(scores, min(pages, max_pages))  # stable: ties go to the lower page, and to one in use
    order = jnp.sort(jnp.where(order < count[..., None], order, max_pages), axis=-1)
    order = jnp.pad(order, ((0, 0), (0, 0), (0, pages - order.shape[-1])), constant_values=max_pages)

    table = jnp.broadcast_to(page_table[:, None], (batch, kv_heads, max_pages))
    selected = jnp.take_along_axis(table, jnp.minimum(order, max_pages - 1), axis=2)
    selected = jnp.where(order < max_pages, selected, -1)
    missing = (count - jnp.minimum(count, pages)) * page_size
    covered = jnp.broadcast_to(lengths[:, None] - missing, (batch, kv_heads))
    return selected.astype(jnp.int32), covered.astype(jnp.int32)


def check_choice(pages: int, sink_pages: int, recent_pages: int) -> None:
    """Raises ValueError if the forced pages leave `select_pages` none to choose."""
    if recent_pages < 1 or pages < sink_pages + recent_pages + 1:
        raise ValueError(
            f"select_pages: {pages} pages with {sink_pages} sink and {recent_pages} recent leave no choice"
        )


def paged_decode(
    q: Float[Array, "batch q_heads head_dim"],
    k_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    v_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    page_table: Int[Array, "batch max_pages"] | Int[Array, "batch kv_heads pages"],
    lengths: Int[Array, " batch"] | Int[Array, "batch kv_heads"],
    *,
    scale: float | None = None,
) -> tuple[Float[Array, "batch q_heads head_dim"], Float32[Array, "batch q_heads"]]:
    """Attention of one query token per sequence over the tokens that a page table names.

    Either `page_table [batch, max_pages]` with `lengths [batch]`, or one table per KV head, `[batch, kv_heads, pages]`
    with `[batch, kv_heads]` covered tokens: the first `lengths` tokens of the named pages, laid end to end, are
    attended. `scale` defaults to head_dim ** -0.5. Returns `out [batch, q_heads, head_dim]` in q's dtype and the
    log-sum-exp of the scaled scores `[batch, q_heads]`; an empty row gives 0 and -inf. Temporaries hold one pass of
    tokens, never the whole context.
    """
    k_pages, v_pages = jnp.asarray(k_pages), jnp.asarray(v_pages)
    page_table, lengths = whole(page_table), whole(lengths)
    batch, q_heads, head_dim = q.shape
    kv_heads, _, page_size, _ = k_pages.shape
    group = q_heads // kv_heads
    if page_table.ndim == 2:
        page_table = jnp.broadcast_to(page_table[:, None], (batch, kv_heads, page_table.shape[1]))
        lengths = jnp.broadcast_to(lengths[:, None], (batch, kv_heads))
    per_pass = max(1, PASS_TOKENS // page_size)
    padding = max(-(-page_table.shape[2] // per_pass), 1) * per_pass - page_table.shape[2]
    page_table = jnp.pad(page_table, ((0, 0), (0, 0), (0, padding)), constant_values=-1)
    tokens = per_pass * page_size
    first_token = jnp.arange(page_table.shape[2], dtype=jnp.int32)[None, None] * page_size
    held = jnp.any((page_table >= 0) & (first_token < lengths[..., None]), axis=-1)[..., None]
    query = q.reshape(batch, kv_heads, group, head_dim).astype(jnp.float32)
    query = query * (head_dim**-0.5 if scale is None else scale)
    heads = jnp.arange(kv_heads, dtype=jnp.int32)[None, :, None]
    place = jnp.arange(tokens, dtype=jnp.int32)[None, None]

    def one_pass(index, carry):
        top, total, out = carry
        ids = jax.lax.dynamic_slice_in_dim(page_table, index * per_pass, per_pass, axis=2)
        inside = index * tokens + place < lengths[:, :, None]
        inside &= jnp.repeat(ids >= 0, page_size, axis=2)
        keys = k_pages.at[heads, ids].get(mode="clip").reshape(batch, kv_heads, tokens, head_dim)
        values = v_pages.at[heads, ids].get(mode="clip").reshape(batch, kv_heads, tokens, head_dim)
        values = jnp.where(inside[..., None], values, 0).astype(jnp.float32)
        scores = jnp.einsum("bhgd,bhtd->bhgt", query, keys.astype(jnp.float32), precision=EXACT)
        scores = jnp.where(inside[:, :, None], scores, -jnp.inf)
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1))
        anchor = jnp.where(new_top == -jnp.inf, 0.0, new_top)  # a row without a token yet: exp(-inf - 0) = 0, no NaN
        weights = jnp.exp(scores - anchor[..., None])
        shrink = jnp.exp(top - anchor)
        total = total * shrink + jnp.sum(weights, axis=-1)
        out = out * shrink[..., None] + jnp.einsum("bhgt,bhtd->bhgd", weights, values, precision=EXACT)
        return new_top, total, out

    rows = (batch, kv_heads, group)
    float32 = functools.partial(jnp.full, dtype=jnp.float32)
    start = (float32(rows, -jnp.inf), float32(rows, 0), float32((*rows, head_dim), 0))
    start = varying_as(start, q, k_pages, v_pages, page_table, lengths)
    passes = jnp.minimum(-(-jnp.max(lengths, initial=0) // tokens), page_table.shape[2] // per_pass)
    top, total, out = jax.lax.fori_loop(0, passes, one_pass, start)
    out, lse = softmax_end(out, top, total, held)
    return out.reshape(batch, q_heads, head_dim).astype(q.dtype), lse.reshape(batch, q_heads)


def block_topk_decode(
    q: Float[Array, "batch q_heads head_dim"],
    k_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    v_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    summaries: Float[Array, "kv_heads num_pages *vectors head_dim"],
    page_table: Int[Array, "batch max_pages"],
    lengths: Int[Array, " batch"],
    *,
    pages: int,
    sink_pages: int = 1,
    recent_pages: int = 1,
    summary: str = "mean",
    scale: float | None = None,
) -> tuple[Float[Array, "batch q_heads head_dim"], Float32[Array, "batch q_heads"]]:
    """`select_pages` and `paged_decode` over its choice: at most `pages * page_size` tokens per KV head and step.

    Shapes and errors as in those two; `page_size` is the pools'. Returns `(out, lse)`.
    """
    selected, covered = select_pages(
        q,
        summaries,
        page_table,
        lengths,
        page_size=k_pages.shape[2],
        pages=pages,
        sink_pages=sink_pages,
        recent_pages=recent_pages,
        summary=summary,
        scale=scale,
    )
    return paged_decode(q, k_pages, v_pages, selected, covered, scale=scale)


def merge_partials(
    outs: Float[Array, "parts batch q_heads head_dim"], lses: Float32[Array, "parts batch q_heads"]
) -> tuple[Float[Array, "batch q_heads head_dim"], Float32[Array, "batch q_heads"]]:
    """Merges attention over disjoint sets of tokens by their log-sum-exps.

    Returns `(out, lse)` of the union. A part that saw no token (-inf) counts for nothing, whatever its `outs` hold; one
    that is NaN makes the union NaN. The sum is taken in float32, `out` is returned in `outs`' dtype.
    """
    outs, lses = jnp.asarray(outs), jnp.asarray(lses).astype(jnp.float32)
    held = lses != -jnp.inf
    top = jnp.max(lses, axis=0)
    anchor = jnp.where(top == -jnp.inf, 0.0, top)
    weights = jnp.exp(lses - anchor[None])
    total = jnp.sum(weights, axis=0)
    divisor = jnp.where(jnp.any(held, axis=0), total, 1.0)
    parts = jnp.where(held[..., None], outs, 0).astype(jnp.float32)
    out = jnp.einsum("pbhd,pbh->bhd", parts, weights / divisor[None], precision=EXACT)
    lse = jnp.where(jnp.any(held, axis=0), anchor + jnp.log(divisor), -jnp.inf)
    return out.astype(outs.dtype), lse
