"""Every policy's decode step without the engine, against a full forward that masks what was not chosen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
import pytest
from flax import nnx
from masked_forward import attended, masked_logits
from spellings import every_policy
from tiny import tiny_config, tiny_prompts, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.attention.cache import PagedCache, empty_cache
from kinetics_jax.attention.decode import decode_attend
from kinetics_jax.attention.policies.random_blocks import random_scores
from kinetics_jax.attention.policies.tokens import TokenPolicy
from kinetics_jax.engine.programs import prefill
from kinetics_jax.engine.sampling import seed_key

PROMPT = tiny_prompts(1, seed=5, first=23)[0]
STEPS = 30
# Of all kinds; few tokens of at most 53, and one layer dense, which is not the first.
POLICIES = [policy for policy in every_policy() if policy.kind != "dense"]
ONE_OF_EACH = [next(policy for policy in POLICIES if policy.kind == kind) for kind in {p.kind: 0 for p in POLICIES}]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    config = tiny_config(max_position_embeddings=1024, num_hidden_layers=3)
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("tiny"), config, seed=8), dtype="float32")


@functools.partial(jax.jit, static_argnames=("graph", "policy"))
def step(graph, weights, cache, tokens, lengths, table, keys, *, policy):
    """One token per row in; logits `[batch, vocab]` and what was read out; `lengths` counts it, 0 for an idle row."""
    model = nnx.merge(graph, weights)
    attend = decode_attend(policy, table, lengths, keys)
    cache = cache.counting(len(tokens))
    hidden, cache = model(tokens[:, None], jnp.maximum(lengths - 1, 0)[:, None], attend, cache)
    cache, reads = cache.counted()
    return cache, model.logits(hidden[:, 0]), reads


def decode(lm, policy, *, key=None, pages=None, row=0, rows=1, width=64, poison=jnp.nan, steps=STEPS, read=None):
    """Greedy decoding of PROMPT in one row of a batch: its tokens, and the logits `[steps, vocab]` that gave them.

    `pages` are the physical ids to use, in logical order. Every page nobody wrote holds `poison`. What every step
    read is appended to `read`: tokens, vectors and faults, of each KV head.
    """
    key = seed_key(3) if key is None else key
    size = policy.page_size
    cache = empty_cache(policy, lm.config, num_pages=80, dtype=jnp.float32, rows=rows)
    cache = jax.tree.map(lambda pool: jnp.full_like(pool, poison), cache)
    pages = np.arange(80) if pages is None else np.asarray(pages)
    table = np.full((rows, width), -1, np.int32)
    used = pages[: -(-(len(PROMPT) + steps) // size)]
    table[row, : len(used)] = used
    bucket = 32 // size
    padded = np.zeros((1, 32), np.int32)
    padded[0, : len(PROMPT)] = PROMPT
    of_prompt = np.where(np.arange(bucket) * size < len(PROMPT), pages[:bucket], -1).astype(np.int32)
    cache, logits = prefill(lm.graph, lm.weights, cache, padded, jnp.int32(len(PROMPT)), of_prompt)
    kept, tokens = [np.asarray(logits[0])], [int(logits[0].argmax())]
    for position in range(1, steps):
        token, lengths = np.zeros(rows, np.int32), np.zeros(rows, np.int32)
        token[row], lengths[row] = tokens[-1], len(PROMPT) + position
        keys = jnp.broadcast_to(jax.random.fold_in(key, position), (rows,))
        cache, logits, reads = step(lm.graph, lm.weights, cache, token, lengths, table, keys, policy=policy)
        if read is not None:
            read.append([np.asarray(each[:, row]) for each in (reads.tokens, reads.vectors, reads.fault)])
        kept.append(np.asarray(logits[row]))
        tokens.append(int(kept[-1].argmax()))
    return tokens, np.array(kept), cache


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_decoding_is_the_policy_and_nothing_else(lm, policy):
    """With NaN in every page nobody wrote, logits equal those of the masked forward, token after token; and every step
    reads what the policy's formula counts, without a fault.
    """
    tokens, logits, _ = decode(lm, policy, read=(read := []))
    attended, vectors, faults = np.moveaxis(np.array(read, np.int64), 1, 0)  # [steps, kv_heads] each
    assert not faults.any()
    if policy.price != "measured":
        length = len(PROMPT) + np.arange(1.0, STEPS)
        counts = policy.counts(length - 1, np.ones_like(length), lm.config.num_layers)
        total = counts.dense.total + counts.forced.total + counts.chosen.total
        if policy.price == "upper bound":
            assert np.all(total >= attended.T)
        else:
            np.testing.assert_array_equal(attended.T, [total] * 2)
        np.testing.assert_array_equal(vectors.T, [np.broadcast_to(counts.vectors.total, length.shape)] * 2)
    text, first = PROMPT + tokens[:-1], len(PROMPT) - 1
    expected = masked_logits(lm, text, len(PROMPT), policy, key=seed_key(3))[first:]
    np.testing.assert_allclose(logits, expected, rtol=2e-4, atol=2e-4)
    dense = masked_logits(lm, text, len(PROMPT), None)[first:]
    assert np.abs(logits - dense).max() > 0.1  # the policy matters here


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [
        kj.BlockTopK(pages=32, page_size=4, summary="min_max", dense_layers=()),
        kj.BlockTopK(pages=32, page_size=4, summary="mean_std", dense_layers=()),
        kj.RandomBlocks(pages=32, page_size=4, dense_layers=()),
        kj.TokenTopK(budget=53, dense_layers=()),
        kj.SlidingWindow(budget=53, dense_layers=()),
        kj.LiteSysBlockTopK(pages=13, page_size=4, dense_layers=()),
    ],
    ids=str,
)
def test_a_budget_that_holds_everything_is_dense_attention(lm, policy):
    """To the bit where pages are chosen, up to rounding where tokens are masked."""
    tokens, logits, _ = decode(lm, policy)
    expected_tokens, expected, _ = decode(lm, kj.Dense())
    assert tokens == expected_tokens
    if isinstance(policy, kj.BlockTopK | kj.RandomBlocks):
        np.testing.assert_array_equal(logits, expected)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ONE_OF_EACH, ids=str)
def test_dense_layers_are_dense(lm, policy):
    """With every layer dense, no policy changes a bit."""
    everywhere = dataclasses.replace(policy, dense_layers=(0, 1, 2))
    _, logits, _ = decode(lm, everywhere, steps=8)
    np.testing.assert_array_equal(logits, decode(lm, kj.Dense(), steps=8)[1])


@pytest.mark.slow
@pytest.mark.parametrize("policy", ONE_OF_EACH, ids=str)
def test_neither_the_row_nor_the_pages_nor_the_table_matter(lm, policy):
    """A sample's logits are the same bits in another slot, in other physical pages, under a wider table."""
    _, logits, _ = decode(lm, policy, rows=3, row=0)
    order = np.random.default_rng(0).permutation(80)
    np.testing.assert_array_equal(decode(lm, policy, rows=3, row=2, pages=order)[1], logits)
    np.testing.assert_allclose(decode(lm, policy, rows=3, row=1, width=80)[1], logits, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_token_policies_never_exceed_their_budget():
    rng = np.random.default_rng(2)
    lengths = np.array([0, 1, 7, 8, 9, 64], np.int32)
    logits = jnp.asarray(rng.standard_normal((6, 4, 64)), jnp.float32)
    for policy in (kj.TokenTopK(8), kj.SlidingWindow(8), kj.SlidingWindow(5)):
        mask = np.asarray(policy.mask(logits, jnp.asarray(lengths), 2))
        expected = np.minimum(lengths, policy.budget)[:, None]
        np.testing.assert_array_equal(mask.sum(axis=-1), np.broadcast_to(expected, (6, 4)))
        assert all(mask[row, :, length - 1].all() for row, length in enumerate(lengths) if length)  # the current token


@pytest.mark.slow
def test_a_policy_of_the_oracle_chooses_as_the_package_says():
    """The test's own rule and the mask agree over random keys, head by head."""
    rng = np.random.default_rng(4)
    for policy in (policy for policy in POLICIES if isinstance(policy, TokenPolicy)):
        query, keys = rng.standard_normal((4, 8)), rng.standard_normal((2, 40, 8))
        logits = np.einsum("hgd,htd->hgt", query.reshape(2, 2, 8), keys).reshape(1, 4, 40)
        for length in (1, 12, 21, 40):
            mask = np.asarray(policy.mask(jnp.asarray(logits, jnp.float32), jnp.array([length]), 2))
            for head in range(4):
                kept = attended(policy, query.reshape(2, 2, 8)[head // 2], keys[head // 2, :length], None)
                assert set(np.flatnonzero(mask[0, head]).tolist()) == kept


# Random blocks


@functools.partial(jax.jit, static_argnames=("layer", "kv_heads", "max_pages"))
def drawn_pages(keys, *, layer=0, kv_heads=1, max_pages=12):
    """5 logical pages out of 12 by random scores, `[rows, kv_heads, 5]`; pages of 4 tokens, physical = logical."""
    scores = random_scores(keys, layer, kv_heads, max_pages)
    table = jnp.broadcast_to(jnp.arange(max_pages, dtype=jnp.int32), (len(keys), max_pages))
    return kernels.choose_pages(scores, table, jnp.full(len(keys), 48), page_size=4, pages=5)[0]


def test_random_blocks_are_uniform_and_distinct():
    """5 of 12 pages: the first, the last, and every three of the other ten as often as any other three (chi-square)."""
    rows = 24_000
    keys = jax.random.split(seed_key(7), rows)
    chosen = np.asarray(drawn_pages(keys))[:, 0]
    assert (chosen[:, 0] == 0).all()
    assert (chosen[:, -1] == 11).all()
    assert (np.diff(chosen, axis=1) > 0).all()
    triples, counts = np.unique(chosen[:, 1:4], axis=0, return_counts=True)
    assert len(triples) == 120
    expected = rows / 120
    statistic = ((counts - expected) ** 2 / expected).sum()
    assert 70 < statistic < 185  # 119 degrees of freedom: about four standard deviations to either side


@pytest.mark.slow
def test_random_blocks_are_drawn_anew_in_every_step_layer_and_head():
    keys = jax.random.split(seed_key(1), 600)
    chosen = drawn_pages(keys, kv_heads=2)
    other_layer, other_step = drawn_pages(keys, layer=1, kv_heads=2), drawn_pages(keys[1:], kv_heads=2)
    for one, other in (
        (chosen[:, 0], chosen[:, 1]),
        (chosen[:, 0], other_layer[:, 0]),
        (chosen[:-1, 0], other_step[:, 0]),
    ):
        same = (one == other).all(axis=1).mean()
        assert same < 0.03  # by chance 1 in 120
    # Of more heads and of a wider table, the same.
    np.testing.assert_array_equal(drawn_pages(keys, kv_heads=3, max_pages=30)[:, :2], chosen)


def test_random_blocks_need_keys():
    with pytest.raises(ValueError, match="give decode_attend the keys"):
        decode_attend(kj.RandomBlocks(pages=4), jnp.zeros((1, 4), jnp.int32), jnp.array([1]))


@pytest.mark.slow
def test_another_key_draws_other_pages(lm):
    policy = kj.RandomBlocks(pages=3, page_size=4, dense_layers=())
    np.testing.assert_array_equal(decode(lm, policy)[1], decode(lm, policy)[1])
    assert np.abs(decode(lm, policy, key=seed_key(4))[1] - decode(lm, policy)[1]).max() > 0.1


@pytest.mark.slow
def test_a_cache_of_another_kind_is_refused(lm):
    policy = kj.BlockTopK(pages=5, page_size=4, summary="min_max")
    for cache in (
        empty_cache(kj.Dense(), lm.config, num_pages=8, dtype=jnp.float32),
        empty_cache(kj.BlockTopK(pages=5, page_size=4), lm.config, num_pages=8, dtype=jnp.float32),
        PagedCache.create(lm.config, num_pages=8, page_size=4, dtype=jnp.float32),
    ):
        arrays = (cache, np.zeros(1, np.int32), np.ones(1, np.int32), np.zeros((1, 8), np.int32), None)
        with pytest.raises(ValueError, match="reads min_max summaries"):
            step(lm.graph, lm.weights, *arrays, policy=policy)
