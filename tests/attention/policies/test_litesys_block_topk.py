"""Block top-k as the published code does it."""

import numpy as np

import kinetics_jax as kj

SPELLINGS = [
    "litesys_block_topk:pages=3,page_size=4,dense_layers=1",
    "litesys_block_topk:pages=1,page_size=8,local=5,dense_layers=1",
]


def attended(policy, query, keys, draw):
    """Blocks follow the four sinks and end before the window."""
    mean, length, size = query.mean(axis=0), len(keys), policy.page_size
    if length <= -(-(4 + policy.local + policy.pages * size) // size) * size:
        return set(range(length))
    starts = range(4, length - policy.local - size + 1, size)
    best = sorted(starts, key=lambda start: (-float((keys[start : start + size] @ mean).mean()), start))
    return set(range(length)) - {p for start in best[policy.pages :] for p in range(start, start + size)}


def test_the_leftover_is_forced():
    counts = kj.LiteSysBlockTopK(pages=3, page_size=4).step_counts(np.arange(17.0, 26.0))
    np.testing.assert_array_equal(counts.chosen, 12)
    np.testing.assert_array_equal(counts.forced, [5, 6, 7, 4, 5, 6, 7, 4, 5])  # 4 sinks and what no block covers
