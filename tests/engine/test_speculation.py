"""Self-speculation is lossless: greedy to the token, sampling by chi-square; of a refused draft nothing is left."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from kinetics_kernels.reference import page_summary
from scipy.stats import chi2
from test_carried_state import PROMPT, ByCount, ByLength
from tiny import tiny_config, tiny_prompts, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.attention.cache import empty_cache
from kinetics_jax.attention.causal import full_attend
from kinetics_jax.compile_cache import watch_compiles
from kinetics_jax.engine import speculative_decoding
from kinetics_jax.engine.engine import Engine, Request
from kinetics_jax.engine.programs import Slots
from kinetics_jax.engine.sampling import IDLE, NONFINITE, filter_logits, sample_keys, seed_key
from kinetics_jax.engine.speculation import judge, speculate_chunk
from kinetics_jax.engine.speculative_decoding import SpeculativeDecoding, drafts_of
from kinetics_jax.models.qwen3 import Qwen3
from kinetics_jax.settings import EngineSettings, RequestError

SPARSE = kj.BlockTopK(pages=4, page_size=4, dense_layers=())
WHOLE = kj.BlockTopK(pages=32, page_size=4, dense_layers=())  # of which every draft is kept
GREEDY = kj.Sampling(temperature=0, max_tokens=40)
HOT = kj.Sampling(temperature=1.0, top_p=0.95, max_tokens=40, seed=3)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(), seed=5), dtype="float32")


@pytest.fixture(scope="module")
def ending(tmp_path_factory):
    """The same weights, with four end tokens."""
    config = tiny_config(eos_token_id=list(range(3, 131, 40)))
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("ending"), config, seed=5), dtype="float32")


def speculate(lm, requests, policy, sampling, ahead=3, *, slots=5, chunk=9, **settings) -> dict:
    settings = EngineSettings(slots=slots, chunk=chunk, speculate=ahead, **settings)
    engine = lm.engine(sampling=sampling, attention=policy, settings=settings)
    return {(sample.problem, sample.sample): sample for sample in engine.run(requests)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("policy", "ahead"),
    [(SPARSE, 3), (kj.RandomBlocks(pages=4, page_size=4), 1), (kj.TokenTopK(budget=9), 4), (WHOLE, 3)],
)
def test_greedy_equals_dense_to_the_token(ending, policy, ahead):
    """Prompts across page edges, refilled slots, ends and limits in the middle of a round."""
    prompts = tiny_prompts(14, first=3)
    dense = ending.generate(prompts, sampling=GREEDY)
    assert {sample.finish_reason for sample in dense} == {"stop", "length"}
    requests = [Request(str(i), prompt, [0]) for i, prompt in enumerate(prompts)]
    found = speculate(ending, requests, policy, GREEDY, ahead)
    for index, sample in enumerate(dense):
        ours = found[str(index), 0]
        assert (ours.output_tokens, ours.finish_reason) == (sample.output_tokens, sample.finish_reason)
        assert sum(ours.rounds) == len(sample.output_tokens) - 1
        assert ours.drafted == drafts_of(ours.rounds, ahead, 40).sum()
        assert max(ours.rounds, default=1) <= ahead + 1
        if policy == WHOLE:  # rounds are full but for the last
            assert set(ours.rounds[:-1]) <= {ahead + 1}
    for sample in found.values():
        assert (sample.attended_tokens, sample.summary_vectors) == what_is_read(sample, policy, ahead)
    if policy == SPARSE:
        lengths = {length for sample in found.values() for length in sample.rounds}
        assert lengths == {1, 2, 3, 4}, "rows of a batch keep different numbers of drafts"


@pytest.mark.slow
def test_samples_do_not_depend_on_company_or_a_dry_pool(lm):
    requests = [Request(f"p{index}", prompt, range(2)) for index, prompt in enumerate(tiny_prompts(6, first=9))]
    want = speculate(lm, requests, SPARSE, HOT, slots=6)
    assert len({tuple(sample.output_tokens) for sample in want.values()}) == 12

    def tokens(samples: dict) -> dict:
        return {key: (sample.output_tokens, sample.rounds) for key, sample in samples.items()}

    assert tokens(speculate(lm, requests[::-1], SPARSE, HOT, slots=6)) == tokens(want)
    assert tokens(speculate(lm, requests, SPARSE, HOT, slots=6, chunk=5, num_pages=30)) == tokens(want)


def what_is_read(sample, policy, ahead: int) -> tuple[int, int]:
    """KV tokens and summary vectors of a sample of two layers and two KV heads, by the policy's own formula."""
    tokens = vectors = 0.0
    stored = float(sample.prompt_tokens)
    for given, drafts in zip(sample.rounds, drafts_of(sample.rounds, ahead, 40).tolist(), strict=True):
        counts = policy.counts(np.array(stored), np.array(float(drafts)), 2)
        tokens += sum(share.total for share in (counts.dense, counts.forced, counts.chosen))
        tokens += 2 * (stored + drafts + 1)
        vectors += counts.vectors.total
        stored += given
    return int(2 * tokens), int(2 * vectors)


