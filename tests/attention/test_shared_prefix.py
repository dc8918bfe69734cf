"""Shared prefixes against attention over each sequence by itself: ragged groups, groups of one, idle rows, NaN."""

import dataclasses

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tiny_config, tiny_prompts, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.assets import builtin_models
from kinetics_jax.attention.cache import empty_cache
from kinetics_jax.attention.decode import decode_attend
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.shared_prefix import (
    STARTING,
    prefix_saving,
    share_prefixes,
    shared_prefix_decode,
    sharing_pays,
)
from kinetics_jax.engine.decoding import Decoding
from kinetics_jax.engine.engine import Request
from kinetics_jax.runs.best_of_n import best_of_n
from kinetics_jax.runs.folder import TraceError
from kinetics_jax.settings import EngineSettings, RequestError
from kinetics_jax.tasks.problems import load_problems

DENSE = kj.Dense()
SLOTS, WIDTH, PAGE, KV_HEADS, GROUP, HEAD = 9, 3, 4, 2, 2, 8
PREFIX_PAGES, MAX_PAGES, POOL = 5, 9, 64

together = jax.jit(lambda q, k, v, lengths, shared: shared_prefix_decode(q, k, v, lengths, shared))
apart = jax.jit(lambda q, k, v, table, lengths: kernels.paged_decode(q, k, v, table, lengths)[0])

NOBODY = share_prefixes([], slots=1, width=1, prefix_pages=1, max_pages=1, page_size=16)


def case(rng, prompts):
    """Slots in random order for prompts of so many whole pages and samples; some slots idle. Free pages hold NaN."""
    free = list(rng.permutation(POOL))
    order = list(rng.permutation(SLOTS))
    running, table, lengths = [], np.full((SLOTS, MAX_PAGES), -1, np.int32), np.zeros(SLOTS, np.int32)
    for whole, samples in prompts:
        prefix = [int(free.pop()) for _ in range(whole)]
        for _ in range(min(samples, len(order))):
            slot = int(order.pop())
            own = int(rng.integers(1, 1 + 3 * PAGE))
            pages = prefix + [int(free.pop()) for _ in range(-(-own // PAGE))]
            running.append((slot, pages, whole))
            table[slot, : len(pages)] = pages
            lengths[slot] = whole * PAGE + own
    pool = rng.standard_normal((2, KV_HEADS, POOL, PAGE, HEAD)).astype(np.float32)
    pool[:, :, free] = np.nan
    for slot, pages, _ in running:  # and what lies behind a sequence's last token
        if lengths[slot] % PAGE:
            pool[:, :, pages[-1], lengths[slot] % PAGE :] = np.nan
    q = rng.standard_normal((SLOTS, KV_HEADS * GROUP, HEAD)).astype(np.float32)
    sizes = {"slots": SLOTS, "width": WIDTH, "prefix_pages": PREFIX_PAGES, "max_pages": MAX_PAGES, "page_size": PAGE}
    return q, *map(jnp.asarray, pool), table, lengths, share_prefixes(running, **sizes), running


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, PREFIX_PAGES), st.integers(1, SLOTS)), max_size=5), st.integers(0, 2**32 - 1))
def test_two_passes_are_attention(prompts, seed):
    q, k, v, table, lengths, shared, running = case(np.random.default_rng(seed), prompts)
    expected = np.asarray(apart(q, k, v, table, lengths))
    np.testing.assert_allclose(together(q, k, v, lengths, shared), expected, atol=2e-6, rtol=2e-5)
    used = np.count_nonzero(shared.lengths)
    assert used == np.count_nonzero(shared.lengths[:used])  # used rows come first
    assert used == sum(-(-sum(pages[:whole] == other[:n] for _, other, n in running if n) // WIDTH)
                       for pages, whole in {tuple(p[:w]): (p, w) for _, p, w in running if w}.values())  # fmt: skip
    stopped = lengths.copy()  # a sample that ends within the chunk stays a member
    stopped[::2] = 0
    out = np.asarray(together(q, k, v, stopped, shared))
    assert not out[::2].any()
    np.testing.assert_array_equal(out[1::2], np.asarray(together(q, k, v, lengths, shared))[1::2])


def test_company_and_place_change_no_bit():
    """A sample alone with its prompt, first or last of a full row, with its prompt's pages elsewhere: the same bits."""
    rng = np.random.default_rng(0)
    q, k, v, _, lengths, shared, running = case(rng, [(5, 9)])
    reference = np.asarray(together(q, k, v, lengths, shared))
    sizes = {"slots": SLOTS, "width": WIDTH, "prefix_pages": PREFIX_PAGES, "max_pages": MAX_PAGES, "page_size": PAGE}
    for slot, pages, whole in running:
        alone = share_prefixes([(slot, pages, whole)], **sizes)
        only = np.where(np.arange(SLOTS) == slot, lengths, 0)
        np.testing.assert_array_equal(np.asarray(together(q, k, v, only, alone))[slot], reference[slot])
    turned = share_prefixes(running[::-1], **sizes)
    assert not np.array_equal(turned.place, shared.place)
    np.testing.assert_array_equal(together(q, k, v, lengths, turned), reference)


HOT = kj.Sampling(temperature=1.0, top_p=0.95, max_tokens=40, seed=3)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(), seed=5), dtype="float32")


def stream(lm, requests, policy, sampling=HOT, **settings) -> tuple[dict, Decoding]:
    engine = lm.engine(sampling=sampling, attention=policy, settings=EngineSettings(**settings))
    decoding = engine.start(engine.check(requests))
    return {(done.problem, done.sample): done.output_tokens for done in decoding.run()}, decoding


def requests_of(*lengths: int) -> list[Request]:
    return [Request(f"p{length}", tiny_prompts(1, first=length)[0], range(3)) for length in lengths]


