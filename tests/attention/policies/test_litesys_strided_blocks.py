"""Overlapping blocks, as the published code chooses them."""

import numpy as np
import pytest

import kinetics_jax as kj
from kinetics_jax.attention.policies.base import PolicyError

SPELLINGS = [
    "litesys_strided_blocks:pages=3,page_size=4,stride=2,local=2,dense_layers=1",
    "litesys_strided_blocks:pages=1,page_size=4,stride=6,dense_layers=1",
    "litesys_strided_blocks:pages=3,page_size=8,stride=1,local=4,dense_layers=1",
]


def attended(policy, query, keys, draw):
    length, size, end = len(keys), policy.page_size, len(keys) - policy.local
    starts = list(range(4, end - size + 1, policy.stride))
    if not starts:
        return set(range(length))
    mean = keys @ query.mean(axis=0)
    best = sorted(starts, key=lambda start: (-mean[start : start + size].mean(), start))[: 2 * policy.pages]
    union = sorted({position for start in best for position in range(start, start + size)})
    return {*range(min(4, length)), *union[: policy.pages * size], *range(end, length)}


def test_the_union_is_cut_to_its_first_tokens():
    """Two blocks of four each way, cut to four tokens: what comes last in the text goes, however well it scores."""
    policy = kj.LiteSysStridedBlocks(pages=1, page_size=4, stride=4)
    keys = np.zeros((24, 1))
    keys[16:20], keys[8:12] = 9.0, 1.0
    assert attended(policy, np.ones((1, 1)), keys, None) == {*range(4), *range(8, 12)}


def test_the_bound_is_what_is_attended_where_the_budget_is_always_filled():
    policy = kj.LiteSysStridedBlocks(pages=4, page_size=16, stride=8)
    assert policy.exact
    assert not kj.LiteSysStridedBlocks(pages=4, page_size=16, stride=2).exact
    np.testing.assert_array_equal(
        policy.step_counts(np.array([4.0, 19.0, 20.0, 28.0, 500.0])).chosen, [0, 15, 16, 24, 64]
    )


@pytest.mark.parametrize("options", [{}, {"pages": 1}, {"pages": 1, "stride": 2, "local": -1}])
def test_sizes_are_positive(options):
    with pytest.raises(PolicyError, match="must be at least"):
        kj.LiteSysStridedBlocks(**options)
