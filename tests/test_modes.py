"""What holds under every mode of jax: `just modes` runs this file with 64-bit types and NaN checks, and with strict
promotion of dtypes and refused promotion of ranks. What other tests hold without a mode is left out without one.
"""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
import pytest
from tiny import MOE, tiny_config, tiny_prompts, write_checkpoint

import kinetics_jax as kj

POLICIES = [
    "dense",
    "block_topk:budget=12,page_size=4,dense_layers=0",
    "block_topk:budget=12,page_size=4,summary=min_max,dense_layers=none",
    "block_topk:budget=12,page_size=4,summary=mean_std,dense_layers=none",
    "token_topk:budget=12,dense_layers=none",
    "sliding_window:budget=12,dense_layers=none",
    "random_blocks:budget=12,page_size=4,dense_layers=none",
    "litesys_block_topk:pages=2,page_size=4,local=4,dense_layers=none",
    "top_p_pages:p=0.8,budget=12,page_size=4,dense_layers=none",
    "growing_block_topk:ratio=0.4,page_size=4,dense_layers=none",
    "shared_block_topk:budget=12,page_size=4,select_every=2,dense_layers=none,summary=two_means",
    "unbiased_block_topk:budget=16,page_size=4,samples=2,dense_layers=none",
    "litesys_strided_blocks:pages=2,page_size=4,stride=2,local=4,dense_layers=none",
    "litesys_random_tokens:samples=8,dense_layers=none,weights=importance",
]
MODES = ("JAX_ENABLE_X64", "JAX_DEBUG_NANS", "JAX_NUMPY_DTYPE_PROMOTION", "JAX_NUMPY_RANK_PROMOTION")
in_a_mode = pytest.mark.skipif(not any(mode in os.environ for mode in MODES), reason="held elsewhere without a mode")
GREEDY = kj.Sampling(temperature=0, max_tokens=6)
SAMPLED = kj.Sampling(temperature=0.7, top_k=20, top_p=0.9, min_p=0.01, max_tokens=6)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(), seed=5), dtype="float32")


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("moe"), tiny_config(**MOE), seed=5), dtype="float32")


@in_a_mode
@pytest.mark.parametrize("attention", POLICIES)
def test_every_policy_decodes(lm, attention):
    samples = lm.generate(tiny_prompts(2, first=30), sampling=GREEDY, attention=kj.parse_policy(attention))
    assert [len(sample.output_tokens) for sample in samples] == [6, 6]


@dataclasses.dataclass(frozen=True)
class Own(kj.AttentionPolicy):
    """Pages of its own choice, looked up and counted, and those of a mask."""

    page_size: int = 4
    kind, price, cache_summary, summary_vectors = "own", "measured", "mean", 1

    def attend(self, step):
        kept = step.keep_pages(step.score_pages() > 0, at_most=step.max_pages)
        table = jnp.broadcast_to(step.page_table[:, None], (step.batch, step.kv_heads, step.max_pages))
        outs, sums = zip(step.paged_decode(*kept), step.paged_decode(table, step.cover(table)), strict=True)
        return kernels.merge_partials(jnp.stack(outs), jnp.stack(sums))[0]


@in_a_mode
def test_a_policy_of_ones_own_decodes(lm):
    samples = lm.generate(tiny_prompts(2, first=30), sampling=GREEDY, attention=Own())
    assert [len(sample.output_tokens) for sample in samples] == [6, 6]


@in_a_mode
def test_bfloat16_decodes(lm):
    """Where weights, cache and sums are of several dtypes."""
    half, policy = kj.load(lm.directory, dtype="bfloat16"), kj.parse_policy(POLICIES[2])
    assert len(half.generate(tiny_prompts(1, first=30), sampling=GREEDY, attention=policy)[0].output_tokens) == 6


