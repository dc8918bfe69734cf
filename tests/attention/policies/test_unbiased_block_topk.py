"""Block top-k with sampled pages: the estimator's expectation is dense attention."""

import numpy as np
import pytest
from page_masses import log_masses, positions, ranked

import kinetics_jax as kj
from kinetics_jax.attention.policies.base import PolicyError

SPELLINGS = [
    "unbiased_block_topk:budget=24,page_size=4,samples=2,dense_layers=1",
    "unbiased_block_topk:budget=20,page_size=4,samples=3,dense_layers=1,summary=mean",
]


def pages_and_weights(policy, query, keys, draw):
    """The pages read, and the log weight of each."""
    masses = log_masses(policy, query.mean(axis=0), keys)
    order = ranked(policy, masses)
    exact, rest = order[: policy.pages - policy.samples], sorted(order[policy.pages - policy.samples :])
    priority = {page: masses[page] - np.log(draw(page)) for page in rest}
    best = sorted(rest, key=lambda page: (-priority[page], page))
    threshold = priority[best[policy.samples]] if len(best) > policy.samples else -np.inf
    weights = {page: max(threshold - masses[page], 0.0) for page in best[: policy.samples]}
    return dict.fromkeys(exact, 0.0) | weights


def attended(policy, query, keys, draw):
    return positions(policy, pages_and_weights(policy, query, keys, draw), len(keys))


def log_weights(policy, query, keys, draw):
    weights = pages_and_weights(policy, query, keys, draw)
    size = policy.page_size
    return {position: weights[position // size] for position in attended(policy, query, keys, draw)}


@pytest.mark.parametrize("samples", [0, 3])
def test_samples_are_of_the_pages_that_are_not_forced(samples):
    with pytest.raises(PolicyError, match="samples must be at least 1 and at most 2"):
        kj.UnbiasedBlockTopK(pages=4, samples=samples)