@pytest.mark.slow
def test_samples_do_not_depend_on_company_or_preemption(lm):
    """As on the ordinary path, whose samples they are; prompts without a whole page, with some, up to one's edge."""
    requests = requests_of(3, 34, 42, 47, 49, 50)
    reference, _ = stream(lm, requests, kj.Dense(), slots=6, shared_prefix=True)
    assert stream(lm, requests, kj.Dense(), slots=6, shared_prefix=False)[0] == reference
    assert stream(lm, requests[::-1], kj.Dense(), slots=6, shared_prefix=True)[0] == reference
    alone, _ = stream(lm, [dataclasses.replace(requests[-1], samples=[1])], kj.Dense(), slots=6, shared_prefix=True)
    assert alone == {("p50", 1): reference["p50", 1]}
    drawn, decoding = stream(lm, requests, kj.Dense(), slots=6, chunk=6, num_pages=12, shared_prefix=True)
    assert drawn == reference
    assert decoding.counts.preempted > 3


@pytest.mark.slow
def test_the_dense_layers_of_a_sparse_policy(lm):
    policy, requests = kj.BlockTopK(pages=4, page_size=4), requests_of(34, 50)
    drawn = [stream(lm, requests, policy, slots=6, shared_prefix=shared)[0] for shared in (False, True)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    ("policy", "slots", "says"),
    [
        (kj.BlockTopK(pages=4, page_size=4, dense_layers=()), 4, "is for dense layers, and block_topk.* has none"),
        (kj.Dense(), 1, "more than one slot"),
    ],
)
def test_where_nothing_can_be_shared_it_is_refused(lm, policy, slots, says):
    with pytest.raises(RequestError, match=says):
        stream(lm, [Request("a", [5] * 40, range(4))], policy, slots=slots, shared_prefix=True)
    assert not lm.engine(sampling=HOT, attention=policy, settings=EngineSettings(slots=slots)).shares_prefix(
        [Request("a", [5] * 40, range(4))]
    )


def test_on_a_mesh_it_is_refused(tmp_path):
    lm = kj.load(write_checkpoint(tmp_path, tiny_config(), seed=5), dtype="float32", mesh="data=1")
    with pytest.raises(RequestError, match="shared_prefix is for one device, not for a mesh"):
        stream(lm, [Request("a", [5] * 40, range(4))], kj.Dense(), slots=4, shared_prefix=True)
    cache = empty_cache(kj.Dense(), lm.config, num_pages=16, dtype=jnp.float32, mesh=lm.mesh)
    attend = decode_attend(kj.Dense(), jnp.zeros((1, 1), jnp.int32), jnp.ones(1, jnp.int32), shared=NOBODY)
    with pytest.raises(ValueError, match="the cache lies on a mesh"):
        attend(0, *[jnp.zeros((1, 1, heads, 8)) for heads in (4, 2, 2)], cache)


@pytest.mark.slow
def test_a_run_keeps_to_what_it_began_with(tmp_path):
    lm = kj.load(builtin_models()[0])
    problems = load_problems("builtin", limit=2)
    sampling = kj.Sampling(max_tokens=6)

    def run(name: str, n: int = 2, shared: bool | None = None, policy: AttentionPolicy = DENSE):
        settings = EngineSettings(slots=4, shared_prefix=shared)
        return best_of_n(
            lm, problems, task="builtin", n=n, policy=policy, sampling=sampling, out=tmp_path / name,
            settings=settings,
        )  # fmt: skip

    assert "shared_prefix" not in run("chosen").header  # these are small models
    shared = run("shared", shared=True)
    assert shared.header["shared_prefix"] is True
    samples = tmp_path / "shared" / "samples.jsonl"
    whole = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join(whole[:-1]))
    assert len(run("shared").samples) == 4
    with pytest.raises(TraceError, match="shared_prefix"):
        run("shared", shared=False)
    # Not that sharing, which nobody asked for, cannot be.
    with pytest.raises(TraceError, match="holds another run"):
        run("shared", policy=kj.BlockTopK(budget=8, page_size=2, dense_layers=()))


def test_when_it_pays():
    config = kj.ModelConfig.named("8B")
    sizes = {"width": 4, "itemsize": 2}
    token = 4096  # bytes of K and V in a layer
    merging = 32 * (2 * 128 * 2 + 4 * 129 * 4)
    assert prefix_saving(config, prefix=1000, samples=8, **sizes) == 6 * 1000 * token - 8 * merging
    assert prefix_saving(config, prefix=1000, samples=9, **sizes) == 6 * 1000 * token - 9 * merging
    assert prefix_saving(config, prefix=1000, samples=1, **sizes) == -merging
    assert sharing_pays(config, [(2048, 16)], slots=16, **sizes)
    assert not sharing_pays(config, [(2048, 16)], slots=1, **sizes)
    assert not sharing_pays(config, [(2048, 1)] * 32, slots=16, **sizes)  # nobody to share with
    assert not sharing_pays(config, [(64, 32)], slots=32, **sizes)
    assert not sharing_pays(config, [], slots=32, **sizes)
    least = next(prefix for prefix in range(0, 9999, 16) if sharing_pays(config, [(prefix, 32)], slots=32, **sizes))
    assert 32 * 3 / 4 * least * token - 32 * merging == pytest.approx(STARTING, abs=24 * 16 * token)
    # A run of many prompts is judged by its mean step: those without company weigh as they are decoded.
    mixed = [(2048, 16), *[(2048, 1)] * 16]
    half = prefix_saving(config, prefix=2048, samples=16, **sizes) / 2
    assert sharing_pays(config, mixed, slots=16, **sizes) == (half - 8 * merging > STARTING)
