"""Page summaries of every kind: what prefill and decode store is the same bits, and the summary of the stored keys."""

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
import pytest
from flax import nnx
from kinetics_kernels.reference import page_summary
from kinetics_kernels.summaries.registry import summary_names
from tiny import tiny_config, tiny_prompts, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.attention.cache import PagedCache, empty_cache, write_prompt
from kinetics_jax.attention.decode import decode_attend
from kinetics_jax.engine.programs import prefill


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(), seed=2), dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1, 4, 16])
@pytest.mark.parametrize("summary", summary_names())
def test_write_prompt_and_append_store_the_same_bits(lm, summary, size, dtype):
    rng = np.random.default_rng(0)
    length, padded = 2 * size + size // 2, 4 * size
    keys, values = jnp.asarray(rng.standard_normal((2, padded, 2, 8)), jnp.float32)
    empty = PagedCache.create(
        lm.config, num_pages=9, page_size=size, dtype=dtype, summary_layers=frozenset({0}), summary=summary
    )
    empty = jax.tree.map(lambda pool: jnp.full_like(pool, jnp.nan), empty)
    pages = jnp.array([5, 2, 7 if length > 2 * size else -1, -1], jnp.int32)
    written = jax.jit(
        lambda c, k, v: c.with_layer(0, *write_prompt(c.pools(0), k, v, pages, jnp.int32(length), c.summary))
    )(empty, keys, values)
    append = jax.jit(kernels.append_kv, static_argnames="summary")
    pools = (empty.k[0], empty.v[0], empty.summaries[0])
    for position in range(length):
        new = keys[position][None], values[position][None]
        pools = append(*pools, *new, pages[None], jnp.array([position + 1], jnp.int32), summary=summary)
    expected = np.full(pools[2].shape, np.nan)
    expected[:, [5, 2]] = np.asarray(pools[2], np.float64)[:, [5, 2]]
    assert np.isfinite(expected[:, [5, 2]]).all()
    np.testing.assert_array_equal(np.asarray(pools[2], np.float64), expected)  # open and free pages have none
    np.testing.assert_array_equal(np.asarray(written.summaries[0], np.float64), expected)
    np.testing.assert_array_equal(pools[0][:, [5, 2]], written.k[0][:, [5, 2]])
    exact = np.asarray(pools[0], np.float64)[:, [5, 2]]
    direct = np.asarray(jax.jit(page_summary, static_argnums=1)(pools[0][:, jnp.array([5, 2])], summary), np.float64)
    np.testing.assert_array_equal(expected[:, [5, 2]], direct)
    if summary == "min_max":
        np.testing.assert_array_equal(direct, np.stack([exact.min(axis=2), exact.max(axis=2)], axis=2))


@pytest.mark.slow
@pytest.mark.parametrize("summary", summary_names())
def test_the_models_programs_store_the_summary_of_what_they_store(lm, summary):
    """Compiled with the model around it, where keys come out of RoPE: prefill, then decode steps, to the bit."""
    policy = kj.BlockTopK(pages=4, page_size=4, summary=summary, dense_layers=())
    cache = empty_cache(policy, lm.config, num_pages=16, dtype=jnp.float32)
    prompt = np.array(tiny_prompts(1, first=32), np.int32)
    pages = np.random.default_rng(1).permutation(16)[:10].astype(np.int32)
    cache, _ = prefill(lm.graph, lm.weights, cache, prompt, jnp.int32(30), pages[:8])

    @jax.jit
    def step(weights, cache, length):
        attend = decode_attend(policy, jnp.asarray(pages)[None], length[None])
        return nnx.merge(lm.graph, weights)(jnp.array([[9]]), (length - 1)[None, None], attend, cache)[1]

    for length in range(31, 41):
        cache = step(lm.weights, cache, jnp.int32(length))
    for keys, stored in zip(cache.k, cache.summaries, strict=True):
        assert stored is not None
        expected = jax.jit(page_summary, static_argnums=1)(keys[:, pages], summary)
        np.testing.assert_array_equal(stored[:, pages], expected)
        assert np.abs(np.asarray(stored[:, pages])).max(axis=(0, -1)).min() > 0
