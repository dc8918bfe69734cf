"""Random tokens, as the published code draws them."""

import numpy as np
import pytest

import kinetics_jax as kj
from kinetics_jax.attention.policies.base import PolicyError

SPELLINGS = [
    "litesys_random_tokens:samples=9,local=3,dense_layers=1",
    "litesys_random_tokens:samples=12,dense_layers=1,weights=importance",
]


def drawn(policy, length, draw):
    between = length - 4 - policy.local
    return {4 + int(draw(number) * between) for number in range(policy.samples)}


def attended(policy, query, keys, draw):
    length = len(keys)
    if length <= 4 + policy.local + policy.samples:
        return set(range(length))
    return {*range(4), *range(length - policy.local, length), *drawn(policy, length, draw)}


def log_weights(policy, query, keys, draw):
    """What is added to the logits of some positions."""
    length, more = len(keys), len(keys) - 4 - policy.local
    if policy.weights == "none" or length <= 4 + policy.local + policy.samples:
        return {}
    return dict.fromkeys(drawn(policy, length, draw), np.log(more / policy.samples))


def test_what_is_refused():
    with pytest.raises(PolicyError, match="samples must be at least 1"):
        kj.LiteSysRandomTokens()
    with pytest.raises(PolicyError, match="known: none, importance"):
        kj.LiteSysRandomTokens(samples=3, weights="some")
