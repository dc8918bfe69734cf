"""An open decoder: what it draws is what runs draw; samples go on and fork as if they had never stopped."""

import asyncio
import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_carried_state import ByCount
from tiny import tiny_config, tiny_prompts, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.compile_cache import watch_compiles
from kinetics_jax.engine import decoding as decoding_module
from kinetics_jax.engine.asynchronous import AsyncDecoder
from kinetics_jax.engine.engine import Request
from kinetics_jax.settings import EngineSettings

SPARSE = kj.BlockTopK(pages=4, page_size=4, dense_layers=())
RANDOM = kj.RandomBlocks(pages=4, page_size=4)
HOT = kj.Sampling(temperature=1.0, top_p=0.95, max_tokens=12, seed=3)
GREEDY = kj.Sampling(temperature=0, max_tokens=12)
PROMPTS = tiny_prompts(5, first=9)
WAIT = [50, 51, 52, 53, 54, 55, 56]


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(), seed=5), dtype="float32")


def opened(lm, policy, sampling=HOT, **settings) -> kj.Decoder:
    settings = EngineSettings(**{"slots": 4, "chunk": 5, **settings})
    return lm.open(sampling=sampling, attention=policy, settings=settings, max_length=128)


def drain(decoder: kj.Decoder) -> dict:
    return {(sample.id, sample.sample, sample.path): sample for sample in decoder}


def outputs(samples: dict) -> dict:
    return {name: sample.output_tokens for name, sample in samples.items()}


def kept(sample: kj.OpenSample) -> list[int]:
    """What `extend` goes on behind: not the end token."""
    return sample.output_tokens[:-1] if sample.finish_reason == "stop" else sample.output_tokens


def alone(decoder: kj.Decoder, name: tuple, forced: list[int], **options) -> kj.OpenSample:
    """One sample without a break, of which the first tokens are given."""
    decoder.add(PROMPTS[int(name[0])], id=name[0], samples=[name[1]], forced=forced, **options)
    (sample,) = decoder
    return sample


@pytest.mark.slow
@pytest.mark.parametrize("policy", [pytest.param(kj.Dense(), marks=pytest.mark.exhaustive), SPARSE], ids=str)
def test_requests_with_settings_of_their_own_draw_what_runs_of_them_draw(lm, policy):
    """Side by side in one decoder, and each alone in a run of the closed engine."""
    samplings = [
        HOT,
        GREEDY,
        dataclasses.replace(HOT, seed=9, max_tokens=30),
        HOT,
        kj.Sampling(min_p=0.05, top_k=40, top_p=0.9, temperature=2.0, max_tokens=20),
    ]
    decoder = opened(lm, policy)
    for index, (prompt, sampling) in enumerate(zip(PROMPTS, samplings, strict=True)):
        decoder.add(prompt, n=3, id=str(index), sampling=sampling)
    drawn = drain(decoder)
    assert len(drawn) == 15
    for index, (prompt, sampling) in enumerate(zip(PROMPTS, samplings, strict=True)):
        engine = lm.engine(sampling=sampling, attention=policy, settings=EngineSettings(slots=4, chunk=5))
        for done in engine.run([Request(str(index), prompt, range(3))]):
            sample = drawn[done.problem, done.sample, ()]
            for name in ("output_tokens", "finish_reason", "prompt_tokens", "attended_tokens", "summary_vectors"):
                assert getattr(sample, name) == getattr(done, name), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy",
    [SPARSE, ByCount(), *(pytest.param(each, marks=pytest.mark.exhaustive) for each in (kj.Dense(), RANDOM))],
    ids=str,
)
def test_a_sample_that_goes_on_is_one_that_never_stopped(lm, policy):
    """Extended and forked among others, in a pool that is large and in one that runs dry: each is what it is alone."""
    decoder, single = opened(lm, policy), opened(lm, policy)
    tight = opened(lm, policy, num_pages=10 if policy == kj.Dense() else 36)
    for each in (decoder, tight):
        for index, prompt in enumerate(PROMPTS):
            each.add(prompt, n=2, id=str(index), log_probs=True)
    first, again = drain(decoder), drain(tight)
    for each, samples in ((decoder, first), (tight, again)):
        for sample in samples.values():
            each.extend(sample, WAIT)
    second, again = drain(decoder), drain(tight)
    assert outputs(second) == outputs(again)
    assert tight.decoding.counts.preempted > 0
    for name in [("0", 0, ()), ("1", 1, ()), ("4", 0, ())]:
        forced = kept(first[name]) + WAIT
        sample = alone(single, name, forced, log_probs=True)
        for what in ("output_tokens", "attended_tokens", "summary_vectors"):
            assert getattr(second[name], what) == getattr(sample, what), what
        assert second[name].output_tokens[: len(forced)] == forced
        found, expected = np.array(second[name].log_probs), np.array(sample.log_probs)
        lost = np.isnan(found)  # what a policy carried is not kept from before the end token
        assert lost.sum() == (policy == ByCount() and first[name].finish_reason == "stop")
        np.testing.assert_allclose(found[~lost], expected[~lost], atol=1e-5)
        assert np.isnan(np.array(sample.draw_log_probs)[: len(forced)]).all()
        assert np.isfinite(np.array(sample.draw_log_probs)[len(forced) :]).all()

    third, again = forked(decoder, second), forked(tight, again)
    assert len(third) == 40
    assert len({tuple(tokens) for tokens in outputs(third).values()}) == 40  # noise of their own
    assert outputs(again) == outputs(third)
    for name in list(second)[::4]:
        forced = [*kept(second[name]), 60]
        assert third[name].output_tokens == alone(single, name, forced, max_tokens=9).output_tokens
    (schedule,) = decoder.decoding.schedules
    assert len(schedule.kept) == 40
    decoder.release(*third.values())
    assert schedule.allocator.free == schedule.allocator.num_pages

    name = list(second)[3]  # with its forks, and nothing beside them
    decoder.add(PROMPTS[int(name[0])], id=name[0], samples=[name[1]])
    decoder.extend(next(iter(decoder)), WAIT)
    few = forked(decoder, drain(decoder))
    assert len(few) == 4
    assert outputs(few) == {each: third[each].output_tokens for each in few}


