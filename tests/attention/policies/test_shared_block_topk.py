"""Block top-k whose selection is shared over layers."""

import numpy as np
import pytest
from test_block_topk import attended as attended_alone

import kinetics_jax as kj
from kinetics_jax.attention.policies.base import PolicyError
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import generation_cost
from kinetics_jax.costs.memory import kv_bytes_per_token

SPELLINGS = [
    "shared_block_topk:budget=20,page_size=4,select_every=2,dense_layers=1",
    "shared_block_topk:budget=20,page_size=4,select_every=1,dense_layers=1,summary=min_max",
]


def attended(policy, query, keys, draw):
    """Of a layer that selects; `chosen_in` says which layer's choice each layer attends to."""
    return attended_alone(policy, query, keys, draw)


def chosen_in(policy, layer):
    """The layer whose pages a sparse layer attends to: the last that selects, counted over sparse layers."""
    sparse = [other for other in range(layer + 1) if other not in policy.dense_layers]
    return sparse[(len(sparse) - 1) // policy.select_every * policy.select_every]


def test_layers_select_by_turns():
    policy = kj.SharedBlockTopK(budget=64, page_size=16, select_every=3, dense_layers=(0, 2))
    assert [layer for layer in range(12) if policy.searches(layer)] == [1, 5, 8, 11]
    assert [chosen_in(policy, layer) for layer in (1, 3, 4, 5, 7, 8)] == [1, 1, 1, 5, 5, 8]


@pytest.mark.parametrize("every", [1, 2, 5])
def test_only_layers_that_select_pay_for_the_search_and_keep_summaries(every):
    config = ModelConfig.named("Qwen/Qwen3-0.6B")
    shared, alone = kj.SharedBlockTopK(budget=64, select_every=every), kj.BlockTopK(budget=64)
    asked = {"prompt_tokens": 100, "output_tokens": 900, "intensity": 1.0}
    ours, theirs = (generation_cost(config, attention=policy, **asked) for policy in (shared, alone))
    share = -(-(config.num_layers - 1) // every) / (config.num_layers - 1)
    assert ours.kv_reads == theirs.kv_reads
    for part in ("search", "search_reads", "top_k"):
        assert ours.parts[part] == pytest.approx(theirs.parts[part] * share)
    bytes_of = [kv_bytes_per_token(config, policy) for policy in (shared, alone, kj.Dense())]
    assert bytes_of[0] - bytes_of[2] == pytest.approx(share * (bytes_of[1] - bytes_of[2]))


def test_a_turn_is_a_layer_at_least():
    with pytest.raises(PolicyError, match="select_every must be at least 1"):
        kj.SharedBlockTopK(budget=64, select_every=0)
    assert np.all(kj.SharedBlockTopK(budget=64).step_counts(np.array([99.0])).vectors == 6)
