"""Block top-k with sampled pages: the estimator's expectation is dense attention."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import one_step
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


ROWS, BATCHES = 2000, 4


@pytest.mark.slow
@pytest.mark.parametrize(("summary", "samples"), [("mean_std", 2), ("mean", 4)])
def test_the_expectation_is_dense_attention(summary, samples):
    """Numerator and denominator over many keys: within 5 standard errors of float64, where block top-k's are not."""
    policy = kj.UnbiasedBlockTopK(budget=28, page_size=one_step.SIZE, samples=samples, summary=summary)
    estimate = jax.jit(lambda keys: policy.estimate(one_step.step_of(policy, keys, rows=ROWS)))
    found = [estimate(keys) for keys in jax.random.split(jax.random.key(5), (BATCHES, ROWS))]
    outs, lses = (np.concatenate([np.asarray(each[which], np.float64) for each in found]) for which in (0, 1))
    sums = np.concatenate([outs * np.exp(lses)[..., None], np.exp(lses)[..., None]], axis=-1)
    numerator, denominator = one_step.dense()
    exact = np.concatenate([numerator, denominator[:, None]], axis=-1)
    errors = (sums.mean(axis=0) - exact) / (sums.std(axis=0) / len(sums) ** 0.5)
    assert np.abs(errors).max() < 5

    alone = kj.BlockTopK(budget=28, page_size=one_step.SIZE, summary=summary)
    step = one_step.step_of(alone)
    out, lse = step.paged_decode(*alone.choose(step))
    missing = (denominator - np.exp(np.asarray(lse[0]))) / (sums[..., -1].std(axis=0) / len(sums) ** 0.5)
    assert missing.min() > 50  # what block top-k leaves out shows at this many keys
    right = numerator / denominator[:, None]
    assert np.abs(outs.mean(axis=0) - right).mean() < 0.2 * np.abs(np.asarray(out[0]) - right).mean()


@pytest.mark.slow
def test_of_few_pages_all_are_read_and_weigh_as_they_are():
    policy = kj.UnbiasedBlockTopK(budget=80, page_size=one_step.SIZE, samples=6)
    keys = jax.random.split(jax.random.key(0), 3)
    out, lse = policy.estimate(one_step.step_of(policy, keys, rows=3))
    numerator, denominator = one_step.dense()
    np.testing.assert_allclose(out, [numerator / denominator[:, None]] * 3, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, [np.log(denominator)] * 3, rtol=1e-6)


@pytest.mark.slow
def test_short_and_idle_rows():
    """Fewer pages than it may draw: everything is read once, as it is."""
    policy = kj.UnbiasedBlockTopK(budget=24, page_size=one_step.SIZE, samples=4)
    keys = jax.random.split(jax.random.key(0), 5)
    step = dataclasses.replace(one_step.step_of(policy, keys, rows=5), lengths=jnp.array([0, 1, 4, 5, 24]))
    np.testing.assert_allclose(policy.attend(step), step.attend_all(), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_what_it_reads_is_what_it_chooses():
    policy = kj.UnbiasedBlockTopK(budget=24, page_size=one_step.SIZE, samples=3)
    keys = jax.random.split(jax.random.key(1), 50)
    step = one_step.step_of(policy, keys, rows=50)
    tables, covered = policy.choose(step)
    assert tables.shape == (50, one_step.KV_HEADS, 6)
    assert np.all(np.asarray(covered) == 22)  # the current page holds 2 tokens
    exact, drawn, _ = policy.ranked(step)
    for row in range(50):
        for head in range(one_step.KV_HEADS):
            pages = [*np.asarray(exact[row, head]), *np.asarray(drawn[row, head])]
            assert sorted(pages) == np.asarray(tables[row, head]).tolist()
