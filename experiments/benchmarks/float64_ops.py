"""Attention and page scores in float64 NumPy, the reference of the kernel suites and of compare_backends."""

from __future__ import annotations

import numpy as np

KINDS = ("mean", "min_max", "mean_std")  # of summaries whose scores are written here, apart from the kernels' own


def check_kind(summary: str) -> None:
    """Raises ValueError for a kind of summary that float64 has no rule for."""
    if summary not in KINDS:
        raise ValueError(f"summary {summary!r} has no float64 rule here (there are: {', '.join(KINDS)})")


def paged_decode(
    q: np.ndarray, k_pages: np.ndarray, v_pages: np.ndarray, table: np.ndarray, lengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`(out [batch, q_heads, head_dim], lse [batch, q_heads])` over a table for each KV head.

    `q [batch, q_heads, head_dim]`, pools `[kv_heads, num_pages, page_size, head_dim]`: the first `lengths [batch,
    kv_heads]` tokens of `table [batch, kv_heads, pages]`, without those of missing pages (-1). No token: 0 and -inf.
    """
    head_dim, group = q.shape[2], q.shape[1] // k_pages.shape[0]
    out, lse = np.zeros(q.shape), np.full(q.shape[:2], -np.inf)
    for row, head in np.ndindex(*table.shape[:2]):
        ids = table[row, head]
        inside = np.arange(len(ids) * k_pages.shape[2]) < lengths[row, head]
        inside &= np.repeat(ids >= 0, k_pages.shape[2])
        if not inside.any():
            continue
        keys, values = (pool[head, ids].reshape(-1, head_dim)[inside].astype(np.float64) for pool in (k_pages, v_pages))
        members = slice(head * group, (head + 1) * group)
        scores = q[row, members].astype(np.float64) @ keys.T * head_dim**-0.5
        top = scores.max(axis=1, keepdims=True)
        weights = np.exp(scores - top)
        total = weights.sum(axis=1, keepdims=True)
        out[row, members], lse[row, members] = weights @ values / total, (top + np.log(total))[:, 0]
    return out, lse


def score_terms(q: np.ndarray, summaries: np.ndarray, page_table: np.ndarray, summary: str) -> np.ndarray:
    """The terms whose sum over the last axis is the score of each page of a table, for the mean query of a group.

    `q [batch, q_heads, head_dim]`, `summaries [kv_heads, num_pages, (2,) head_dim]` of the kind `summary`, `page_table
    [batch, pages]` → `[batch, kv_heads, pages, head_dim]`; terms of missing pages (-1) are meaningless.
    """
    check_kind(summary)
    batch, q_heads, head_dim = q.shape
    kv_heads = summaries.shape[0]
    query = q.astype(np.float64).reshape(batch, kv_heads, q_heads // kv_heads, head_dim).mean(axis=2)[:, :, None]
    stored = summaries.astype(np.float64)[:, page_table].swapaxes(0, 1)  # [batch, kv_heads, pages, (2,) head_dim]
    if summary == "mean":
        return query * stored
    if summary == "min_max":
        return np.minimum(query, 0) * stored[..., 0, :] + np.maximum(query, 0) * stored[..., 1, :]
    query = query * head_dim**-0.5
    return query * stored[..., 0, :] + 0.5 * (query * stored[..., 1, :]) ** 2