@in_a_mode
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_dense_decoding_is_the_full_forward(lm, sampling):
    prompt = tiny_prompts(1, first=9)[0]
    (sample,) = lm.generate([prompt], sampling=sampling)
    logits = np.asarray(lm.logits([prompt + sample.output_tokens]))
    assert logits.dtype == np.float32
    best = np.argsort(-logits[0, len(prompt) - 1 : -1], axis=-1)
    allowed = 1 if sampling is GREEDY else 20
    assert all(token in best[place, :allowed] for place, token in enumerate(sample.output_tokens))


def even(logits, output, count):
    """A hook: even tokens only, and none twice."""
    tokens = jnp.arange(logits.shape[0], dtype=jnp.int32)
    twice = jnp.any((output[:, None] == tokens[None]) & (jnp.arange(output.shape[0])[:, None] < count), axis=0)
    return jnp.where((tokens % 2 == 0) & ~twice, logits, jnp.full_like(logits, -jnp.inf))


@in_a_mode
@pytest.mark.parametrize("attention", POLICIES[1:7:5])
def test_an_open_decoder_with_every_rule(lm, attention):
    decoder = lm.open(sampling=SAMPLED, attention=attention, settings=kj.EngineSettings(slots=3), max_length=96)
    rules = {"repetition_penalty": 1.2, "presence_penalty": 0.1, "stop_ids": [9], "log_probs": True}
    decoder.add(tiny_prompts(1, first=30)[0], n=2, min_tokens=2, allowed=range(3, 100), **rules)
    decoder.add(tiny_prompts(1, first=9)[0], n=2, sampling=GREEDY, hook=even)
    for sample in list(decoder):
        assert sample.output_tokens
        assert sample.log_probs is None or np.isfinite(sample.log_probs).all()
        decoder.extend(decoder.fork(sample)[0], [50, 51, 52])
    assert len(list(decoder)) == 4


@in_a_mode
def test_a_mixture_decodes(moe):
    assert len(moe.generate(tiny_prompts(1, first=9), sampling=GREEDY)[0].output_tokens) == 6
    assert np.isfinite(np.asarray(moe.logits(tiny_prompts(1, first=9)))).all()


@pytest.mark.slow
def test_decode_ops_keep_their_dtypes():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 4, 8), (2, 6, 4, 8), (2, 6, 4, 8)))
    table, lengths = np.array([[0, 1, 2], [3, 4, 5]]), np.array([10, 7])

    @jax.jit  # types are decided while it is traced
    def everything(q, k, v):
        k, v, summaries = kernels.append_kv(k, v, k.mean(axis=2), q[:, :2], q[:, 2:], table, lengths)
        out, lse = kernels.block_topk_decode(q, k, v, summaries, table, lengths, pages=3)
        logits = kernels.token_logits(q, k, table, lengths)
        mask = kernels.token_topk_mask(logits, lengths, num_kv_heads=2, tokens=100)
        masked, masked_lse = kernels.masked_decode(logits, mask, v, table, lengths)
        merged, merged_lse = kernels.merge_partials(jnp.stack([out, out]), jnp.stack([lse, lse]))
        return k, v, summaries, out, lse, logits, masked, masked_lse, merged, merged_lse

    k, v, summaries, out, lse, logits, masked, masked_lse, merged, merged_lse = everything(q, k, v)
    for array in (k, v, summaries, out, lse, logits, masked, masked_lse, merged, merged_lse):
        assert array.dtype == jnp.float32
    np.testing.assert_allclose(out, masked, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(lse, masked_lse, rtol=1e-5)
    np.testing.assert_allclose(merged_lse, lse + np.log(2).astype(np.float32), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "time"), [("lm", 300), ("moe", 12)])  # 300: more than a tile of attention
