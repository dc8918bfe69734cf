"""Decoding: cached equals uncached, samples do not depend on company, nothing retraces, nothing is copied."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_repetition import first_repetition
from tiny import tiny_config, tiny_prompts, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.attention.cache import PagedCache, write_prompt
from kinetics_jax.attention.causal import prefill_attend
from kinetics_jax.compile_cache import watch_compiles
from kinetics_jax.engine import decoding as decoding_module
from kinetics_jax.engine.decoding import Decoding
from kinetics_jax.engine.engine import Engine, Request
from kinetics_jax.engine.programs import decode_chunk
from kinetics_jax.engine.sampling import seed_key
from kinetics_jax.engine.slots import Slots
from kinetics_jax.settings import EngineSettings, RequestError

SPARSE = kj.BlockTopK(pages=4, page_size=4, dense_layers=())
MIXED = kj.BlockTopK(pages=4, page_size=4)  # its first layers dense
POLICIES = [kj.Dense(), SPARSE, MIXED]
ALIKE = [kj.Dense(), SPARSE, pytest.param(MIXED, marks=pytest.mark.exhaustive)]  # random blocks here are mixed, too
HOT = kj.Sampling(temperature=1.0, top_p=0.95, max_tokens=40, seed=3)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(), seed=5), dtype="float32")


def outputs(samples) -> dict:
    return {(sample.problem, sample.sample): sample.output_tokens for sample in samples}


def begin(engine: Engine, requests) -> Decoding:
    return engine.start(engine.check(requests))


def stream(lm, requests, policy, sampling=HOT, **settings) -> dict:
    engine = lm.engine(sampling=sampling, attention=policy, settings=EngineSettings(**settings))
    return outputs(engine.run(requests))


@pytest.mark.slow
@pytest.mark.parametrize("policy", [kj.Dense(), kj.BlockTopK(pages=32, page_size=4, dense_layers=())])
def test_cached_greedy_equals_the_argmax_chain(lm, policy):
    """Prompts of every length across page edges; a budget that holds everything is dense attention."""
    prompts = tiny_prompts(40)
    greedy = kj.Sampling(temperature=0, max_tokens=24)
    for sample, prompt in zip(lm.generate(prompts, sampling=greedy, attention=policy), prompts, strict=True):
        text = prompt + sample.output_tokens
        padded = np.zeros((1, 64), np.int32)  # one shape for every prompt; causal attention ignores what follows
        padded[0, : len(text)] = text
        chain = np.asarray(lm.logits(padded))[0].argmax(-1)[len(prompt) - 1 : len(text) - 1]
        assert sample.output_tokens == chain.tolist()
        ended = sample.output_tokens[-1] == 3
        assert sample.finish_reason == ("stop" if ended else "length")
        assert ended or len(sample.output_tokens) == 24
        assert 3 not in sample.output_tokens[:-1]


@pytest.mark.slow
def test_group_sizes_and_batch_shapes_agree(tmp_path):
    """Batch 1 equals batch N up to rounding: greedy tokens agree for every GQA group."""
    for group in (1, 8):
        config = tiny_config(num_attention_heads=8, num_key_value_heads=8 // group)
        lm = kj.load(write_checkpoint(tmp_path / str(group), config, seed=group), dtype="float32")
        requests = [Request(str(i), prompt, [0]) for i, prompt in enumerate(tiny_prompts(6, first=15))]
        greedy = kj.Sampling(temperature=0, max_tokens=16)
        assert stream(lm, requests, kj.Dense(), greedy, slots=1) == stream(lm, requests, kj.Dense(), greedy, slots=6)


@pytest.mark.slow
@pytest.mark.parametrize("policy", ALIKE, ids=str)
def test_samples_do_not_depend_on_order_refill_or_neighbours(lm, policy):
    prompts = tiny_prompts(12, first=3)
    requests = [Request(f"p{index}", prompt, range(3)) for index, prompt in enumerate(prompts)]
    reference = stream(lm, requests, policy, slots=8)
    assert len(reference) == 36
    assert len({tuple(tokens) for tokens in reference.values()}) > 30
    assert stream(lm, requests[::-1], policy, slots=8) == reference
    assert stream(lm, requests, policy, slots=8, chunk=5, num_pages=40) == reference
    alone = stream(lm, [Request("p4", prompts[4], [2])], policy, slots=8)
    assert alone == {("p4", 2): reference["p4", 2]}
    order = np.random.default_rng(0).permutation(len(requests))
    shuffled = [Request(requests[i].problem, requests[i].prompt, [2, 0, 1]) for i in order]
    assert stream(lm, shuffled, policy, slots=8) == reference


@pytest.mark.slow
@pytest.mark.parametrize("policy", [*ALIKE, kj.RandomBlocks(pages=4, page_size=4)], ids=str)
def test_a_pool_that_runs_dry_changes_no_sample(lm, policy):
    """Samples preempted and continued, prompts prefilled twice, pages elsewhere: the same bits."""
    requests = [Request(f"p{i}", prompt, range(3)) for i, prompt in enumerate(tiny_prompts(6, first=9))]
    reference = stream(lm, requests, policy, slots=6)
    pool = 160 // policy.page_size
    engine = lm.engine(sampling=HOT, attention=policy, settings=EngineSettings(slots=6, chunk=6, num_pages=pool))
    decoding = begin(engine, requests)
    assert outputs(decoding.run()) == reference
    assert decoding.counts.preempted > 3
    assert decoding.counts.drawn == sum(len(tokens) - 1 for tokens in reference.values())
    assert decoding.counts.busy <= decoding.counts.offered
    assert decoding.schedules[0].allocator.free == pool
    least = -(-51 // policy.page_size) + 1  # one sample behind the longest of these prompts
    tight = lm.engine(sampling=HOT, attention=policy, settings=EngineSettings(slots=6, chunk=6, num_pages=least))
    some = [dataclasses.replace(request, samples=[0, 2]) for request in requests[:3]]
    expected = {key: tokens for key, tokens in reference.items() if key[0] in ("p0", "p1", "p2") and key[1] != 1}
    assert outputs(tight.run(some)) == expected


@pytest.fixture(scope="module")
def longer(tmp_path_factory):
    config = tiny_config(max_position_embeddings=1024)
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("longer"), config, seed=5), dtype="float32")


@pytest.mark.slow
@pytest.mark.parametrize("policy", [kj.Dense(), kj.BlockTopK(pages=300, page_size=3)], ids=str)
@pytest.mark.parametrize("lengths", [(1, 255, 256), (257, 400, 511)], ids=str)
def test_a_long_prompt_in_chunks_is_the_whole_one(longer, policy, lengths):
    """Chunks of 256 tokens (258 at a page size of 3): every place of a last token, NaN in pages nobody holds."""
    prompts = {length: tiny_prompts(1, first=length + 256)[0] for length in lengths}
    prompts["short"] = prompts[lengths[0]][:5]
    greedy = kj.Sampling(temperature=0, max_tokens=8)
    settings = EngineSettings(slots=2, prefill_chunk=100)
    engine = longer.engine(sampling=greedy, attention=policy, settings=settings)
    decoding = begin(engine, [Request(str(name), prompt, [0]) for name, prompt in prompts.items()])
    decoding.cache = jax.tree.map(lambda pool: jnp.full_like(pool, jnp.nan), decoding.cache)
    drawn = outputs(decoding.run())
    assert len(drawn) == 4
    for name, start in prompts.items():
        text = start + drawn[str(name), 0]
        padded = np.zeros((1, 1024), np.int32)
        padded[0, : len(text)] = text
        chain = np.asarray(longer.logits(padded))[0].argmax(-1)[len(start) - 1 : len(text) - 1]
        assert drawn[str(name), 0] == chain.tolist()


@pytest.mark.slow
def test_seed_and_problem_change_the_draws(lm):
    prompt = tiny_prompts(1, first=9)[0]
    base = stream(lm, [Request("a", prompt, [0])], kj.Dense(), slots=4)["a", 0]
    assert stream(lm, [Request("b", prompt, [0])], kj.Dense(), slots=4)["b", 0] != base
    other = dataclasses.replace(HOT, seed=4)
    assert stream(lm, [Request("a", prompt, [0])], kj.Dense(), other, slots=4)["a", 0] != base


@pytest.mark.slow
def test_steady_state_compiles_nothing(lm):
    """After one run, other prompts, seeds, lengths, chunks of time and refills reuse the same three programs."""
    requests = [Request(f"p{i}", prompt, range(2)) for i, prompt in enumerate(tiny_prompts(30, first=1))]
    stream(lm, requests, SPARSE, slots=4)
    others = [Request(f"q{i}", prompt, range(3)) for i, prompt in enumerate(tiny_prompts(26, seed=9, first=1))]
    with watch_compiles() as compiled:
        stream(lm, others, SPARSE, dataclasses.replace(HOT, seed=11), slots=4)
    assert compiled.programs == []


@pytest.mark.slow
def test_one_host_visit_per_chunk(lm, monkeypatch):
    """The host fetches once per chunk, never per token."""
    visits = []
    real = jax.device_get
    monkeypatch.setattr(decoding_module.jax, "device_get", lambda tree: visits.append(1) or real(tree))
    drawn = stream(lm, [Request("a", [5, 6, 7], range(4))], kj.Dense(), slots=4, chunk=10)
    longest = max(map(len, drawn.values()))
    assert len(visits) <= -(-longest // 10) + 1


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_decode_chunk_copies_no_cache(policy):
    """The compiled chunk aliases its pools, and its temporaries are small beside them."""
    from flax import nnx

    from kinetics_jax.attention.cache import summary_layers
    from kinetics_jax.models.qwen3 import Qwen3

    config = kj.ModelConfig.from_hf(tiny_config(max_position_embeddings=65_536))
    graph, weights = nnx.split(nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0))))
    page_size, slots, max_pages = 4, 4, 4096
    cache = jax.eval_shape(
        lambda: PagedCache.create(
            config,
            num_pages=slots * max_pages,
            page_size=page_size,
            dtype=jnp.float32,
            summary_layers=summary_layers(policy, config.num_layers),
        )
    )
    rows = jax.eval_shape(lambda: Slots.idle(slots, seed_key(0)))
    table = jax.ShapeDtypeStruct((slots, max_pages), jnp.int32)
    compiled = decode_chunk.lower(
        graph, weights, cache, rows, table, jax.ShapeDtypeStruct((), jnp.int32),
        policy=policy, sampling=HOT, eos=(3,), chunk=8,
    ).compile()  # fmt: skip
    memory = compiled.memory_analysis()
    pool_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((cache.k, cache.v)))
    assert memory.alias_size_in_bytes >= pool_bytes
    # What selection scores: one gathered summary per page and KV head of a layer, a quarter of the keys' size here.
    assert memory.temp_size_in_bytes < (0.05 if policy == kj.Dense() else 0.2) * pool_bytes


def test_prefill_and_decode_agree_to_the_bit_on_summaries(lm):
    """A page closed by prefill and the same page closed token by token hold the same summary."""
    rng = np.random.default_rng(0)
    length, size = 24, 4
    keys = jnp.asarray(rng.standard_normal((length, 2, 8)), jnp.float32)
    empty = PagedCache.create(lm.config, num_pages=8, page_size=size, dtype=jnp.bfloat16, summary_layers=frozenset({0}))
    pages = jnp.arange(8, dtype=jnp.int32)[: length // size]
    written = jax.jit(
        lambda c: c.with_layer(0, *write_prompt(c.pools(0), keys, keys, pages, jnp.int32(length), c.summary))
    )(empty)

    import kinetics_kernels as kernels

    append = jax.jit(kernels.append_kv)
    pools = (empty.k[0], empty.v[0], empty.summaries[0])
    for position in range(length):
        new = keys[position][None]
        pools = append(*pools, new, new, pages[None], jnp.array([position + 1], jnp.int32))
    np.testing.assert_array_equal(written.k[0], pools[0])
    np.testing.assert_array_equal(written.summaries[0], pools[2])
    assert np.abs(np.asarray(pools[2], np.float32)[:, :6]).min() > 0


@pytest.mark.slow
def test_prefill_ignores_what_lies_beyond_the_prompt(lm):
    """Other padding tokens give the same logits and the same cache where it counts."""
    from flax import nnx

    @jax.jit
    def forward(weights, tokens, cache):
        attend = prefill_attend(jnp.array([4, 1, 0, -1]), jnp.int32(10))
        return nnx.merge(lm.graph, weights)(tokens, jnp.arange(16)[None], attend, cache)

    def run(padding: int):
        tokens = np.full((1, 16), padding, np.int32)
        tokens[0, :10] = np.arange(10, 20)
        cache = PagedCache.create(lm.config, num_pages=6, page_size=4, dtype=jnp.float32)
        hidden, cache = forward(lm.weights, tokens, cache)
        return np.asarray(hidden)[0, :10], np.asarray(cache.k[1])

    (first, pool), (second, other_pool) = run(0), run(77)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(pool[:, [4, 1]], other_pool[:, [4, 1]])
    np.testing.assert_array_equal(pool[:, [2, 3, 5]], 0)  # pages that are not this prompt's


@pytest.mark.slow
def test_a_prompt_is_prefilled_once_and_its_full_pages_are_shared(lm, monkeypatch):
    calls = []
    real = decoding_module.prefill
    monkeypatch.setattr(decoding_module, "prefill", lambda *a: calls.append(1) or real(*a))
    engine = Engine(lm.graph, lm.weights, lm.config, policy=SPARSE, sampling=HOT, settings=EngineSettings(slots=6))
    decoding = begin(engine, [Request("a", list(range(10, 20)), range(6))])
    running = decoding.run()
    finished = [next(running)]
    tables = np.array([row[:3] for row in decoding.table if row[0] >= 0])
    assert len(np.unique(tables[:, 0])) == len(np.unique(tables[:, 1])) == 1  # two full pages, one copy
    assert len(np.unique(tables[:, 2])) == len(tables)  # the partial page is each sample's own
    finished += list(running)
    assert len(calls) == decoding.counts.prefills == 1
    assert len(finished) == 6
    (schedule,) = decoding.schedules
    assert schedule.allocator.free == schedule.allocator.num_pages  # everything was given back


@pytest.mark.parametrize(
    ("request_", "settings", "says"),
    [
        (Request("a", [], [0]), {}, "holds no token"),
        (Request("a", [1] * 500, [0]), {}, "exceed the model's 512 positions"),
        (Request("a", [1] * 30, [0]), {"num_pages": 4}, "raise num_pages or lower max_tokens"),
        (Request("a", [131], [0]), {}, "token ids must lie in"),
    ],
)
def test_what_cannot_fit_is_refused(lm, request_, settings, says):
    with pytest.raises(RequestError, match=says):
        stream(lm, [request_], kj.Dense(), slots=2, **settings)


@pytest.mark.slow
@pytest.mark.parametrize("policy", [kj.Dense(), SPARSE], ids=str)
def test_two_runs_of_one_engine_at_once(lm, policy):
    """Each has its own cache, slots and counts: sample by sample in turns, and a third that is closed half-way."""
    requests = [Request(f"p{i}", prompt, range(3)) for i, prompt in enumerate(tiny_prompts(4, first=9))]
    expected = [stream(lm, part, policy, slots=4, chunk=6) for part in (requests[:2], requests[2:])]
    engine = lm.engine(sampling=HOT, attention=policy, settings=EngineSettings(slots=4, chunk=6))
    decodings = [begin(engine, part) for part in (requests[:2], requests[2:])]
    closed = engine.run(requests)
    next(closed)
    drawn = list(zip(*(decoding.run() for decoding in decodings), strict=True))
    closed.close()
    for run, decoding, reference in zip(zip(*drawn, strict=True), decodings, expected, strict=True):
        assert outputs(run) == reference
        assert decoding.counts.drawn == sum(len(tokens) - 1 for tokens in reference.values())
        assert decoding.schedules[0].allocator.free == decoding.schedules[0].allocator.num_pages


@pytest.mark.slow
def test_a_check_decides_for_the_whole_run(lm):
    """What is left of a job keeps the widths of all, and draws what the whole one does."""
    requests = [Request("short", [5, 6], range(2)), Request("long", tiny_prompts(1, first=90)[0], range(2))]
    engine = lm.engine(sampling=HOT, settings=EngineSettings(slots=2))
    job = engine.check(requests)
    whole = outputs(engine.start(job).run())
    left = job.without({("long", 0), ("long", 1), ("short", 1)})
    assert (left.samples, left.table_width, left.num_pages) == (1, job.table_width, job.num_pages)
    assert left.longest_prompt == 90
    assert outputs(engine.start(left).run()) == {("short", 0): whole["short", 0]}
    assert list(engine.run([])) == list(engine.run([Request("a", [5], [])])) == []


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [5, 32])
def test_a_sample_that_repeats_ends_where_it_does(lm, chunk):
    """Greedy decoding of a random model falls into a loop: the sample ends at the first token that completes one."""
    window = 24
    requests = [Request(str(i), prompt, [0]) for i, prompt in enumerate(tiny_prompts(8))]
    greedy = kj.Sampling(temperature=0, max_tokens=200)
    watched = dataclasses.replace(greedy, repetition_window=window)
    settings = EngineSettings(slots=3, chunk=chunk)
    free = {done.problem: done for done in lm.engine(sampling=greedy, settings=settings).run(requests)}
    decoding = begin(lm.engine(sampling=watched, settings=settings), requests)
    ended = {done.problem: done for done in decoding.run()}
    assert decoding.schedules[0].allocator.free == decoding.schedules[0].allocator.num_pages
    for problem, done in ended.items():
        repeats = first_repetition(free[problem].output_tokens, window)
        assert done.output_tokens == free[problem].output_tokens[:repeats]
        assert done.finish_reason == ("repetition" if repeats else free[problem].finish_reason)
        lengths = range(done.prompt_tokens + 1, done.prompt_tokens + len(done.output_tokens))  # of its own steps alone
        assert done.attended_tokens == lm.config.num_layers * lm.config.num_kv_heads * sum(lengths)
    assert "repetition" in {done.finish_reason for done in ended.values()}


def test_repeated_problem_ids_are_refused(lm):
    with pytest.raises(RequestError, match="'a' is requested twice"):
        stream(lm, [Request("a", [5], [0]), Request("a", [6], [0])], kj.Dense(), slots=2)


def test_dense_layers_beyond_the_model_are_refused(lm):
    with pytest.raises(RequestError, match="no layer 2"):
        lm.generate([[5]], attention=kj.BlockTopK(pages=4, dense_layers=(2,)))


@pytest.mark.slow
def test_an_end_token_drawn_first_ends_the_sample(tmp_path):
    """The first token, drawn by prefill, is checked like any other."""
    first = kj.load(write_checkpoint(tmp_path / "a", tiny_config(), seed=5), dtype="float32")
    greedy = kj.Sampling(temperature=0, max_tokens=5)
    token = first.generate([[9, 8]], sampling=greedy)[0].output_tokens[0]
    ends = kj.load(write_checkpoint(tmp_path / "b", tiny_config(eos_token_id=[3, token]), seed=5), dtype="float32")
    sample = ends.generate([[9, 8]], sampling=greedy)[0]
    assert sample.output_tokens == [token]
    assert sample.finish_reason == "stop"
    assert [len(s.output_tokens) for s in first.generate([[9, 8]], n=3, sampling=kj.Sampling(max_tokens=1))] == [1] * 3