def forked(decoder: kj.Decoder, samples: dict) -> dict:
    """Two forks of each, which go on as it does itself, and a fork of each first fork."""
    for name in sorted(samples):
        for fork in decoder.fork(samples[name], 2):
            decoder.extend(fork, [60], max_tokens=9)
        decoder.extend(samples[name], [60], max_tokens=9)
    ended = drain(decoder)
    for name in sorted(ended):
        if name[2] == (0,):
            (fork,) = decoder.fork(ended[name])
            decoder.extend(fork, [61, 62], max_tokens=5)
    return ended | drain(decoder)


@pytest.mark.slow
def test_log_probs_are_those_of_the_model_and_of_what_was_drawn_from(lm):
    """Against the full forward: raw, and after temperature, top-k and a penalty; greedy tokens are certain."""
    decoder = opened(lm, kj.Dense())
    sampling = kj.Sampling(temperature=0.5, top_k=6, max_tokens=20, seed=1)
    decoder.add(PROMPTS[0], id="hot", sampling=sampling, presence_penalty=0.75, log_probs=True)
    decoder.add(PROMPTS[1], id="greedy", sampling=GREEDY, log_probs=True)
    decoder.add(PROMPTS[2], id="unasked", sampling=sampling)
    samples = {sample.id: sample for sample in decoder}
    assert samples["unasked"].log_probs is samples["unasked"].draw_log_probs is None
    for sample, prompt in ((samples["hot"], PROMPTS[0]), (samples["greedy"], PROMPTS[1])):
        output, first = sample.output_tokens, len(prompt) - 1
        logits = np.asarray(lm.logits([prompt + output]), np.float64)[0, first : first + len(output)]
        own = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        np.testing.assert_allclose(sample.log_probs, own[np.arange(len(output)), output], atol=1e-4)
        if sample.id == "greedy":
            assert sample.draw_log_probs == [0.0] * len(output)
            continue
        for place, token in enumerate(output):
            row = logits[place].copy()
            row[list(set(output[:place]))] -= 0.75
            row = np.where(row >= np.sort(row)[-6], row / 0.5, -np.inf)
            expected = row[token] - np.log(np.exp(row - row.max()).sum()) - row.max()
            np.testing.assert_allclose(sample.draw_log_probs[place], expected, atol=1e-4)


def parity(logits, output, count):
    """Even tokens after odd ones, and odd ones after even ones; the first is as it comes."""
    last = output[jnp.maximum(count - 1, 0)]
    fits = (jnp.arange(logits.shape[0]) + last) % 2 == 1
    return jnp.where((count == 0) | fits, logits, -jnp.inf)


def broken_later(logits, output, count):
    return jnp.where(count >= 3, jnp.nan, logits)


def nothing_later(logits, output, count):
    return jnp.where(count >= 4, -jnp.inf, logits)


