"""The sampler: filters against a NumPy oracle, frequencies, and independence of draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinetics_jax.engine.sampling import filter_logits, problem_hash, sample_keys, sample_tokens, seed_key
from kinetics_jax.settings import Sampling


def kept_by_oracle(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Which tokens survive, in float64, one filter after the other as in transformers; ties with the last are kept."""
    x = logits.astype(np.float64) / sampling.temperature
    if 0 < sampling.top_k < len(x):
        x = np.where(x >= np.sort(x)[-sampling.top_k], x, -np.inf)
    weights = np.exp(x - x.max())
    if sampling.top_p < 1:
        above = np.array([weights[x > value].sum() for value in x])
        x = np.where(above < sampling.top_p * weights.sum(), x, -np.inf)
    if sampling.min_p > 0:
        x = np.where(np.exp(x - x.max()) >= sampling.min_p, x, -np.inf)
    return x > -np.inf


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    ties=st.booleans(),
    temperature=st.sampled_from([0.3, 0.6, 1.0, 2.5]),
    top_k=st.sampled_from([0, 1, 2, 20, 64]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
)
def test_filters_match_the_oracle(seed, ties, temperature, top_k, top_p, min_p):
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    logits = np.random.default_rng(seed).normal(0, 3, (3, 64)).astype(np.float32)
    logits = np.round(logits) if ties else logits
    filtered = np.asarray(filter_logits(jnp.asarray(logits), sampling))
    for row, kept in zip(logits, filtered, strict=True):
        expected = kept_by_oracle(row, sampling)
        np.testing.assert_array_equal(kept > -np.inf, expected)
        np.testing.assert_allclose(kept[expected], (row / temperature)[expected], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"top_k": 5}, {"top_p": 0.7}, {"min_p": 0.1}, {"top_k": 20, "top_p": 0.9}])
def test_filters_match_transformers(setting):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    generation = pytest.importorskip("transformers.generation", reason="transformers is not installed")
    logits = np.random.default_rng(0).normal(0, 2, (8, 500)).astype(np.float32)
    sampling = Sampling(temperature=0.7, **setting)
    warpers = [generation.TemperatureLogitsWarper(0.7)]
    warpers += [generation.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    warpers += [generation.TopPLogitsWarper(sampling.top_p)] if sampling.top_p < 1 else []
    warpers += [generation.MinPLogitsWarper(sampling.min_p)] if sampling.min_p else []
    expected = torch.tensor(logits)
    for warper in warpers:
        expected = warper(None, expected)
    np.testing.assert_allclose(filter_logits(jnp.asarray(logits), sampling), expected.numpy(), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting", [{"top_p": 1e-60}, {"top_p": 1e-60, "top_k": 5}, {"temperature": 1e-6}, {"min_p": 0.999}]
)
def test_extreme_settings_keep_the_best_token(setting):
    logits = np.random.default_rng(0).normal(0, 9, (4, 200)).astype(np.float32)
    filtered = np.asarray(filter_logits(jnp.asarray(logits), Sampling(**setting)))
    assert not np.isnan(filtered).any()
    assert (filtered.argmax(-1) == logits.argmax(-1)).all()
    drawn = draws(logits[0], 20, Sampling(**setting))
    assert (drawn == logits[0].argmax()).all()


def test_no_default_top_k_hides_in_sampling():
    logits = jnp.asarray(np.random.default_rng(0).normal(0, 1, (1, 1000)), jnp.float32)
    assert np.isfinite(filter_logits(logits, Sampling(temperature=1.0))).all()


def draws(logits: np.ndarray, count: int, sampling: Sampling, *, seed: int = 0, first: int = 0) -> np.ndarray:
    """`count` samples' tokens at output position 0."""
    keys = sample_keys(seed_key(seed), jnp.uint32(problem_hash("p")), jnp.arange(first, first + count))
    rows = jnp.broadcast_to(jnp.asarray(logits), (count, len(logits)))
    return np.asarray(jax.jit(sample_tokens, static_argnums=3)(rows, keys, jnp.zeros(count, jnp.int32), sampling))


def chi_square_z(counts: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's statistic as a standard normal (Wilson-Hilferty)."""
    kept = expected > 0
    assert counts[~kept].sum() == 0
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    degrees = kept.sum() - 1
    return ((statistic / degrees) ** (1 / 3) - (1 - 2 / (9 * degrees))) / np.sqrt(2 / (9 * degrees))


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{}, {"temperature": 0.6, "top_p": 0.95, "top_k": 20}, {"min_p": 0.1}])
def test_frequencies_are_the_filtered_distribution(setting):
    sampling = Sampling(**setting)
    logits = np.random.default_rng(1).normal(0, 1.5, 40).astype(np.float32)
    filtered = np.asarray(filter_logits(jnp.asarray(logits)[None], sampling))[0].astype(np.float64)
    probabilities = np.exp(filtered - filtered.max())
    probabilities /= probabilities.sum()
    count = 40_000
    counts = np.bincount(draws(logits, count, sampling), minlength=40)
    assert abs(chi_square_z(counts, count * probabilities)) < 4


