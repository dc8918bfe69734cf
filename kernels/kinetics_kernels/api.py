"""The ops that have kernels, as users call them: the reference's functions with a choice of backend.

`backend=None` takes what the device's tuning table names for the call's shape, else the kernel made for the device,
else the reference; a call that the kernel does not take falls back to the reference with a warning. A name forces a
backend, `xla`, `triton`, `mosaic_gpu`, `mosaic_tpu` or one of another package, `append_kv=xla,paged_decode=triton` some
for some ops (choices.py). Beyond what is said here every op raises ValueError for an
unknown backend and for query heads that are no multiple of the KV heads, and NotImplementedError, naming the reason,
for what a forced backend cannot do, and where a decode op is differentiated. Page ids and lengths may be of any integer
dtype, a batch may be empty. jit partitions no kernel: call ops on sharded arrays inside shard_map. Meanings in full:
reference.py, grouped.py.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from kinetics_kernels.backends import Backend, implementation
from kinetics_kernels.grouped import ragged_dot
from kinetics_kernels.numerics import check_heads, whole, without_gradient
from kinetics_kernels.tuning import append_key, decode_key, select_key

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Int, Int32


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
    backend: Backend | None = None,
) -> tuple[
    Float[Array, "kv_heads num_pages page_size head_dim"],
    Float[Array, "kv_heads num_pages page_size head_dim"],
    Float[Array, "kv_heads num_pages *vectors head_dim"] | None,
]:
    """Writes one token per sequence at position `lengths - 1`; a page that this fills gets its summary.

    `lengths` count the new token. `summary` names the kind of the summaries: `mean`, with no axis `*vectors`, `min_max`
    or `mean_std`, with one of 2; they are None if no policy needs them. Returns the three pools; donate them to update
    in place. Raises ValueError for an unknown kind, or another kind's summaries.
    """
    arrays = k_pages, v_pages, summaries, k_new, v_new
    arrays, page_table, lengths = _taken("append_kv", arrays, page_table, lengths)
    key = append_key(arrays[0], arrays[2], page_table, summary=summary)
    op = implementation("append_kv", _backend_for(page_table, backend), key)
    return op(*arrays, page_table, lengths, summary=summary)


def select_pages(
    q: Float[Array, "batch q_heads head_dim"],
    summaries: Float[Array, "kv_heads num_pages *vectors head_dim"] | None,
    page_table: Int[Array, "batch max_pages"],
    lengths: Int[Array, " batch"],
    *,
    page_size: int,
    pages: int,
    sink_pages: int = 1,
    recent_pages: int = 1,
    summary: str = "mean",
    scale: float | None = None,
    scores: Float32[Array, "batch kv_heads max_pages"] | None = None,
    backend: Backend | None = None,
) -> tuple[Int32[Array, "batch kv_heads pages"], Int32[Array, "batch kv_heads"]]:
    """Exact block top-k: the pages each KV head attends to this step, and the tokens they hold.

    Of `pages` pages the first `sink_pages` and the last `recent_pages` are forced, the others have the best scores;
    `scale`, that of the logits, counts for some kinds of summary. `scores [batch, kv_heads, max_pages]` by logical
    page, from elsewhere, are taken instead of the summaries', which may be None then; no kernel takes them yet. Returns
    `selected [batch, kv_heads, pages]`, physical ids in ascending logical order, padded with -1, and `covered [batch,
    kv_heads]`, the tokens they hold. Raises ValueError for an unknown kind of summary, another kind's summaries, scores
    of another shape, or if nothing is left to choose.
    """
    if summaries is not None:
        check_heads("select_pages", q.shape[1], summaries.shape[0])
    (q, summaries, scores), page_table, lengths = _taken("select_pages", (q, summaries, scores), page_table, lengths)
    key = None
    if summaries is not None:
        key = select_key(q, summaries, page_table, page_size=page_size, summary=summary)
    op = implementation("select_pages", _backend_for(page_table, backend), key)
    return op(
        q,
        summaries,
        page_table,
        lengths,
        page_size=page_size,
        pages=pages,
        sink_pages=sink_pages,
        recent_pages=recent_pages,
        summary=summary,
        scale=scale,
        scores=scores,
    )


def paged_decode(
    q: Float[Array, "batch q_heads head_dim"],
    k_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    v_pages: Float[Array, "kv_heads num_pages page_size head_dim"],
    page_table: Int[Array, "batch max_pages"] | Int[Array, "batch kv_heads pages"],
    lengths: Int[Array, " batch"] | Int[Array, "batch kv_heads"],
    *,
    scale: float | None = None,
    backend: Backend | None = None,
) -> tuple[Float[Array, "batch q_heads head_dim"], Float32[Array, "batch q_heads"]]:
    """Attention of one query token per sequence over the tokens that a page table names.

    `page_table [batch, max_pages]` goes with `lengths [batch]`, one table per KV head, `[batch, kv_heads, pages]`, with
    `lengths [batch, kv_heads]`: the tokens that `select_pages` covers. `scale` defaults to head_dim ** -0.5. Returns
    `out [batch, q_heads, head_dim]` in q's dtype and the log-sum-exp `[batch, q_heads]`; an empty row gives 0 and -inf.
    """
    check_heads("paged_decode", q.shape[1], k_pages.shape[0])
    arrays, page_table, lengths = _taken("paged_decode", (q, k_pages, v_pages), page_table, lengths)
    q, k_pages, v_pages = arrays
    op = implementation("paged_decode", _backend_for(page_table, backend), decode_key(q, k_pages, page_table))
    return op(q, k_pages, v_pages, page_table, lengths, scale=scale)


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
    backend: Backend | None = None,
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
        backend=backend,
    )
    return paged_decode(q, k_pages, v_pages, selected, covered, scale=scale, backend=backend)


def grouped_matmul(
    rows: Float[Array, "rows inner"],
    matrices: Float[Array, "groups inner columns"],
    group_sizes: Int[Array, " groups"],
    *,
    backend: Backend | None = None,
) -> Float[Array, "rows columns"]:
    """Multiplies each of `rows`, sorted by group, with its group's matrix: what a mixture of experts multiplies.

    The first `group_sizes[0]` rows belong to group 0, and so on; rows beyond their sum belong to no group, and what is
    returned for them is undefined. Returns rows' dtype. No tuning table names it: the device alone decides. It can be
    differentiated: its derivatives are those of `jax.lax.ragged_dot`.
    """
    return _grouped_matmul(backend, jnp.asarray(rows), jnp.asarray(matrices), whole(group_sizes))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _grouped_matmul(backend: Backend | None, rows: jax.Array, matrices: jax.Array, group_sizes: jax.Array) -> jax.Array:
    return implementation("grouped_matmul", backend)(rows, matrices, group_sizes)


@_grouped_matmul.defjvp
def _grouped_matmul_jvp(backend: Backend | None, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # Kernels, and loops that end when the rows do, have no transpose; this product has one.
    rows, matrices, group_sizes = primals
    return jax.jvp(lambda rows, matrices: ragged_dot(rows, matrices, group_sizes), (rows, matrices), tangents[:2])


def _taken(op: str, arrays: Any, page_table: Any, lengths: Any) -> tuple[Any, jax.Array, jax.Array]:
    """The arrays of a decode op, which has no gradient, and its table and lengths in int32."""
    arrays = without_gradient(op, jax.tree.map(jnp.asarray, arrays))
    return arrays, whole(page_table), whole(lengths)


def _backend_for(page_table: jax.Array, backend: Backend | None) -> Backend | None:
    """The reference for an empty batch, of which a kernel would have no program; else the backend asked for."""
    return backend if page_table.size else "xla"
