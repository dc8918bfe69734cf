"""Attention beyond one tile, and sparse decoding against a full forward that masks what was not chosen."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from masked_forward import masked_logits
from tiny import tiny_config, tiny_prompts, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.attention.cache import PagedCache
from kinetics_jax.attention.causal import causal_attention
from kinetics_jax.engine.engine import Request
from kinetics_jax.engine.sampling import filter_logits, problem_hash, seed_key
from kinetics_jax.padding import TILE
from kinetics_jax.settings import EngineSettings

# Nothing at its default: two sink pages, two recent ones, one dense layer that is not the first.
POLICY = kj.BlockTopK(pages=6, page_size=4, sink_pages=2, recent_pages=2, dense_layers=(1,))
GREEDY = kj.Sampling(temperature=0, max_tokens=40)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    config = tiny_config(max_position_embeddings=1024, num_hidden_layers=3)
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("tiny"), config, seed=8), dtype="float32")


@pytest.mark.parametrize("time", [1, TILE - 1, TILE, TILE + 1, 2 * TILE, 700])
def test_causal_attention_matches_float64(time):
    rng = np.random.default_rng(time)
    q, k, v = (rng.standard_normal((2, time, heads, 8)).astype(np.float32) for heads in (4, 2, 2))
    wide = np.repeat(k.astype(np.float64), 2, axis=2), np.repeat(v.astype(np.float64), 2, axis=2)
    scores = np.einsum("bqhd,bkhd->bhqk", q.astype(np.float64), wide[0]) * 8**-0.5
    scores = np.where(np.tri(time, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    expected = np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(-1, keepdims=True), wide[1])
    np.testing.assert_allclose(jax.jit(causal_attention)(q, k, v), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_prompt_of_many_tiles_decodes_as_the_full_forward(lm):
    """Prefill over three tiles, then cached decoding, against attention without a cache or tiles."""
    prompt = tiny_prompts(1, first=2 * TILE + 37)[0]
    sample = lm.generate([prompt], sampling=GREEDY)[0]
    text = prompt + sample.output_tokens
    chain = masked_logits(lm, text, len(prompt), policy=None).argmax(-1)
    assert sample.output_tokens == chain[len(prompt) - 1 : -1].tolist()


@pytest.mark.slow
def test_sparse_decoding_is_the_policy_and_nothing_else(lm):
    """Every setting of a policy reaches the engine's attention: greedy decoding equals the masked full forward."""
    prompts = [tiny_prompts(1, seed=length, first=length)[0] for length in (16, 23, 41)]
    for sample, prompt in zip(lm.generate(prompts, sampling=GREEDY, attention=POLICY), prompts, strict=True):
        text = prompt + sample.output_tokens
        chain = masked_logits(lm, text, len(prompt), POLICY).argmax(-1)[len(prompt) - 1 : -1].tolist()
        assert sample.output_tokens == chain
        assert len(chain) > 20 or sample.finish_reason == "stop"
        dense = masked_logits(lm, text, len(prompt), None).argmax(-1)[len(prompt) - 1 : -1].tolist()
        assert dense != chain  # the policy matters here


@pytest.mark.slow
@pytest.mark.parametrize("policy", [POLICY, kj.RandomBlocks(pages=4, page_size=4)], ids=str)
def test_every_token_is_drawn_with_its_own_documented_key(lm, policy):
    """Each token is the Gumbel draw of its logits with fold_in(fold_in(fold_in(seed, problem), sample), position)."""
    sampling = kj.Sampling(temperature=1.5, top_p=0.95, max_tokens=24, seed=6)
    prompt = tiny_prompts(1, first=13)[0]
    engine = lm.engine(sampling=sampling, attention=policy, settings=EngineSettings(slots=3))
    for done in engine.run([Request("p7", prompt, [4, 9])]):
        key = jax.random.fold_in(jax.random.fold_in(seed_key(6), problem_hash("p7")), done.sample)
        logits = masked_logits(lm, prompt + done.output_tokens, len(prompt), policy, key)[len(prompt) - 1 : -1]
        filtered = filter_logits(jnp.asarray(logits), sampling)
        drawn = [
            int(jax.random.categorical(jax.random.fold_in(key, position), row)) for position, row in enumerate(filtered)
        ]
        assert drawn == done.output_tokens


@pytest.mark.slow
@pytest.mark.parametrize("policy", [kj.Dense(), POLICY], ids=str)
def test_nan_in_every_page_nobody_wrote_changes_nothing(lm, policy, monkeypatch):
    requests = [Request(str(length), tiny_prompts(1, first=length)[0], range(3)) for length in (3, 4, 5, 16, 33)]
    hot = kj.Sampling(max_tokens=17, seed=1)

    def run():
        engine = lm.engine(sampling=hot, attention=policy, settings=EngineSettings(slots=4, chunk=5, num_pages=40))
        return {(done.problem, done.sample): done.output_tokens for done in engine.run(requests)}

    clean = run()
    create = PagedCache.create.__func__
    poisoned = lambda cls, *a, **k: jax.tree.map(lambda pool: jnp.full_like(pool, jnp.nan), create(cls, *a, **k))  # noqa: E731
    monkeypatch.setattr(PagedCache, "create", classmethod(poisoned))
    assert run() == clean


def test_more_pages_than_a_sequence_has_cost_nothing():
    def pages(policy: kj.BlockTopK, max_pages: int) -> int:
        return policy.choice(SimpleNamespace(max_pages=max_pages))["pages"]

    assert pages(kj.BlockTopK(pages=10**6, page_size=16), 8) == 8
    assert pages(kj.BlockTopK(pages=5, page_size=16), 8) == 5
    assert pages(kj.BlockTopK(pages=5, page_size=16), 1) == 3
