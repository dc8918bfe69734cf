"""The ops in plain float64 NumPy, one sequence and one head at a time, and random paged states to run them on."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass
class Paged:
    """A random paged state; what no sequence may read (free pages, slots beyond a length) is NaN."""

    q: np.ndarray  # [batch, q_heads, head_dim]
    k_pages: np.ndarray  # [kv_heads, num_pages, page_size, head_dim]
    v_pages: np.ndarray
    summaries: np.ndarray  # [kv_heads, num_pages, head_dim], or [kv_heads, num_pages, 2, head_dim]
    page_table: np.ndarray  # [batch, max_pages]
    lengths: np.ndarray  # [batch]
    summary: str = "mean"

    @property
    def page_size(self) -> int:
        return self.k_pages.shape[2]


def random_state(
    rng: np.random.Generator,
    lengths: list[int],
    *,
    kv_heads: int = 2,
    group: int = 2,
    head_dim: int = 16,
    page_size: int = 4,
    spare_pages: int = 5,
    max_pages: int | None = None,
    poison: float = np.nan,
    summary: str = "mean",
) -> Paged:
    """Sequences of the given lengths, their pages scattered over the pool in random order."""
    counts = [-(-length // page_size) for length in lengths]
    num_pages = sum(counts) + spare_pages
    max_pages = max_pages or max(counts, default=1) + 1
    order = rng.permutation(num_pages)
    pool = (kv_heads, num_pages, page_size, head_dim)
    k_pages, v_pages = np.full(pool, poison, np.float32), np.full(pool, poison, np.float32)
    vectors = [] if summary == "mean" else [2]
    summaries = np.full((kv_heads, num_pages, *vectors, head_dim), poison, np.float32)
    table = np.full((len(lengths), max_pages), -1, np.int32)
    taken = 0
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table[row, :count] = order[taken : taken + count]
        taken += count
        for position in range(length):
            where = (slice(None), table[row, position // page_size], position % page_size)
            k_pages[where] = rng.standard_normal((kv_heads, head_dim))
            v_pages[where] = rng.standard_normal((kv_heads, head_dim))
        for index in range(length // page_size):
            page = table[row, index]
            summaries[:, page] = summary_of(k_pages[:, page], summary)
    q = rng.standard_normal((len(lengths), kv_heads * group, head_dim)).astype(np.float32)
    return Paged(q, k_pages, v_pages, summaries, table, np.array(lengths, np.int32), summary)


def padded_state(rng: np.random.Generator, lengths: list[int], *, longest: int, **shape) -> Paged:
    """A state whose shape does not depend on how long its rows are, so that one program takes them all."""
    page_size = shape.get("page_size", 4)
    max_pages = -(-longest // page_size) + 1
    taken = sum(-(-length // page_size) for length in lengths)
    return random_state(rng, lengths, spare_pages=len(lengths) * max_pages + 5 - taken, max_pages=max_pages, **shape)


def summary_of(pages: np.ndarray, summary: str) -> np.ndarray:
    """Float64 summary of whole pages: `[..., page_size, head_dim]` → `[..., head_dim]` or `[..., 2, head_dim]`."""
    keys = pages.astype(np.float64)
    if summary == "mean":
        return keys.mean(axis=-2)
    if summary == "min_max":
        return np.stack([keys.min(axis=-2), keys.max(axis=-2)], axis=-2)
    if summary == "two_means":
        return two_means(keys)
    assert summary == "mean_std", summary
    return np.stack([keys.mean(axis=-2), keys.std(axis=-2)], axis=-2)


def two_means(pages: np.ndarray) -> np.ndarray:
    """Means of each page's halves along the way to its farthest key, one page at a time."""
    found = []
    for keys in pages.reshape(-1, *pages.shape[-2:]):
        apart = keys - keys.mean(axis=0)
        direction = apart[np.argmax((apart**2).sum(axis=1))]
        order = np.argsort(-(apart @ direction), kind="stable")
        half = (len(keys) + 1) // 2
        found.append([keys[order[:half]].mean(axis=0), keys[order[half:] if len(keys) > 1 else order].mean(axis=0)])
    return np.array(found).reshape(*pages.shape[:-2], 2, pages.shape[-1])


def score_of(query: np.ndarray, summary: np.ndarray, kind: str) -> float:
    """Score of one page for the mean query of a group, both float64, dimension by dimension."""
    if kind == "mean":
        return sum(float(x * m) for x, m in zip(query, summary, strict=True))
    pairs = zip(query, *summary, strict=True)
    if kind == "min_max":
        return sum(max(float(x * low), float(x * high)) for x, low, high in pairs)
    scale = len(query) ** -0.5
    if kind == "two_means":
        return float(np.log(np.mean([np.exp(scale * sum(query * half)) for half in summary])))
    assert kind == "mean_std", kind
    return sum(float(scale * x * mean + (scale * x * std) ** 2 / 2) for x, mean, std in pairs)


def tokens_of(state: Paged, row: int, head: int, pages: list[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """K and V `[tokens, head_dim]` float64 of a sequence's logical pages (all by default)."""
    size, length = state.page_size, int(state.lengths[row])
    pages = list(range(-(-length // size))) if pages is None else pages
    positions = [p for page in pages for p in range(page * size, min((page + 1) * size, length))]
    where = [(state.page_table[row, p // size], p % size) for p in positions]
    keys = np.array([state.k_pages[head, page, slot] for page, slot in where], np.float64)
    values = np.array([state.v_pages[head, page, slot] for page, slot in where], np.float64)
    return keys, values


def attend(q: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float) -> tuple[np.ndarray, float]:
    """Softmax attention of one query over some tokens: the output and the log-sum-exp."""
    if not len(keys):
        return np.zeros(q.shape), -np.inf
    scores = keys @ q.astype(np.float64) * scale
    weights = np.exp(scores - scores.max())
    return weights @ values / weights.sum(), float(scores.max() + np.log(weights.sum()))


def choose_pages(state: Paged, row: int, head: int, *, pages: int, sink: int, recent: int) -> list[int]:
    """Logical pages of the exact block top-k, ascending."""
    count = -(-int(state.lengths[row]) // state.page_size)
    if count <= pages:
        return list(range(count))
    group = state.q.shape[1] // state.k_pages.shape[0]
    query = state.q[row, head * group : (head + 1) * group].astype(np.float64).mean(axis=0)
    forced = [*range(sink), *range(count - recent, count)]
    rest = range(sink, count - recent)
    stored = state.summaries.astype(np.float64)[head, state.page_table[row]]
    score = {page: score_of(query, stored[page], state.summary) for page in rest}
    best = sorted(rest, key=lambda page: (-score[page], page))[: pages - len(forced)]
    return sorted([*forced, *best])


def block_topk(state: Paged, *, pages: int, sink: int, recent: int) -> tuple[np.ndarray, np.ndarray]:
    """`(out, lse)` of block-top-k decoding; `pages` as large as the context gives dense attention."""
    batch, q_heads, head_dim = state.q.shape
    group = q_heads // state.k_pages.shape[0]
    out, lse = np.zeros(state.q.shape), np.zeros((batch, q_heads))
    for row in range(batch):
        for head in range(q_heads):
            chosen = choose_pages(state, row, head // group, pages=pages, sink=sink, recent=recent)
            keys, values = tokens_of(state, row, head // group, chosen)
            out[row, head], lse[row, head] = attend(state.q[row, head], keys, values, head_dim**-0.5)
    return out, lse
