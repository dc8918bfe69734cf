"""Dense attention."""

import kinetics_jax as kj
from kinetics_jax.attention.policies.registry import parse_policy

SPELLINGS = ["dense"]


def attended(policy, query, keys, draw):
    return set(range(len(keys)))


def test_it_has_no_options():
    assert parse_policy("dense") == kj.Dense()
    assert str(kj.Dense()) == "dense"
    assert kj.Dense().sparse_layers(8) == ()