class Poisoned(SpeculativeDecoding):
    """Before every chunk, NaN in all that no sample stored: pages nobody holds, places beyond a sample's tokens (of
    refused drafts), summaries of pages that are not full.
    """

    def _decode(self):
        (schedule,) = self.schedules
        size = schedule.page_size
        kept = np.zeros((schedule.allocator.num_pages, size), bool)
        held = [(run.pages, run.stored) for run in schedule.running.values()]
        held += [(prompt.pages, len(prompt.request.prompt)) for prompt in schedule.prompts.values()]
        for pages, stored in held:
            for place, page in enumerate(pages):
                kept[page] |= np.arange(size) < stored - place * size

        def poison(pool, mask):
            return None if pool is None else jnp.where(mask[None, ..., None], pool, jnp.nan)

        cache = self.cache
        self.cache = dataclasses.replace(
            cache,
            k=tuple(poison(pool, kept) for pool in cache.k),
            v=tuple(poison(pool, kept) for pool in cache.v),
            summaries=tuple(poison(pool, kept.all(axis=1)) for pool in cache.summaries),
        )
        return super()._decode()


@pytest.mark.slow
def test_nothing_of_a_refused_draft_is_ever_read(lm):
    requests = [Request(f"p{index}", prompt, range(2)) for index, prompt in enumerate(tiny_prompts(5, first=9))]
    engine = lm.engine(sampling=HOT, attention=SPARSE, settings=EngineSettings(slots=6, chunk=5, speculate=3))
    job = engine.check(requests)
    poisoned = {(s.problem, s.sample): s.output_tokens for s in Poisoned(engine.setup, job).run()}
    assert poisoned == {(s.problem, s.sample): s.output_tokens for s in engine.run(requests)}


