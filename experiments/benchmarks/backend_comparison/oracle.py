"""The ops in float64 NumPy, the reference for both sides of a comparison."""

from __future__ import annotations

from collections.abc import Mapping

import float64_ops
import numpy as np

from .cases import PAGES, RECENT_PAGES, SINK_PAGES, Case, summary_of

UNIT = 2.0**-24  # of rounding in float32

Arrays = Mapping[str, np.ndarray]


def page_scores(inputs: Arrays, summary: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of logical pages, and how far float32 sums of their terms, in any order, can be off.

    Both `[batch, kv_heads, max_pages]` float64; meaningless beyond a length.
    """
    stored, table = inputs[f"{summary}_summaries"].astype(np.float64), inputs["page_table"]
    terms = float64_ops.score_terms(inputs["q"], stored, table, summary)
    batch, kv_heads, _, dims = terms.shape
    group = inputs["q"].shape[1] // kv_heads
    members = np.abs(inputs["q"].astype(np.float64)).reshape(batch, kv_heads, group, dims)
    largest, pages = members.mean(axis=2)[:, :, None], stored[:, table].swapaxes(0, 1)
    if summary == "mean":
        size = largest * np.abs(pages)
    elif summary == "min_max":
        size = largest * np.abs(pages).max(axis=-2)
    else:
        mean, std, scale = pages[..., 0, :], pages[..., 1, :], dims**-0.5
        size = largest * scale * np.abs(mean) + 0.5 * (largest * scale * std) ** 2
    # Each term passes through at most 2 dims additions, the mean over the group and a few products.
    return terms.sum(axis=-1), (2 * dims + group + 8) * UNIT * size.sum(axis=-1)


def select_pages(case: Case, inputs: Arrays, summary: str) -> tuple[np.ndarray, np.ndarray]:
    """Physical ids `[batch, kv_heads, PAGES]`, -1 unused, and `margin [batch, kv_heads]`.

    The margin is the score gap between the last page taken and the first one left, minus what rounding can change: if
    it is not positive, float32 may choose otherwise. Infinite if there is no choice, or no rounding.
    """
    scores, slack = page_scores(inputs, summary)
    selected = np.full((*scores.shape[:2], PAGES), -1, np.int32)
    margin = np.full(scores.shape[:2], np.inf)
    for row, head in np.ndindex(*scores.shape[:2]):
        table = inputs["page_table"][row]
        count = -(-int(inputs["lengths"][row]) // case.state.page_size)
        chosen = np.arange(count)
        if count > PAGES:
            rest = np.arange(SINK_PAGES, count - RECENT_PAGES)
            best = rest[np.lexsort((rest, -scores[row, head, rest]))]
            taken, left = np.split(best, [PAGES - SINK_PAGES - RECENT_PAGES])
            chosen = np.sort([*range(SINK_PAGES), *range(count - RECENT_PAGES, count), *taken])
            if case.state.kind != "ties":
                low, high = scores[row, head] - slack[row, head], scores[row, head] + slack[row, head]
                margin[row, head] = low[taken].min() - high[left].max()
        selected[row, head, : len(chosen)] = table[chosen]
    return selected, margin


def score_gap(case: Case, inputs: Arrays, summary: str, row: int, head: int, pages: set[int]) -> tuple[float, float]:
    """Of physical `pages` that only one side chose: the spread of their scores, and how much of it rounding explains.

    A forced page among them, or one that is not the sequence's, makes the spread infinite. `ties` allow none.
    """
    table = inputs["page_table"][row]
    count = -(-int(inputs["lengths"][row]) // case.state.page_size)
    free = {int(table[page]): page for page in range(SINK_PAGES, count - RECENT_PAGES)}
    if not pages <= free.keys():
        return np.inf, 0.0
    logical = [free[page] for page in sorted(pages)]
    scores, slack = (x[row, head, logical] for x in page_scores(inputs, summary))
    return float(np.ptp(scores)), 0.0 if case.state.kind == "ties" else float(2 * slack.max())


def paged_decode(inputs: Arrays, table: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`(out [batch, q_heads, head_dim], lse [batch, q_heads])` over `table [batch, kv_heads, pages]`."""
    return float64_ops.paged_decode(inputs["q"], inputs["k_pages"], inputs["v_pages"], table, lengths)


def per_head(inputs: Arrays) -> tuple[np.ndarray, np.ndarray]:
    """The table of sequences as one for each KV head, and its lengths."""
    heads = inputs["k_pages"].shape[0]
    return np.repeat(inputs["page_table"][:, None], heads, 1), np.repeat(inputs["lengths"][:, None], heads, 1)


def append_kv(case: Case, inputs: Arrays) -> dict[str, np.ndarray]:
    """The pools after the append: K and V in their dtype, summaries float64."""
    k, v = inputs["k_pages"].copy(), inputs["v_pages"].copy()
    summary, size = case.options["summary"], case.state.page_size
    summaries = inputs[f"{summary}_summaries"].astype(np.float64)
    for row, length in enumerate(inputs["lengths"]):
        if length:
            page = inputs["page_table"][row, (length - 1) // size]
            k[:, page, (length - 1) % size] = inputs["k_new"][row]
            v[:, page, (length - 1) % size] = inputs["v_new"][row]
            if length % size == 0:
                summaries[:, page] = summary_of(k[:, page], summary)
    return {"k_pages": k, "v_pages": v, "summaries": summaries}


def expected(case: Case, inputs: Arrays) -> dict[str, np.ndarray]:
    """The outputs of a case by name, as a recording has them; of block_topk_decode also its selection's `margin`."""
    if case.op == "append_kv":
        return append_kv(case, inputs)
    size, lengths = case.state.page_size, inputs["lengths"]
    if case.op == "paged_decode":
        tables = inputs["head_table"], inputs["head_lengths"]
        out, lse = paged_decode(inputs, *(tables if case.variant == "table_per_head" else per_head(inputs)))
        return {"out": out, "lse": lse}
    selected, margin = select_pages(case, inputs, case.variant)
    count = -(-lengths // size)
    covered = np.repeat((lengths - (count - np.minimum(count, PAGES)) * size)[:, None], selected.shape[1], axis=1)
    if case.op == "select_pages":
        return {"selected": selected, "covered": covered, "margin": margin}
    out, lse = paged_decode(inputs, selected, covered)
    return {"out": out, "lse": lse, "margin": margin}
