"""Agreement of a policy with dense attention: both sides against float64 forwards of the same tokens."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from masked_forward import masked_logits
from scipy.special import log_softmax
from tiny import tiny_config, tiny_prompts, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.attention.policies.base import PolicyError
from kinetics_jax.engine.agreement import Agreement, agreements
from kinetics_jax.engine.replay import Drawn
from kinetics_jax.engine.sampling import problem_hash, sample_keys, seed_key
from kinetics_jax.settings import RequestError

RANDOM = kj.RandomBlocks(pages=4, page_size=4, dense_layers=())
POLICIES = [
    kj.Dense(),
    kj.BlockTopK(pages=4, page_size=4, dense_layers=(1,)),
    RANDOM,
    kj.TokenTopK(budget=9),
]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(), seed=5), dtype="float32")


def compare(lm, samples, policy, **options) -> list[Agreement]:
    return list(agreements(lm.graph, lm.weights, lm.config, samples, policy=policy, **options))


def expected(lm, sample: Drawn, policy) -> Agreement:
    """From float64 forwards, one of them masked as the policy's own test says."""
    key = sample_keys(seed_key(7), jnp.uint32(problem_hash(sample.problem)), jnp.array([sample.sample]))[0]
    text, prompt = [*sample.prompt, *sample.tokens], len(sample.prompt)
    sparse, dense = (
        log_softmax(masked_logits(lm, text, prompt, rule, key)[prompt - 1 : -1].astype(np.float64), axis=-1)
        for rule in (policy, None)
    )
    places = np.arange(len(sample.tokens)), np.array(sample.tokens)
    overlap = np.minimum(np.exp(sparse), np.exp(dense)).sum(-1)
    return Agreement(sparse[places], dense[places], overlap, sparse.argmax(-1) == dense.argmax(-1))


@dataclasses.dataclass(frozen=True)
class Nothing(kj.AttentionPolicy):
    """Scores with NaN."""

    page_size: int = 4
    kind, price = "nothing_but_nan", "measured"

    def choose(self, step):
        scores = jnp.full((step.batch, step.kv_heads, step.max_pages), jnp.nan)
        return step.choose_pages(scores, pages=3, sink_pages=1, recent_pages=1)


@pytest.mark.parametrize("replay", ["agreement", "chosen_pages"])
def test_a_policy_that_chooses_what_it_may_not_has_no_numbers(lm, replay):
    with pytest.raises(PolicyError, match=r"nothing_but_nan: in layer 0 it scores pages with NaN.*\(sample 0\)"):
        getattr(lm, replay)(tiny_prompts(1, first=21)[0], [50, 51, 52], attention=Nothing())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"at": 1}, "at must be a list of output positions, got 1"),
        ({"at": [1.5]}, "an output position of at must be a whole number"),
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"sample": "a"}, "a sample's index must be a whole number"),
        ({"sample": 2**31}, "samples must name indices in 0"),
        ({"problem": 3}, "sample 0: problem must be a text, got 3"),
    ],
)
def test_what_cannot_be_replayed(lm, options, says):
    with pytest.raises(RequestError, match=says):
        lm.chosen_pages([5, 6, 7], [50, 51, 52], attention="block_topk:pages=4,page_size=4", **options)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_both_distributions_are_those_of_a_float64_forward(lm, policy):
    """Samples of several lengths side by side, across pages, parts and prompts of whole pages."""
    rng = np.random.default_rng(3)
    prompts = [tiny_prompts(1, first=length)[0] for length in (5, 16, 21)]
    samples = [
        Drawn(prompt, rng.integers(4, 131, count).tolist(), f"p{index}", index)
        for index, (prompt, count) in enumerate(zip(prompts, (30, 17, 1), strict=True))
    ]
    found = compare(lm, samples, policy, seed=7, rows=2)
    assert len(found) == 3
    for sample, agreement in zip(samples, found, strict=True):
        want = expected(lm, sample, policy)
        for name in ("logprobs", "dense_logprobs", "overlap"):
            np.testing.assert_allclose(getattr(agreement, name), getattr(want, name), atol=2e-5)
        assert (agreement.top1 == want.top1).all()
    if policy == kj.Dense():
        np.testing.assert_allclose(np.concatenate([agreement.overlap for agreement in found]), 1, atol=1e-5)
    else:
        assert min(agreement.overlap.min() for agreement in found[:2]) < 0.9