@pytest.mark.slow
def test_the_cache_holds_the_dense_models_keys_alone(lm):
    """After every chunk: K and V of every stored token are those of a dense forward, summaries those of their pages."""
    checked = 0

    class Watched(SpeculativeDecoding):
        def _decode(self):
            nonlocal checked
            result = super()._decode()
            for slot, run in self.schedules[0].running.items():
                given = [int(result[0][slot])] if not run.tokens else []
                given += result[1][slot][result[1][slot] != IDLE].tolist()
                text = [*run.request.prompt, *run.tokens, *given][:-1]
                keys = dense_keys(text)
                for layer in range(lm.config.num_layers):
                    pages = np.array(run.pages)[: -(-len(text) // 4)]
                    stored = np.asarray(self.cache.k[layer])[:, pages].reshape(2, -1, 8)[:, : len(text)]
                    np.testing.assert_allclose(stored, keys[layer], atol=1e-4)
                    full = pages[: len(text) // 4]
                    summaries = np.asarray(self.cache.summaries[layer])[:, full]
                    np.testing.assert_array_equal(summaries, page_summary(self.cache.k[layer][:, full]))
                checked += len(text)
            return result

    @jax.jit
    def keys_of(tokens):
        found = []

        def attend(layer, q, k, v, state):
            found.append(jnp.swapaxes(k[0], 0, 1))
            return full_attend(layer, q, k, v, state)

        nnx.merge(lm.graph, lm.weights)(tokens, jnp.arange(64)[None], attend)
        return found

    def dense_keys(text):
        return [keys[:, : len(text)] for keys in keys_of(jnp.asarray([[*text, *[0] * (64 - len(text))]]))]

    engine = lm.engine(sampling=HOT, attention=SPARSE, settings=EngineSettings(slots=3, chunk=12, speculate=3))
    job = engine.check([Request("a", tiny_prompts(1, first=9)[0], range(3))])
    assert len(list(Watched(engine.setup, job).run())) == 3
    assert checked > 100


@pytest.mark.slow
def test_what_a_policy_carries_is_as_after_the_kept_tokens(lm):
    """A rule by the sequence's length and the same one by counting steps draft alike, kept drafts or not."""
    requests = [Request("a", tiny_prompts(1, first=PROMPT)[0], range(4))]
    by_length, by_count = (speculate(lm, requests, policy, HOT, slots=4) for policy in (ByLength(), ByCount()))
    assert [sample.rounds for sample in by_length.values()] == [sample.rounds for sample in by_count.values()]
    assert {length for sample in by_length.values() for length in sample.rounds} == {1, 2, 3, 4}


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """The p-value of Pearson's test; outcomes expected less than five times are one."""
    few = expected < 5
    counts, expected = (np.append(x[~few], x[few].sum()) for x in (counts, expected))
    if not expected[-1]:
        assert counts[-1] == 0
        counts, expected = counts[:-1], expected[:-1]
    return float(chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts) - 1))


FILTERS = [{}, {"temperature": 0.7, "top_k": 8, "top_p": 0.9}, {"top_p": 0.8}, {"min_p": 0.1, "temperature": 1.3}]


@pytest.mark.parametrize("setting", FILTERS, ids=str)
def test_kept_and_replaced_tokens_are_drawn_from_the_dense_distribution(setting):
    """Drafts from other distributions, one of them disjoint from the dense one; rows with fewer drafts."""
    rng, rows, vocab, ahead = np.random.default_rng(0), 20_000, 12, 3
    sampling = kj.Sampling(**setting)
    dense = rng.normal(0, 1.2, (ahead + 1, vocab)).astype(np.float32)
    draft = (dense[:ahead] + rng.normal(0, 1.0, (ahead, vocab))).astype(np.float32)
    p, q = (np.asarray(jax.nn.softmax(filter_logits(jnp.asarray(x), sampling))) for x in (dense, draft))
    drafts = np.stack([rng.choice(vocab, rows, p=row / row.sum()) for row in q.astype(np.float64)], axis=1)
    count = np.where(np.arange(rows) % 4 == 0, 1, ahead).astype(np.int32)
    keys = sample_keys(seed_key(0), jnp.uint32(1), jnp.arange(rows))
    each = jax.jit(judge, static_argnums=6)(
        jnp.broadcast_to(dense, (rows, *dense.shape)), jnp.broadcast_to(q, (rows, *q.shape)),
        jnp.asarray(drafts, jnp.int32), jnp.asarray(count), keys, jnp.ones(rows, jnp.int32), sampling,
    )  # fmt: skip
    kept = np.asarray(each)
    assert (kept[count == 1, 2:] == IDLE).all()
    for place in range(ahead + 1):
        here = kept[kept[:, place] != IDLE, place]
        counts = np.bincount(here, minlength=vocab)
        assert chi_square(counts, p[place].astype(np.float64) * len(here)) > 1e-3
    overlap = np.minimum(p[0], q[0]).sum()
    assert abs((kept[:, 1] != IDLE).mean() - overlap) < 4 * 0.5 / rows**0.5


def test_the_sum_of_less_than_nothing_is_the_dense_distribution():
    """Drafts from p itself are all kept; a draft that nothing could be drawn from, and NaN logits, are never kept."""
    logits = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
    rows = jnp.broadcast_to(logits, (3, 2, 4)).at[1, 0].set(jnp.nan)
    chances = jnp.broadcast_to(jnp.exp(logits), (3, 1, 4)).at[2].set(jnp.nan)
    keys = sample_keys(seed_key(0), jnp.uint32(1), jnp.arange(3))
    for sampling in (kj.Sampling(), kj.Sampling(top_k=3), kj.Sampling(temperature=0)):
        drafts = jnp.full((3, 1), 3, jnp.int32)
        tokens = np.asarray(
            judge(rows, chances, drafts, jnp.ones(3, jnp.int32), keys, jnp.ones(3, jnp.int32), sampling)
        )
        assert tokens[0, 0] == 3
        assert tokens[0, 1] >= 0
        assert tokens[1].tolist() == [NONFINITE, IDLE]
        if sampling.temperature:
            assert tokens[2, 0] >= 0
            assert tokens[2, 1] == IDLE


@pytest.mark.slow
def test_samples_have_the_dense_distribution(lm):
    """Three tokens behind a prompt: all 5 x 5 x 5 texts against their probabilities by full forwards."""
    prompt, many = tiny_prompts(1, first=21)[0], 1500
    sampling = kj.Sampling(temperature=1.5, top_k=5, max_tokens=4, seed=11)
    found = speculate(lm, [Request("a", prompt, range(many))], kj.BlockTopK(pages=3, page_size=4, dense_layers=()),
                      sampling, 3, slots=100, chunk=4)  # fmt: skip
    texts = [tuple(sample.output_tokens[:3]) for sample in found.values()]
    probability = {(): 1.0}
    for _ in range(3):
        longer = {}
        open_texts = [text for text in probability if not text or text[-1] != 3]
        logits = np.asarray(lm.logits([[*prompt, *text] for text in open_texts]))[:, -1]
        chances = np.asarray(jax.nn.softmax(filter_logits(jnp.asarray(logits), sampling)), np.float64)
        for text, row in zip(open_texts, chances, strict=True):
            longer |= {(*text, token): probability[text] * row[token] for token in np.flatnonzero(row)}
        probability = longer | {text: p for text, p in probability.items() if text and text[-1] == 3}
    assert sum(probability.values()) == pytest.approx(1)
    assert set(texts) <= set(probability)
    counts = np.array([texts.count(text) for text in probability])
    assert chi_square(counts, many * np.array(list(probability.values()))) > 1e-3
    drafted = sum(sample.drafted for sample in found.values())
    kept = sum(sum(sample.rounds) - len(sample.rounds) for sample in found.values())
    assert 0.2 < kept / drafted < 0.95, "some drafts are refused, some are kept"


@pytest.mark.slow
def test_the_host_visits_once_per_chunk_and_nothing_is_compiled_twice(lm, monkeypatch):
    requests = [Request("a", [5, 6, 7], range(4))]
    speculate(lm, requests, SPARSE, HOT, slots=4, chunk=12)
    visits, real = [], jax.device_get
    monkeypatch.setattr(speculative_decoding.jax, "device_get", lambda tree: visits.append(1) or real(tree))
    with watch_compiles() as compiled:
        found = speculate(lm, [Request("b", [9, 8, 7, 6], range(4))], SPARSE, HOT, slots=4, chunk=12)
    assert compiled.programs == []
    assert len(visits) <= max(len(sample.rounds) for sample in found.values()) / 3 + 1


@pytest.mark.slow
def test_a_chunk_copies_no_cache(lm):
    config = kj.ModelConfig.from_hf(tiny_config(max_position_embeddings=65_536))
    graph, weights = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0))))
    slots, max_pages = 4, 4096
    cache = jax.eval_shape(lambda: empty_cache(SPARSE, config, num_pages=slots * max_pages, dtype=jnp.float32))
    rows = jax.eval_shape(lambda: Slots.idle(slots, seed_key(0)))
    table, scalar = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((slots, max_pages), ()))
    memory = speculate_chunk.lower(
        graph, weights, cache, rows, table, scalar, policy=SPARSE, sampling=HOT, eos=(3,), chunk=8, ahead=3
    ).compile().memory_analysis()  # fmt: skip
    pool_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((cache.k, cache.v)))
    assert memory.alias_size_in_bytes >= pool_bytes
    assert memory.temp_size_in_bytes < 0.2 * pool_bytes  # as of a decode chunk: the summaries that are scored


