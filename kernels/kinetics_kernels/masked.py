"""Attention under a mask over tokens: what no page table can express, made for checks and not for speed.

`token_logits` computes every logit of a step, a rule turns them into a mask, `masked_decode` attends under it. Pools,
tables and lengths are those of reference.py. Temporaries hold one pass of tokens beside the logits and the mask.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from kinetics_kernels.numerics import check_heads, ranked, softmax_end, varying_as, whole, without_gradient

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Float32, Int

PASS_TOKENS = 512
EXACT = jax.lax.Precision.HIGHEST


def token_logits(
    q: Float[Array, "batch q_heads head_dim"],
    k_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    page_table: Int[Array, "batch max_pages"],
    lengths: Int[Array, " batch"],
    *,
    scale: float | None = None,
) -> Float32[Array, "batch q_heads max_pages*page_size"]:
    """The scaled logit of every token; -inf beyond a length, or where the table names no page.

    `scale` defaults to head_dim ** -0.5.
    """
    q, k_pages = without_gradient("token_logits", (jnp.asarray(q), jnp.asarray(k_pages)))
    page_table, lengths = whole(page_table), whole(lengths)
    batch, q_heads, head_dim = q.shape
    kv_heads, _, page_size, _ = k_pages.shape
    check_heads("token_logits", q_heads, kv_heads)
    table, tokens = _whole_passes(page_table, page_size)
    query = q.reshape(batch, kv_heads, q_heads // kv_heads, head_dim).astype(jnp.float32)
    query = query * (head_dim**-0.5 if scale is None else scale)

    def one_pass(index: jax.Array, logits: jax.Array) -> jax.Array:
        keys, present = _one_pass(k_pages, table, lengths, index, tokens)
        scores = jnp.einsum("bhgd,hbtd->bhgt", query, keys, precision=EXACT).reshape(batch, q_heads, tokens)
        scores = jnp.where(present[:, None], scores, -jnp.inf)
        return jax.lax.dynamic_update_slice_in_dim(logits, scores, index * tokens, axis=2)

    logits = jnp.full((batch, q_heads, table.shape[1] * page_size), -jnp.inf, jnp.float32)
    logits = varying_as(logits, q, k_pages, table, lengths)
    logits = jax.lax.fori_loop(0, _passes(table, lengths, page_size, tokens), one_pass, logits)
    return logits[:, :, : page_table.shape[1] * page_size]


def masked_decode(
    logits: Float32[Array, "batch q_heads time"],
    mask: Bool[Array, "batch q_heads time"],
    v_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    page_table: Int[Array, "batch max_pages"],
    lengths: Int[Array, " batch"],
) -> tuple[Float32[Array, "batch q_heads head_dim"], Float32[Array, "batch q_heads"]]:
    """Attention of one query token per sequence over the tokens that a mask names.

    `logits` as `token_logits` returns them; `mask` is true for a token that is attended. Returns `out [batch, q_heads,
    head_dim]` and the log-sum-exp `[batch, q_heads]`; a row that attends to nothing gives 0 and -inf. A token that no
    query head of a GQA group attends to may hold NaN.
    """
    logits, v_pages = without_gradient("masked_decode", (jnp.asarray(logits), jnp.asarray(v_pages)))
    page_table, lengths = whole(page_table), whole(lengths)
    batch, q_heads, time = logits.shape
    kv_heads, _, page_size, head_dim = v_pages.shape
    check_heads("masked_decode", q_heads, kv_heads)
    rows = (batch, kv_heads, q_heads // kv_heads)
    table, tokens = _whole_passes(page_table, page_size)
    padding = ((0, 0), (0, 0), (0, table.shape[1] * page_size - time))
    position = jnp.arange(table.shape[1] * page_size, dtype=jnp.int32)[None]
    present = (position < lengths[:, None]) & jnp.repeat(table >= 0, page_size, axis=1)
    attended = jnp.pad(jnp.broadcast_to(mask, logits.shape), padding) & present[:, None]
    logits = jnp.where(attended, jnp.pad(logits.astype(jnp.float32), padding), -jnp.inf)
    top = jnp.max(logits, axis=-1, initial=-jnp.inf)
    anchor = jnp.where(top == -jnp.inf, 0.0, top)  # a row without a token: exp(-inf - 0) = 0, no NaN
    total = jnp.sum(jnp.exp(logits - anchor[..., None]), axis=-1)
    read = jnp.any(attended.reshape(*rows, position.shape[1]), axis=2)  # [batch, kv_heads, time]

    def one_pass(index: jax.Array, out: jax.Array) -> jax.Array:
        values, _ = _one_pass(v_pages, table, lengths, index, tokens)
        part, of_group = (jax.lax.dynamic_slice_in_dim(x, index * tokens, tokens, axis=2) for x in (logits, read))
        weights = jnp.exp(part - anchor[..., None]).reshape(*rows, tokens)
        values = jnp.where(of_group.swapaxes(0, 1)[..., None], values, 0)
        return out + jnp.einsum("bhgt,hbtd->bhgd", weights, values, precision=EXACT)

    out = varying_as(jnp.zeros((*rows, head_dim), jnp.float32), logits, mask, v_pages, table, lengths)
    out = jax.lax.fori_loop(0, _passes(table, lengths, page_size, tokens), one_pass, out)
    return softmax_end(out.reshape(batch, q_heads, head_dim), anchor, total, jnp.any(attended, axis=-1))


def token_topk_mask(
    logits: Float32[Array, "batch q_heads time"], lengths: Int[Array, " batch"], *, num_kv_heads: int, tokens: int
) -> Bool[Array, "batch q_heads time"]:
    """The oracle: the current token and the largest logits, `tokens` of them in all, per sequence and KV head.

    The logits are averaged over the group; ties go to the lower position; NaN ranks as `numerics.ranked` says. True
    marks a token that is attended.
    """
    check_heads("token_topk_mask", logits.shape[1], num_kv_heads)
    lengths, position = whole(lengths)[:, None, None], jnp.arange(logits.shape[2], dtype=jnp.int32)[None, None]
    mean = ranked(_group_mean(logits, lengths, num_kv_heads))
    scores = jnp.where(position == lengths - 1, jnp.inf, jnp.where(position < lengths, mean, -jnp.inf))
    return jnp.repeat(_best(scores, tokens), logits.shape[1] // num_kv_heads, axis=1)


def sliding_window_mask(
    lengths: Int[Array, " batch"], time: int, *, tokens: int, sink: int
) -> Bool[Array, "batch time"]:
    """True for the first `sink` and the last `tokens - sink` tokens of each sequence."""
    lengths, position = whole(lengths)[:, None], jnp.arange(time, dtype=jnp.int32)[None]
    return ((position < sink) | (position >= lengths - (tokens - sink))) & (position < lengths)


def litesys_mask(
    logits: Float32[Array, "batch q_heads time"],
    lengths: Int[Array, " batch"],
    *,
    num_kv_heads: int,
    kind: str = "block_topk",
    pages: int = 0,
    page_size: int = 0,
    tokens: int = 0,
    local: int = 0,
    sink: int = 4,
) -> Bool[Array, "batch q_heads time"]:
    """What a decode step attends to by the rules of the paper's own code, LiteSys (Infini-AI-Lab/Kinetics).

    The logits are averaged over the group. True marks a token that is attended; from the length on all is false. A
    sequence attends to all of itself until it is longer than a threshold; from there on to its first `sink` and last
    `local` tokens, and

    `block_topk` (threshold sink + local + pages * page_size, rounded up to a multiple of page_size): to the `pages`
        blocks with the largest mean logit, and to what no whole block covers. Blocks of `page_size` tokens follow one
        another from position `sink`, as many as end before the local window.
    `token_topk` (threshold sink + tokens + local): to the `tokens` largest logits between the two.
    `sliding_window` (threshold sink + local): to nothing else.

    Ties go to the lower position, which the published code leaves open. With local = 0 the current token may go
    unattended, as there. Raises ValueError for an unknown kind or a missing size.
    """
    sizes = {"block_topk": (pages, page_size), "token_topk": (tokens,), "sliding_window": ()}
    if kind not in sizes:
        raise ValueError(f"litesys_mask: kind {kind!r} is not known (known: {', '.join(sizes)})")
    if min((*sizes[kind], 1)) < 1 or local < 0 or sink < 0:
        raise ValueError(
            f"litesys_mask: {kind} with pages={pages}, page_size={page_size}, tokens={tokens}, local={local}, "
            f"sink={sink}: block_topk needs pages and page_size, token_topk needs tokens, none may be negative"
        )
    q_heads, time = logits.shape[1:]
    check_heads("litesys_mask", q_heads, num_kv_heads)
    lengths, position = whole(lengths)[:, None, None], jnp.arange(time, dtype=jnp.int32)[None, None]
    present = position < lengths
    if kind == "block_topk":
        threshold = -(-(sink + local + pages * page_size) // page_size) * page_size
    else:
        threshold = sink + local + sum(sizes[kind])
    if time <= threshold:
        return jnp.broadcast_to(present, (lengths.shape[0], q_heads, time))

    # `optional [batch, 1, time]` is what the rule may leave out, `chosen [batch, kv_heads, time]` what it keeps of that
    optional = (position >= sink) & (position < lengths - local)
    chosen = jnp.zeros((1, num_kv_heads, 1), bool)
    mean = _group_mean(logits, lengths, num_kv_heads)  # ranked below, after the mean of a block
    if kind == "token_topk":
        chosen = _best(jnp.where(optional, ranked(mean), -jnp.inf), tokens)
    elif kind == "block_topk":
        count = (time - sink) // page_size
        blocks = mean[:, :, sink : sink + count * page_size].reshape(*mean.shape[:2], count, page_size).mean(axis=-1)
        complete = jnp.maximum(lengths - local - sink, 0) // page_size
        is_whole = jnp.arange(count, dtype=jnp.int32)[None, None] < complete
        best = _best(jnp.where(is_whole, ranked(blocks), -jnp.inf), pages)
        block = jnp.maximum(position - sink, 0) // page_size
        chosen = best[:, :, jnp.minimum(block[0, 0], count - 1)]
        optional &= block < complete
    attended = present & (~optional | chosen | (lengths <= threshold))
    return jnp.repeat(attended, q_heads // num_kv_heads, axis=1)


def _group_mean(logits: jax.Array, lengths: jax.Array, num_kv_heads: int) -> jax.Array:
    """`[batch, q_heads, time]` → `[batch, num_kv_heads, time]`; 0 from the length on, whatever is stored."""
    batch, q_heads, time = logits.shape
    logits = jnp.where(jnp.arange(time, dtype=jnp.int32)[None, None] < lengths, logits, 0)
    return logits.reshape(batch, num_kv_heads, q_heads // num_kv_heads, time).mean(axis=2)


def _best(scores: jax.Array, count: int) -> jax.Array:
    """True at the `count` largest of `scores [batch, kv_heads, places]`, ties to the lower place, never at -inf."""
    batch, kv_heads, places = scores.shape
    kept, index = jax.lax.top_k(scores, min(count, places))
    rows = jnp.arange(batch, dtype=jnp.int32)[:, None, None], jnp.arange(kv_heads, dtype=jnp.int32)[None, :, None]
    return jnp.zeros(scores.shape, bool).at[(*rows, index)].set(kept > -jnp.inf)


def _whole_passes(page_table: jax.Array, page_size: int) -> tuple[jax.Array, int]:
    """The table padded to whole passes, and the tokens of a pass."""
    per_pass = max(1, PASS_TOKENS // page_size)
    padded = max(-(-page_table.shape[1] // per_pass), 1) * per_pass
    padding = ((0, 0), (0, padded - page_table.shape[1]))
    return jnp.pad(page_table, padding, constant_values=-1), per_pass * page_size


def _passes(table: jax.Array, lengths: jax.Array, page_size: int, tokens: int) -> jax.Array:
    return jnp.minimum(-(-jnp.max(lengths, initial=0) // tokens), table.shape[1] * page_size // tokens)


def _one_pass(
    pool: jax.Array, table: jax.Array, lengths: jax.Array, index: jax.Array, tokens: int
) -> tuple[jax.Array, jax.Array]:
    """One pass of tokens, `[kv_heads, batch, tokens, head_dim]` float32, and which of them exist, `[batch, tokens]`."""
    kv_heads, _, page_size, head_dim = pool.shape
    ids = jax.lax.dynamic_slice_in_dim(table, index * (tokens // page_size), tokens // page_size, axis=1)
    place = index * tokens + jnp.arange(tokens, dtype=jnp.int32)[None]
    present = (place < lengths[:, None]) & jnp.repeat(ids >= 0, page_size, axis=1)
    vectors = pool.at[:, ids].get(mode="clip").reshape(kv_heads, table.shape[0], tokens, head_dim)
    return vectors.astype(jnp.float32), present