@pytest.mark.slow
@pytest.mark.parametrize("pairing", ["samples", "seeds", "positions", "problems"])
def test_neighbouring_draws_are_independent(pairing):
    """Adjacent samples, seeds, positions and problems: the joint counts are the product of the marginals."""
    sampling, count, size = Sampling(), 20_000, 6
    logits = np.log(np.arange(1, size + 1, dtype=np.float32))
    rows = jnp.broadcast_to(jnp.asarray(logits), (count, size))
    index, zeros = jnp.arange(count), jnp.zeros(count, jnp.int32)
    draw = jax.jit(lambda keys, positions: sample_tokens(rows, keys, positions, sampling))
    one_seed = lambda problem: sample_keys(seed_key(0), jnp.uint32(problem_hash(problem)), index)  # noqa: E731
    if pairing == "samples":
        first = draw(one_seed("p"), zeros)
        second = jnp.roll(first, 1)
    elif pairing == "seeds":
        keys = jax.vmap(lambda s: jax.random.fold_in(jax.random.fold_in(jax.random.key(s), problem_hash("p")), 0))(
            index
        )
        first = draw(keys, zeros)
        second = jnp.roll(first, 1)
    elif pairing == "positions":
        first, second = draw(one_seed("p"), zeros), draw(one_seed("p"), zeros + 1)
    else:
        first, second = draw(one_seed("p"), zeros), draw(one_seed("q"), zeros)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    counts = np.zeros((size, size))
    np.add.at(counts, (np.asarray(first), np.asarray(second)), 1)
    assert abs(chi_square_z(counts.ravel(), count * np.outer(probabilities, probabilities).ravel())) < 4


@pytest.mark.slow
def test_keys_are_the_documented_fold():
    key = jax.random.key(5, impl="threefry2x32")
    key = jax.random.fold_in(jax.random.fold_in(key, problem_hash("aime-3")), 7)
    ours = sample_keys(seed_key(5), jnp.uint32(problem_hash("aime-3")), jnp.array([7]))
    np.testing.assert_array_equal(jax.random.key_data(ours)[0], jax.random.key_data(key))
    logits = np.random.default_rng(3).normal(0, 1, 50).astype(np.float32)
    expected = jax.random.categorical(jax.random.fold_in(key, 4), jnp.asarray(logits))
    assert sample_tokens(jnp.asarray(logits)[None], ours, jnp.array([4]), Sampling())[0] == expected


@pytest.mark.slow
def test_greedy_ignores_the_key():
    logits = np.random.default_rng(0).normal(0, 1, 30).astype(np.float32)
    assert set(draws(logits, 50, Sampling(temperature=0)).tolist()) == {int(logits.argmax())}
