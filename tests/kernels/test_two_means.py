"""Summaries of two means: what each half is, and that kernels leave them to the reference."""

import jax.numpy as jnp
import numpy as np
import pytest
from kinetics_kernels.reference import page_summary
from kinetics_kernels.summaries.registry import kernel_code

from . import oracle


def test_a_page_of_two_topics_keeps_both():
    rng = np.random.default_rng(0)
    topics = rng.standard_normal((2, 16)) * 3
    keys = np.repeat(topics, 4, axis=0)[rng.permutation(8)]
    stored = np.asarray(page_summary(jnp.asarray(keys, jnp.float32), "two_means"))
    assert sorted(map(tuple, stored.round(4))) == sorted(map(tuple, topics.astype(np.float32).round(4)))
    for query in rng.standard_normal((20, 16)):
        exact = np.log(np.mean(np.exp(keys @ query * 16**-0.5)))
        assert oracle.score_of(query, stored.astype(np.float64), "two_means") == pytest.approx(exact, rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_odd_pages(size):
    """The farther half takes the key in the middle; of one key both are it."""
    keys = np.random.default_rng(size).standard_normal((3, size, 16)).astype(np.float32)
    stored = np.asarray(page_summary(jnp.asarray(keys), "two_means"))
    expected = oracle.summary_of(keys, "two_means")
    if size == 2:  # both keys are as far, and either may come first
        stored, expected = np.sort(stored, axis=1), np.sort(expected, axis=1)
    np.testing.assert_allclose(stored, expected, rtol=1e-5, atol=1e-6)
    half = (size + 1) // 2
    if size > 1:
        np.testing.assert_allclose((half * stored[:, 0] + (size - half) * stored[:, 1]) / size, keys.mean(1), atol=1e-6)


@pytest.mark.parametrize("op", ["append_kv", "select_pages"])
def test_kernels_refuse_it_by_name(op):
    with pytest.raises(NotImplementedError, match="no code for summaries of kind two_means"):
        kernel_code(op, "triton", "two_means")
