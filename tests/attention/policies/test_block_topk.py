"""Block top-k by each kind of summary."""

import numpy as np
import pytest
from block_rule import attended_blocks
from kinetics_kernels.summaries.registry import summary_kind, summary_names

import kinetics_jax as kj

SPELLINGS = [
    "block_topk:budget=24,page_size=4,sink_pages=2,recent_pages=2,dense_layers=1",
    "block_topk:budget=20,page_size=4,dense_layers=1,summary=min_max",
    "block_topk:budget=20,page_size=4,dense_layers=1,summary=mean_std",
    "block_topk:budget=20,page_size=4,dense_layers=1,summary=two_means",
]


def attended(policy, query, keys, draw):
    mean = query.mean(axis=0)
    return attended_blocks(policy, keys, lambda page, held: score_of(policy.summary, mean, held))


def score_of(summary: str, query: np.ndarray, keys: np.ndarray) -> float:
    """A whole page's score from its keys."""
    if summary == "mean":
        return float((keys @ query).mean())
    if summary == "min_max":
        return float(np.maximum(query * keys.min(axis=0), query * keys.max(axis=0)).sum())
    if summary == "two_means":
        apart = keys - keys.mean(axis=0)
        order = np.argsort(-(apart @ apart[np.argmax((apart**2).sum(axis=1))]), kind="stable")
        halves = keys[order].reshape(2, -1, len(query)).mean(axis=1) if len(keys) % 2 == 0 else keys[:1]
        return float(np.logaddexp.reduce(halves @ query * len(query) ** -0.5))
    assert summary == "mean_std", summary
    scaled = query * len(query) ** -0.5
    return float((keys @ scaled).mean() + 0.5 * (scaled**2 * keys.var(axis=0)).sum())


@pytest.mark.parametrize("summary", summary_names())
def test_the_search_reads_the_summary_of_every_full_page(summary):
    policy = kj.BlockTopK(budget=20, page_size=4, summary=summary)
    lengths = np.array([20.0, 21.0, 24.0, 25.0])
    counts = policy.step_counts(lengths)
    np.testing.assert_array_equal(counts.scores, [0, 5, 6, 6])  # none while everything fits
    np.testing.assert_array_equal(counts.vectors, np.multiply(counts.scores, summary_kind(summary).vectors))