def test_gradients_of_the_forward_under_jit(kind, time, request):
    """Reverse mode against a difference quotient along one random direction, and against forward mode."""
    model = request.getfixturevalue(kind)
    tokens = jnp.asarray(tiny_prompts(1, first=time), jnp.int32)

    @jax.jit
    def loss(weights):
        logits = model.logits(tokens, weights=weights)
        return -jnp.mean(jax.nn.log_softmax(logits)[0, jnp.arange(time - 1), tokens[0, 1:]])

    gradient = jax.jit(jax.grad(loss))(model.weights)
    rng = np.random.default_rng(0)
    weights = jax.tree.map(np.asarray, model.weights)
    direction = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype) * x, weights)
    inner = sum(jax.tree.leaves(jax.tree.map(lambda a, b: np.vdot(a, b), gradient, direction)))
    forward = jax.jvp(loss, (weights,), (direction,))[1]
    np.testing.assert_allclose(inner, forward, rtol=1e-3)
    step = np.float32(1e-4)  # small: a mixture's router jumps from one expert to another
    moved = [jax.tree.map(lambda x, d, s=sign: x + s * step * d, weights, direction) for sign in (1, -1)]
    np.testing.assert_allclose(inner, (loss(moved[0]) - loss(moved[1])) / (2 * step), rtol=0.05, atol=1e-3)


OPS = {
    "paged_decode": lambda q, k, table, lengths: kernels.paged_decode(q, k, k, table, lengths)[0],
    "token_logits": lambda q, k, table, lengths: kernels.token_logits(q, k, table, lengths),
    "select_pages": lambda q, k, table, lengths: kernels.block_topk_decode(
        q, k, k, k[:, :, 0], table, lengths, pages=3
    )[0],
    "append_kv": lambda q, k, table, lengths: kernels.append_kv(k, k, None, q[:, :2], q[:, :2], table, lengths)[0],
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("transform", [jax.grad, jax.jacfwd, lambda f: jax.jit(jax.grad(f))])
def test_decode_ops_refuse_to_be_differentiated(op, transform):
    arrays = jnp.ones((1, 4, 8)), jnp.ones((2, 3, 4, 8)), jnp.array([[0, 1, 2]]), jnp.array([9])
    call = functools.partial(OPS[op], table=arrays[2], lengths=arrays[3])
    with pytest.raises(NotImplementedError, match=f"^{op} is an op of decoding and has no gradient") as refused:
        transform(lambda q: jnp.sum(call(q, arrays[1])))(arrays[0])
    assert "\n" not in str(refused.value)


def test_ops_under_vmap_and_scan():
    rng = np.random.default_rng(1)
    q = jnp.asarray(rng.standard_normal((3, 2, 4, 8)), jnp.float32)
    k = jnp.asarray(rng.standard_normal((2, 6, 4, 8)), jnp.float32)
    table, lengths = jnp.array([[0, 1, 2], [3, 4, 5]], jnp.int32), jnp.array([10, 7], jnp.int32)
    one = lambda q: kernels.paged_decode(q, k, k, table, lengths)[0]  # noqa: E731
    plain = np.stack([np.asarray(one(each)) for each in q])
    np.testing.assert_allclose(jax.vmap(one)(q), plain, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(jax.lax.scan(lambda carry, each: (carry, one(each)), None, q)[1], plain)


@in_a_mode
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_speculation_and_replays(lm, sampling):
    """Rounds of drafts and dense passes; agreement and chosen pages of what they gave."""
    policy, prompts = POLICIES[1], tiny_prompts(3, first=14)
    settings = kj.EngineSettings(slots=3, speculate=2)
    samples = lm.generate(prompts, attention=policy, sampling=sampling, settings=settings, agreement=True)
    for sample in samples:
        assert sum(sample.rounds) == len(sample.output_tokens) - 1
        assert ((sample.agreement.overlap > 0) & (sample.agreement.overlap < 1 + 1e-5)).all()
    if not sampling.temperature:
        dense = lm.generate(prompts, sampling=sampling)
        assert [sample.output_tokens for sample in samples] == [sample.output_tokens for sample in dense]
    chosen = lm.chosen_pages(prompts[0], samples[0].output_tokens, attention=policy)
    assert ((chosen.mass > 0) & (chosen.mass < 1 + 1e-5)).all()
