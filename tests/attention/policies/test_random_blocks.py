"""Random blocks: what is drawn, and that nothing is searched."""

import numpy as np
from block_rule import attended_blocks

import kinetics_jax as kj

SPELLINGS = ["random_blocks:budget=20,page_size=4,dense_layers=1"]


def attended(policy, query, keys, draw):
    return attended_blocks(policy, keys, lambda page, held: draw(page))


def test_it_searches_nothing():
    counts = kj.RandomBlocks(budget=20, page_size=4).step_counts(np.array([8.0, 100.0]))
    assert not np.any(counts.scores)
    assert not np.any(counts.vectors)
