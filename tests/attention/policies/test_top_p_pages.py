"""Top-p over pages."""

import numpy as np
import pytest
from page_masses import log_masses, positions, ranked

import kinetics_jax as kj
from kinetics_jax.attention.policies.base import PolicyError

SPELLINGS = [
    "top_p_pages:p=0.6,budget=40,page_size=4,dense_layers=1",
    "top_p_pages:p=0.9,budget=20,page_size=4,dense_layers=1,summary=mean",
    "top_p_pages:p=1,budget=20,page_size=4,dense_layers=1,summary=min_max",
]


def attended(policy, query, keys, draw):
    masses = np.array(log_masses(policy, query.mean(axis=0), keys))
    shares = np.exp(masses - np.logaddexp.reduce(masses))
    kept, held = [], 0.0
    for page in ranked(policy, masses):
        forced = page < policy.sink_pages or page >= len(masses) - policy.recent_pages
        if not forced and policy.p < 1 and held >= policy.p:
            break
        kept.append(page)
        held += shares[page]
    return positions(policy, kept[: policy.pages], len(keys))


def test_a_page_that_holds_enough_is_enough():
    """Of pages with known masses: the forced two, then the largest until 0.9 is held."""
    policy = kj.TopPPages(p=0.9, budget=24, page_size=4)
    keys = np.zeros((20, 1))
    keys[4:8] = 3.0
    assert attended(policy, np.ones((1, 1)), keys, None) == {*range(8), *range(16, 20)}


@pytest.mark.parametrize("p", [0.0, -0.5, 1.5])
def test_p_is_a_share(p):
    with pytest.raises(PolicyError, match="p must be above 0 and at most 1"):
        kj.TopPPages(p=p, budget=64)


def test_every_page_is_searched_for_some_can_always_be_left_out():
    counts = kj.TopPPages(budget=20, page_size=4).step_counts(np.array([7.0, 8.0, 9.0, 40.0]))
    np.testing.assert_array_equal(counts.scores, [0, 0, 2, 10])
    np.testing.assert_array_equal(counts.vectors, [0, 0, 4, 20])