def test_what_cannot_speculate_is_refused(lm):
    for policy, settings, words in (
        (kj.Dense(), {"speculate": 3}, "dense in every layer"),
        (SPARSE, {"speculate": 3, "shared_prefix": True}, "does not go with speculate"),
    ):
        engine_settings = EngineSettings(slots=4, **settings)
        with pytest.raises(RequestError, match=words):
            lm.generate([[5, 6]], attention=policy, settings=engine_settings, sampling=GREEDY)
    for settings, words in (
        ({"speculate": 3, "chunk": 3}, "gives up to 4 tokens"),
        ({"speculate": -1}, "must be in 0 … 64"),
        ({"speculate": 2.0}, "whole number"),
    ):
        with pytest.raises(RequestError, match=words):
            EngineSettings(**settings)


@pytest.mark.slow
def test_repetition_and_ids_that_may_be_drawn(lm):
    """A stop by repetition in the middle of a round; ids without a token are drafted by nobody and drawn by nobody."""
    prompts = tiny_prompts(6, first=9)
    known = np.arange(131) % 3 > 0
    sampling = kj.Sampling(temperature=0, max_tokens=120, repetition_window=16, known_ids_only=True)
    found = {}
    for ahead, policy in ((0, kj.Dense()), (3, SPARSE)):
        settings = EngineSettings(slots=6, chunk=12, speculate=ahead)
        options = {"policy": policy, "sampling": sampling, "settings": settings, "known_ids": known}
        engine = Engine(lm.graph, lm.weights, lm.config, **options)
        requests = [Request(str(index), prompt, [0]) for index, prompt in enumerate(prompts)]
        found[ahead] = {sample.problem: sample for sample in engine.run(requests)}
    for problem, dense in found[0].items():
        ours = found[3][problem]
        assert (ours.output_tokens, ours.finish_reason) == (dense.output_tokens, dense.finish_reason)
        assert known[ours.output_tokens].all()
    assert "repetition" in {sample.finish_reason for sample in found[3].values()}
