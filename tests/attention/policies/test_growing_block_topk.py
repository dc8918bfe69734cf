"""Block top-k under a budget that grows."""

import numpy as np
import pytest
from page_masses import positions, ranked

import kinetics_jax as kj
from kinetics_jax.attention.policies.base import PolicyError

SPELLINGS = [
    "growing_block_topk:ratio=0.5,page_size=4,dense_layers=1",
    "growing_block_topk:ratio=0.25,least=20,page_size=4,sink_pages=2,dense_layers=1,summary=mean_std",
    "growing_block_topk:schedule=0:12+33:20,page_size=4,dense_layers=1",
]


def attended(policy, query, keys, draw):
    from test_block_topk import score_of

    length, size = len(keys), policy.page_size
    count = -(-length // size)
    if policy.ratio:
        budget = max(policy.least // size, -(-count * int(policy.ratio * 100) // 100), 2 + policy.sink_pages)
    else:
        budget = 3 if length < 33 else 5
    mean = query.mean(axis=0)
    scores = [score_of(policy.summary, mean, keys[page * size : (page + 1) * size]) for page in range(count)]
    return positions(policy, ranked(policy, scores)[:budget], length)


def test_a_ratio_is_of_the_pages_in_use():
    policy = kj.GrowingBlockTopK(ratio=0.1, page_size=4)
    np.testing.assert_array_equal(policy.pages_at(np.array([4.0, 16.0, 120.0, 121.0, 400.0])), [1, 3, 3, 4, 10])


def test_a_schedule_says_budgets_by_length():
    policy = kj.GrowingBlockTopK(schedule=("0:256", "4096:512"))
    np.testing.assert_array_equal(policy.pages_at(np.array([100.0, 4095.0, 4096.0, 9999.0])), [7, 16, 32, 32])
    assert str(policy) == "growing_block_topk:schedule=0:256+4096:512"
    assert policy.nominal_budget == 512


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "give ratio= .* or schedule="),
        ({"ratio": 0.5, "schedule": ("0:256",)}, "give ratio= .* or schedule="),
        ({"ratio": 1.5}, "give ratio="),
        ({"schedule": ("256",)}, "schedule is length:budget"),
        ({"schedule": ("4:256",)}, "begin with 0 and grow"),
        ({"schedule": ("0:256", "9:512", "9:1024")}, "begin with 0 and grow"),
        ({"schedule": ("0:100",)}, "not of whole pages"),
        ({"schedule": ("0:32",)}, "leaves none to choose"),
        ({"ratio": 0.5, "least": 32}, "leaves none to choose"),
        ({"schedule": ("0:256",), "least": 64}, "floor of a ratio"),
        ({"ratio": 0.5, "summary": "median"}, "known: mean"),
        ({"ratio": 0.5, "recent_pages": 0}, "recent_pages must be at least 1"),
    ],
)
def test_what_is_no_budget_is_refused(options, says):
    with pytest.raises(PolicyError, match=says):
        kj.GrowingBlockTopK(**options)
