"""The sliding window."""

import numpy as np

import kinetics_jax as kj

SPELLINGS = ["sliding_window:budget=11,sink_tokens=3,dense_layers=1"]


def attended(policy, query, keys, draw):
    length, window = len(keys), policy.budget - policy.sink_tokens
    return {p for p in range(length) if p < policy.sink_tokens or p >= length - window}


def test_all_of_it_is_forced():
    counts = kj.SlidingWindow(budget=8).step_counts(np.array([1.0, 8.0, 100.0]))
    np.testing.assert_array_equal(counts.forced, [1, 8, 8])
    assert not np.any(counts.chosen)