@pytest.mark.slow
def test_rules_of_requests_side_by_side(lm):
    decoder = opened(lm, SPARSE)
    decoder.add(PROMPTS[0], n=2, id="plain")
    decoder.add(PROMPTS[0], n=2, id="allowed", allowed=[7, 9, 11, 3], min_tokens=6)
    decoder.add(PROMPTS[1], n=2, id="hook", hook=parity)
    decoder.add(PROMPTS[1], id="broken", hook=broken_later)
    decoder.add(PROMPTS[1], id="nothing", hook=nothing_later)
    decoder.add(PROMPTS[2], n=2, id="stops", stop_ids=range(4, 40), max_tokens=60)
    decoder.add(PROMPTS[2], n=2, id="later", stop_ids=range(4, 40), max_tokens=60, min_tokens=9)
    decoder.add(PROMPTS[3], n=2, id="penalty", repetition_penalty=1e6, max_tokens=60)
    with pytest.warns(UserWarning, match=r"problem 'broken', sample 0, token 3: the hook 'broken_later' returned NaN"):
        samples = drain(decoder)
    closed = lm.engine(sampling=HOT, attention=SPARSE, settings=EngineSettings(slots=4, chunk=5))
    for done in closed.run([Request("plain", PROMPTS[0], range(2))]):
        assert samples["plain", done.sample, ()].output_tokens == done.output_tokens
    for (name, _, _), sample in samples.items():
        output, early = sample.output_tokens, sample.output_tokens[:-1]
        if name == "allowed":
            assert set(output) <= {7, 9, 11, 3}
            assert 3 not in output[:6]
        if name == "hook":
            assert all((a + b) % 2 for a, b in itertools.pairwise(output))
        if name == "broken":
            assert (sample.finish_reason, len(output)) == ("nonfinite", 3)
        if name == "nothing":
            assert (sample.finish_reason, len(output)) == ("blocked", 4)
        if name in ("stops", "later"):
            least = 9 if name == "later" else 0
            assert not set(early[:least]) & {3, *range(4, 40)}
            assert not set(early[least:]) & {3, *range(4, 40)}
            assert sample.finish_reason == "stop"
            assert sample.stopped_by == output[-1]
        if name == "penalty":  # nothing is drawn twice, nor what the prompt holds
            assert len(set(output) | set(PROMPTS[3])) == len(output) + len(set(PROMPTS[3]))
    decoder.extend(samples["stops", 0, ()], [60])
    decoder.extend(samples["stops", 1, ()], [60], keep_end=True)
    again = drain(decoder)
    for index, taken in ((0, 1), (1, 0)):
        before, after = samples["stops", index, ()].output_tokens, again["stops", index, ()].output_tokens
        assert after[: len(before) - taken + 1] == [*before[: len(before) - taken], 60]
        assert again["stops", index, ()].finish_reason in ("stop", "length")


@pytest.mark.slow
def test_new_settings_compile_nothing(lm):
    decoder = opened(lm, SPARSE)
    every = {"min_tokens": 2, "repetition_penalty": 1.1, "stop_ids": [5, 6, 7], "allowed": range(3, 100)}
    first = kj.Sampling(temperature=0.7, top_k=9, top_p=0.9, min_p=0.01, max_tokens=12)
    decoder.add(PROMPTS[0], n=2, sampling=first, **every, hook=parity, log_probs=True)
    decoder.extend(next(iter(decoder)), WAIT)
    drain(decoder)
    with watch_compiles() as compiled:
        for index, prompt in enumerate(PROMPTS):
            own = kj.Sampling(
                temperature=index / 4, top_k=index, top_p=1 - index / 10, seed=index, max_tokens=8 + index
            )
            rules = {"min_tokens": index, "stop_ids": [9][: index % 2], "allowed": [3, *range(20, 50 + index)]}
            decoder.add(
                prompt, n=1 + index, sampling=own, **rules, presence_penalty=0.0, hook=[None, parity][index % 2]
            )
        for sample in list(drain(decoder).values()):
            decoder.extend(sample, WAIT[: 1 + len(sample.output_tokens) % 6])
        drain(decoder)
    assert compiled.programs == []


