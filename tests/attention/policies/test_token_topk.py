"""Token top-k, the oracle."""

import numpy as np

import kinetics_jax as kj

SPELLINGS = ["token_topk:budget=9,dense_layers=1", "token_topk:budget=1,dense_layers=1"]


def attended(policy, query, keys, draw):
    mean, length = query.mean(axis=0), len(keys)
    best = sorted(range(length - 1), key=lambda position: (-float(mean @ keys[position]), position))
    return {length - 1, *best[: policy.budget - 1]}


def test_the_current_token_is_forced_and_the_search_is_free():
    counts = kj.TokenTopK(budget=8).step_counts(np.array([1.0, 8.0, 100.0]))
    np.testing.assert_array_equal(counts.forced, [1, 1, 1])
    np.testing.assert_array_equal(counts.chosen, [0, 7, 7])
    assert not np.any(counts.vectors)