@pytest.mark.slow
def test_a_summary_is_over_tokens(lm):
    """Of several samples: the percentile of all their tokens, the mean ratio, the share of equal best tokens."""
    first = Agreement(np.log([0.5, 0.5]), np.log([0.25, 0.5]), np.array([0.5, 1.0]), np.array([True, False]))
    second = Agreement(np.log([0.5]), np.log([0.5]), np.array([0.8]), np.array([True]))
    summary = Agreement.joined([first, second]).summary()
    assert summary == pytest.approx({"agreement": 2.3 / 3, "agreement_p5": 0.53, "top1": 2 / 3, "ratio": 2.5 / 3})
    assert first.ratios == pytest.approx([0.5, 1.0])


@pytest.mark.slow
def test_a_language_model_offers_it(lm):
    prompt, policy = tiny_prompts(1, first=21)[0], "block_topk:pages=4,page_size=4,dense_layers=none"
    drawn = lm.generate([prompt], attention=policy, sampling=kj.Sampling(max_tokens=20, seed=3))[0]
    agreement = lm.agreement(prompt, drawn.output_tokens, attention=policy, seed=3)
    assert len(agreement.overlap) == len(drawn.output_tokens)
    assert agreement.overlap[0] == pytest.approx(1, abs=1e-6)
    nothing = lm.agreement(prompt, [], attention=policy)
    assert len(nothing.logprobs) == 0
    assert nothing.summary() == {}
    with pytest.raises(RequestError, match="exceed the model's 512 positions"):
        lm.agreement(prompt, [5] * 500, attention=policy)


@pytest.mark.slow
def test_a_long_prompt_in_chunks(tmp_path_factory):
    """Prompts beyond a prefill chunk, of which the last one is padded, in both caches."""
    config = tiny_config(max_position_embeddings=4096)
    long = kj.load(write_checkpoint(tmp_path_factory.mktemp("long"), config, seed=5), dtype="float32")
    prompt = tiny_prompts(1, first=2200)[0]
    agreement = long.agreement(prompt, [5, 6, 7, 8], attention="block_topk:pages=300,page_size=16")
    dense = log_softmax(np.asarray(long.logits([[*prompt, 5, 6, 7, 8]])[0, -5:-1]), axis=-1)
    np.testing.assert_allclose(agreement.dense_logprobs, dense[range(4), [5, 6, 7, 8]], atol=1e-4)
    np.testing.assert_allclose(agreement.overlap, 1, atol=1e-4)  # a budget that holds everything


@pytest.mark.slow
def test_generated_samples_have_it_on_request(lm):
    """The same as of the sample's tokens afterwards, with the sample's own random draws."""
    prompts = tiny_prompts(2, first=21)
    policy, sampling = RANDOM, kj.Sampling(max_tokens=20, seed=3)
    samples = lm.generate(prompts, n=2, attention=policy, sampling=sampling, agreement=True)
    for sample in samples:
        assert sample.agreement is not None
        again = lm.agreement(
            prompts[sample.problem], sample.output_tokens, attention=policy, seed=3,
            problem=sample.id, sample=sample.sample,
        )  # fmt: skip
        np.testing.assert_allclose(sample.agreement.overlap, again.overlap, atol=1e-5)
        assert sample.agreement.overlap.min() < 0.9
    assert lm.generate(prompts, attention=policy, sampling=sampling)[0].agreement is None


@pytest.mark.slow
@pytest.mark.parametrize("policy", [kj.BlockTopK(pages=4, page_size=4, dense_layers=()), RANDOM], ids=str)
def test_an_open_decoder_offers_it(lm, policy):
    """Of its samples, and of forks where nothing is random, with the log-probabilities that it drew them by."""
    with lm.open(attention=policy, sampling=kj.Sampling(max_tokens=12, seed=3)) as decoder:
        decoder.add(tiny_prompts(1, first=21)[0], n=2, log_probs=True)
        samples = list(decoder)
        if policy != RANDOM:
            for fork in decoder.fork(samples[0], 2):
                decoder.extend(fork, [7, 8, 9], max_tokens=6)
            samples += list(decoder)
            assert len(samples) == 4
        for sample in samples:
            agreement = decoder.agreement(sample)
            drawn = np.array(sample.log_probs)
            known = ~np.isnan(drawn)
            assert known.sum() >= 12
            np.testing.assert_allclose(agreement.logprobs[known], drawn[known], atol=2e-5)
            assert agreement.overlap.min() < 0.95