@pytest.mark.slow
def test_one_host_visit_per_chunk_and_nothing_for_what_nobody_asks(lm, monkeypatch):
    visits = []
    real = jax.device_get
    monkeypatch.setattr(decoding_module.jax, "device_get", lambda tree: visits.append(1) or real(tree))
    decoder = opened(lm, kj.Dense(), chunk=10)
    decoder.add([5, 6, 7], n=4, max_tokens=40)
    longest = max(len(sample.output_tokens) for sample in decoder)
    assert len(visits) <= -(-longest // 10) + 1
    rows = decoder.rows.rows({})
    asked = {field.name for field in dataclasses.fields(rows) if isinstance(getattr(rows, field.name), jax.Array)}
    assert asked == {"temperature", "top_p"}


@pytest.mark.slow
def test_prompts_without_ids_draw_noise_of_their_own(lm):
    """Prompt by prompt in a loop, one prompt many times, a prompt with its output behind it: no draw is made twice."""
    flat = kj.Sampling(temperature=1e6, max_tokens=24)  # all but the noise is gone

    def draw(prompts, n=1):
        samples = lm.generate(prompts, n=n, sampling=flat, settings=EngineSettings(slots=4))
        return [tuple(sample.output_tokens) for sample in samples]

    together = draw(PROMPTS)
    assert draw(PROMPTS) == together
    assert [draw([prompt])[0] for prompt in PROMPTS] == together
    assert draw(PROMPTS[::-1]) == together[::-1]
    twice = draw([PROMPTS[0]] * 3, n=2)
    assert twice[0] == together[0]
    longer = draw([[*PROMPTS[0], *together[0]]])
    every = [*together, *twice[1:], *longer]
    assert len({tokens[:3] for tokens in every}) == len(every)
    assert draw([[*PROMPTS[0], 77]])[0][:3] not in {tokens[:3] for tokens in every}

    decoder = lm.open(sampling=flat, settings=EngineSettings(slots=4), max_length=128)
    names = [decoder.add(PROMPTS[0]) for _ in range(3)] + [decoder.add(PROMPTS[0], id="mine", n=2)] * 2
    decoder.add(PROMPTS[0], id="mine")  # counts on
    samples = drain(decoder)
    assert len(set(names)) == 4
    assert samples[names[0], 0, ()].output_tokens == list(together[0])
    assert {name for name in samples if name[0] == "mine"} == {("mine", index, ()) for index in range(3)}
    drawn = [tuple(sample.output_tokens) for sample in samples.values()]
    for sample in samples.values():
        decoder.extend(sample, max_tokens=6, keep_end=True)
    more = [tuple(sample.output_tokens[-6:]) for sample in decoder]
    assert len({*(tokens[:3] for tokens in drawn), *(tokens[:3] for tokens in more)}) == len(drawn) + len(more)


@pytest.mark.slow
def test_memory_comes_back(lm):
    decoder = opened(lm, SPARSE)
    (schedule,) = decoder.decoding.schedules
    decoder.add(PROMPTS[0], n=3, keep=False)
    decoder.add(PROMPTS[1], n=2)
    samples = [sample for sample in decoder if sample.branch.kept]
    held = schedule.allocator.num_pages - schedule.allocator.free
    assert len(samples) == 2
    assert 0 < held <= 2 * -(-(len(PROMPTS[1]) + 13 + 5) // 4)
    forks = decoder.fork(samples[0], 10)
    assert schedule.allocator.num_pages - schedule.allocator.free == held  # shared
    decoder.release(*samples, *forks[1:])
    decoder.extend(forks[0], WAIT)
    (last,) = decoder
    decoder.release(last)
    assert schedule.allocator.free == schedule.allocator.num_pages
    with decoder:
        decoder.add(PROMPTS[0])
    assert decoder.decoding is None
    with pytest.raises(kj.settings.RequestError, match="the decoder is closed"):
        decoder.add(PROMPTS[0])


@pytest.mark.slow
def test_coroutines_share_a_decoder(lm):
    expected = opened(lm, SPARSE)
    for index, prompt in enumerate(PROMPTS):
        expected.add(prompt, id=str(index), n=2)
    for sample in list(expected):
        expected.extend(sample, WAIT)
    expected = outputs(drain(expected))

    async def one(decoder, index):
        samples = await decoder.add(PROMPTS[index], id=str(index), n=2)
        assert [sample.sample for sample in samples] == [0, 1]
        (fork,) = await decoder.fork(samples[0])
        await decoder.release(fork)
        return await asyncio.gather(*(decoder.extend(sample, WAIT) for sample in samples))

    async def everybody():
        async with AsyncDecoder(opened(lm, SPARSE)) as decoder:
            with pytest.raises(kj.settings.RequestError, match="allowed names no token"):
                await decoder.add(PROMPTS[0], allowed=[])
            done = await asyncio.gather(*(one(decoder, index) for index in range(len(PROMPTS))))
            late = asyncio.create_task(decoder.add(PROMPTS[0], max_tokens=90))
            await asyncio.sleep(0)
            late.cancel()
            more = await decoder.add(PROMPTS[0], id="more")
            while decoder.decoder.unfinished:
                await asyncio.sleep(0.01)
            (schedule,) = decoder.decoder.decoding.schedules
            assert len(schedule.kept) == 2 * len(PROMPTS) + 1  # what nobody waits for is released
            waiting = asyncio.create_task(decoder.add(PROMPTS[0], id="never", max_tokens=90))
            await asyncio.sleep(0)
        with pytest.raises(kj.settings.RequestError, match="closed"):
            await waiting
        return [sample for samples in done for sample in samples], more

    samples, more = asyncio.run(everybody())
    assert {(sample.id, sample.sample, sample.path): sample.output_tokens for sample in samples} == expected
    assert len(more) == 1
