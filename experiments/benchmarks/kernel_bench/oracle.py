"""Random states with NaN where nothing may be read, and comparisons with float64: an error, and why it is too large."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from float64_ops import check_kind, paged_decode, score_terms

# Of outputs and summaries: the result's rounding, and six standard deviations of the sum of rounded weights.
TOLERANCE = {"float32": 2e-5, "bfloat16": 3 * 2**-8, "float16": 3 * 2**-11}
LSE_TOLERANCE = 2e-5  # float32 sums for every dtype: small enough that one page missing of 32K tokens shows


@dataclasses.dataclass
class Paged:
    """A paged state, float32 arrays of values that its dtype holds; NaN in free pages and beyond every length."""

    q: np.ndarray  # [batch, q_heads, head_dim]
    k_pages: np.ndarray  # [kv_heads, num_pages, page_size, head_dim]
    v_pages: np.ndarray
    summaries: np.ndarray  # [kv_heads, num_pages, (2,) head_dim]
    page_table: np.ndarray  # [batch, max_pages]
    lengths: np.ndarray  # [batch]
    summary: str

    def arrays(self, dtype: str) -> tuple:
        """`(q, k_pages, v_pages, summaries, page_table, lengths)` on the device, the floating ones in `dtype`."""
        floating = (self.q, self.k_pages, self.v_pages, self.summaries)
        cast = [jnp.asarray(array.astype(jnp.dtype(dtype))) for array in floating]
        return (*cast, jnp.asarray(self.page_table), jnp.asarray(self.lengths))


def random_state(
    rng: np.random.Generator,
    lengths: list[int],
    *,
    kv_heads: int,
    group: int,
    head_dim: int,
    page_size: int,
    max_pages: int,
    dtype: str = "float32",
    summary: str = "mean",
) -> Paged:
    """Sequences of the given lengths, their pages scattered over a pool that has a few free ones."""
    counts = [-(-length // page_size) for length in lengths]
    num_pages = -(-(sum(counts) + 4) // 8) * 8  # TPU kernels write summaries in tiles of 8
    order = rng.permutation(num_pages)
    pool = (kv_heads, num_pages, page_size, head_dim)

    def rounded(array: np.ndarray) -> np.ndarray:
        return array.astype(jnp.dtype(dtype)).astype(np.float32)

    keys, values = rounded(rng.standard_normal(pool, np.float32)), rounded(rng.standard_normal(pool, np.float32))
    table = np.full((len(lengths), max_pages), -1, np.int32)
    written = np.zeros(pool[1:3], bool)
    taken = 0
    for row, (length, count) in enumerate(zip(lengths, counts, strict=True)):
        table[row, :count] = order[taken : taken + count]
        written[table[row, :count]] = np.arange(count * page_size).reshape(count, page_size) < length
        taken += count
    summaries = rounded(summary_of(keys, summary))
    summaries[:, ~written.all(axis=1)] = np.nan
    keys[:, ~written], values[:, ~written] = np.nan, np.nan
    q = rounded(rng.standard_normal((len(lengths), kv_heads * group, head_dim), np.float32))
    return Paged(q, keys, values, summaries, table, np.array(lengths, np.int32), summary)


def summary_of(pages: np.ndarray, summary: str) -> np.ndarray:
    """Float64 summary of whole pages: `[..., page_size, head_dim]` → `[..., (2,) head_dim]`."""
    keys = pages.astype(np.float64)
    check_kind(summary)
    if summary == "mean":
        return keys.mean(axis=-2)
    if summary == "min_max":
        return np.stack([keys.min(axis=-2), keys.max(axis=-2)], axis=-2)
    return np.stack([keys.mean(axis=-2), keys.std(axis=-2)], axis=-2)


def close(actual, expected, dtype: str) -> tuple[float, str]:
    """The largest error of vectors `[..., head_dim]`, and why it is too large ("" if it is not); NaN always is.

    In units of |expected| + its vector's root mean square: over a long context outputs are small.
    """
    expected = np.asarray(expected, np.float64)
    size = np.sqrt(np.mean(np.square(expected), axis=-1, keepdims=True))
    return _within(TOLERANCE[dtype], actual, expected, size)


def close_lse(actual, expected) -> tuple[float, str]:
    """As `close` for log-sum-exps, in units of 1 + |expected|."""
    return _within(LSE_TOLERANCE, actual, np.asarray(expected, np.float64), 1)


def _within(tolerance: float, actual, expected: np.ndarray, size) -> tuple[float, str]:
    actual = np.asarray(actual, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        error = np.abs(actual - expected) / (size + np.abs(expected))
    error = np.where(actual == expected, 0, error)  # both 0 or -inf
    largest = float(np.max(error, initial=0))
    bad = int(np.sum(~(error <= tolerance)))
    return largest, f"{bad} of {error.size} values off, by up to {largest:.2e}" if bad else ""


def check_decode(state: Paged, dtype: str, results, table: np.ndarray, lengths: np.ndarray) -> tuple[float, str]:
    """Compares `results = (out, lse)` with float64."""
    out, lse = paged_decode(state.q, state.k_pages, state.v_pages, table, lengths)
    errors = close(results[0], out, dtype), close_lse(results[1], lse)
    why = "; ".join(f"{name}: {why}" for name, (_, why) in zip(("out", "lse"), errors, strict=True) if why)
    return max(largest for largest, _ in errors), why


def check_selection(
    state: Paged, results, *, pages: int, sink_pages: int = 1, recent_pages: int = 1
) -> tuple[float, str]:
    """Compares `results = (selected, covered)` with the exact choice.

    Ids must be distinct pages in logical order, forced pages among them, padded with -1, and `covered` their tokens.
    Two pages may be swapped only if their scores are within a float32 sum's error; the error returned is the largest
    such difference, relative to the sum of the magnitudes of the terms.
    """
    selected, covered = (np.asarray(array) for array in results)
    terms = score_terms(state.q, state.summaries, state.page_table, state.summary)
    scores, sizes = terms.sum(axis=-1), np.abs(terms).sum(axis=-1)
    page_size, worst = state.k_pages.shape[2], 0.0
    for row, length in enumerate(state.lengths):
        count = -(-int(length) // page_size)
        logical = {int(page): place for place, page in enumerate(state.page_table[row, :count])}
        for head in range(scores.shape[1]):
            where = f"row {row}, head {head}: "
            ids = selected[row, head]
            kept = [logical.get(int(page), -1) for page in ids[: min(count, pages)]]
            if -1 in kept or kept != sorted(set(kept)) or np.any(ids[len(kept) :] != -1):
                return np.inf, where + f"ids {ids.tolist()} are not distinct pages of the row in logical order"
            tokens = int(length) - (count - len(kept)) * page_size
            if covered[row, head] != tokens:
                return np.inf, where + f"{covered[row, head]} tokens covered, not {tokens}"
            forced = {*range(min(sink_pages, count)), *range(max(count - recent_pages, 0), count)}
            if not forced <= {*kept}:
                return np.inf, where + f"a forced page is missing in {kept}"
            chosen, left = sorted({*kept} - forced), sorted({*range(count)} - {*kept} - forced)
            if chosen and left:
                low = min(chosen, key=lambda page: scores[row, head, page])
                high = max(left, key=lambda page: scores[row, head, page])
                lost = scores[row, head, high] - scores[row, head, low]
                relative = lost / max(sizes[row, head, high], sizes[row, head, low])
                worst = max(worst, float(relative))
                if relative > 2e-6:
                    return float(
                        relative
                    ), where + f"page {high} scores {lost:.2e} more than page {low}, yet is left out"
    return worst, ""


def check_append(state: Paged, dtype: str, results, k_new: np.ndarray, v_new: np.ndarray) -> tuple[float, str]:
    """Compares the three pools: new rows to the bit, summaries of closed pages to rounding, the rest untouched."""
    page_size, batch = state.k_pages.shape[2], len(state.lengths)
    position = np.maximum(state.lengths - 1, 0)
    page = state.page_table[np.arange(batch), position // page_size]
    live = state.lengths > 0
    pools = {}
    for name, stored, new, pool in (("K", state.k_pages, k_new, results[0]), ("V", state.v_pages, v_new, results[1])):
        pools[name] = stored.copy()
        pools[name][:, page[live], position[live] % page_size] = new[live].swapaxes(0, 1)
        if not np.array_equal(np.asarray(pool, np.float32), pools[name], equal_nan=True):
            return np.inf, f"{name}: not the stored values and the new row"
    closed = page[live & (state.lengths % page_size == 0)]
    summaries = state.summaries.copy()
    summaries[:, closed] = summary_of(pools["K"][:, closed], state.summary)
    written_summaries = np.asarray(results[2], np.float64)
    written = np.zeros(state.k_pages.shape[1], bool)
    written[closed] = True
    if not np.array_equal(written_summaries[:, ~written], summaries[:, ~written], equal_nan=True):
        return np.inf, "summaries: a page that did not fill was touched"
    largest, why = close(written_summaries[:, written], summaries[:, written], dtype)
    return largest, why and f"summaries: {why}"
