"""Stop texts: against a reading of the whole text, whatever the tokens' borders, and samples that go on behind them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_carried_state import ByCount

import kinetics_jax as kj
from kinetics_jax.engine.stops import StopWatch, cut_text
from kinetics_jax.settings import EngineSettings

PIECES = [b"a", b"b", b"ab", b"ba", "é".encode()[:1], "é".encode()[1:], b" ", "日".encode()[:2], "日".encode()[2:], b""]
PROMPT = "n1>n2 n2>n3 n3>end n1:+5 n2:*2 n3:+1 start 3 at n1"
DRAW = kj.Sampling(temperature=1.0, max_tokens=48, seed=2)


def decode(tokens) -> str:
    return b"".join(PIECES[token] for token in tokens).decode(errors="replace")


def first_stop(tokens, stops, before, least):
    """The number of tokens after which a stop first ends behind the text of those before; None if never."""
    for end in range(before + 1, len(tokens) + 1):
        known = len(decode(tokens[: end - 1]).rstrip("\ufffd"))
        text = decode(tokens[:end])
        if end >= least and any(text.find(stop, max(known - len(stop) + 1, 0)) >= 0 for stop in stops):
            return end
    return None


@given(st.data())
def test_equals_a_reading_of_the_whole_text(data):
    tokens = data.draw(st.lists(st.integers(0, len(PIECES) - 1), max_size=60))
    stops = data.draw(st.lists(st.sampled_from(["abba", "é", "b é", "日", "a" * 5, "ab", "aabb aab"]), min_size=1))
    before = data.draw(st.integers(0, len(tokens)))
    coming = data.draw(st.integers(0, len(tokens) - before))
    least = data.draw(st.integers(0, 70))
    cuts = sorted(data.draw(st.lists(st.integers(before, len(tokens)), max_size=5)))
    watch, seen, found = StopWatch(stops, decode, least=least), before, None
    watch.recall(tokens[:before])
    watch.recall(tokens[before : before + coming])
    seen += coming
    for end in [*(cut for cut in cuts if cut > seen), len(tokens)]:
        count = watch.feed(tokens[seen:end])
        if count is not None:
            found = seen + count
            break
        seen = end
    assert found == first_stop(tokens, stops, before + coming, least)
    if found is not None:
        text = cut_text(decode, tokens[:found], watch.found)
        assert decode(tokens[:found]).startswith(text + watch.found)


@pytest.fixture(scope="module")
def lm():
    return kj.load("chase-212k")


def opened(lm, policy="dense", chunk=7) -> kj.Decoder:
    settings = EngineSettings(slots=4, chunk=chunk)
    return lm.open(sampling=DRAW, attention=policy, settings=settings, max_length=128)


@pytest.mark.slow
def test_text_is_cut_at_the_stop_and_goes_on_from_there(lm):
    """The stops of built-in texts, of parts of tokens and of several; a sample that goes on is the one without."""
    decoder = opened(lm)
    decoder.add(PROMPT, n=4, id="p")
    whole = {sample.sample: sample for sample in decoder}
    for stop in (["@"], ["end", "n3 "], [whole[0].text[3:9]], ["no such text"]):
        fresh = opened(lm)  # the same id draws the same samples
        fresh.add(PROMPT, n=4, id="p", stop=stop)
        for sample in list(fresh):
            full = whole[sample.sample]
            places = [full.text.find(each) for each in stop if each in full.text]
            if not places:
                assert sample.output_tokens == full.output_tokens
                assert sample.text == full.text
                continue
            assert sample.text == full.text[: min(places)]
            assert sample.finish_reason == "stop"
            assert sample.stopped_by in stop
            count = len(sample.output_tokens)
            assert sample.output_tokens == full.output_tokens[:count]
            assert sample.stopped_by in lm.decode(sample.output_tokens)
            assert sample.stopped_by not in lm.decode(sample.output_tokens[:-1])
            fresh.extend(sample, stop=(), max_tokens=48 - count)
        for sample in fresh:
            assert sample.output_tokens == whole[sample.sample].output_tokens
            assert sample.attended_tokens == whole[sample.sample].attended_tokens
    texts = [sample.text for sample in lm.generate([PROMPT], n=4, sampling=DRAW, stop="@")]
    plain = [sample.text for sample in lm.generate([PROMPT], n=4, sampling=DRAW)]
    assert texts == [text.split("@")[0] for text in plain]


@pytest.mark.slow
def test_what_a_policy_carried_beyond_a_stop_is_forgotten(lm):
    """Tokens that were drawn beyond a stop leave no trace: the sample is computed anew where its state is gone."""
    decoder = opened(lm, ByCount())
    decoder.add(PROMPT, n=2, id="p")
    whole = {sample.sample: sample.output_tokens for sample in decoder}
    fresh = opened(lm, ByCount())
    fresh.add(PROMPT, n=2, id="p", stop=lm.decode(whole[0][3:5]).strip())
    cut = list(fresh)
    assert any(sample.finish_reason == "stop" and len(sample.output_tokens) < 7 for sample in cut)
    for sample in cut:
        if sample.output_tokens != whole[sample.sample]:
            fresh.extend(sample, stop=(), max_tokens=48 - len(sample.output_tokens))
    for sample in fresh:
        assert sample.output_tokens == whole[sample.sample]
