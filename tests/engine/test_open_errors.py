"""What an open decoder refuses: one line that says what, where and the cure, and nothing is lost by it."""

import dataclasses
import inspect
import re

import jax.numpy as jnp
import numpy as np
import pytest
from test_odd_inputs import refused
from tiny import tiny_config, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.engine.draws import MAX_HOOKS
from kinetics_jax.settings import EngineSettings

PROMPT = [10, 11, 12, 13]
SAMPLING = kj.Sampling(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(), seed=5), dtype="float32")


@pytest.fixture(scope="module")
def decoder(lm):
    return lm.open(sampling=SAMPLING, settings=EngineSettings(slots=2), max_length=64)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"allowed": []}, ("allowed names no token", "leave it out")),
        ({"allowed": [5, 131]}, ("allowed: token 131", "0 … 130")),
        ({"allowed": "abc"}, ("allowed must be a list of token ids",)),
        ({"allowed": [1.5]}, ("allowed: a token id must be a whole number",)),
        ({"allowed": [3], "min_tokens": 2}, ("end tokens only", "min_tokens 2")),
        ({"stop_ids": [-1]}, ("stop_ids: token -1",)),
        ({"stop_ids": 5}, ("stop_ids must be a list",)),
        ({"stop": [""]}, ("none of them empty",)),
        ({"stop": [5]}, ("stop must be a list of texts",)),
        ({"stop": 5}, ("stop must be a list of texts",)),
        ({"stop": "x"}, ("need a tokenizer", "stop_ids")),
        ({"min_tokens": 7}, ("min_tokens 7 exceeds max_tokens 6",)),
        ({"min_tokens": 1.0}, ("min_tokens must be a whole number", "write 1")),
        ({"repetition_penalty": 0}, ("repetition_penalty must be above 0",)),
        ({"presence_penalty": float("nan")}, ("presence_penalty must be a finite number",)),
        ({"repetition_block": 64}, ("repetition_window is longer", "1024")),
        ({"log_probs": 1}, ("log_probs must be True or False",)),
        ({"max_tokens": 61}, ("4 prompt tokens", "max_length 64", "lower max_tokens to 60", "a larger one")),
        ({"max_tokens": 0}, ("max_tokens must be in 1",)),
        ({"max_tokens": "5"}, ("max_tokens must be a whole number",)),
        ({"forced": [1] * 60}, ("60 of output", "shorten them")),
        ({"forced": [131]}, ("forced: token ids must lie in 0 … 130",)),
        ({"forced": 5}, ("forced",)),
        ({"n": 0}, ("n must be at least 1",)),
        ({"n": 1.0}, ("n must be a whole number",)),
        ({"samples": [0, 0]}, ("each once",)),
        ({"samples": []}, ("samples must name indices",)),
        ({"samples": 3}, ("samples must be a list of indices, got 3",)),
        ({"samples": [2**31]}, ("samples must name indices in 0 … 2147483647, got 2147483648",)),
        ({"n": 2**31 + 1}, ("would be more than 2147483648", "lower it")),
        ({"keep": "yes"}, ("keep must be True or False",)),
        ({"id": 7}, ("id must be a text",)),
        ({"sampling": {"temperature": 0}}, ("sampling must be a Sampling",)),
        ({"hook": 7}, ("hook must be a function",)),
        ({"hook": lambda logits: logits}, ("cannot be traced", "(logits, output, count)", "positional argument")),
        ({"hook": lambda logits, output, count: logits[:7]}, ("returns float32 [7]", "float32 [131]")),
        ({"hook": lambda logits, output, count: logits.astype(jnp.bfloat16)}, ("returns bfloat16 [131]",)),
        ({"hook": lambda logits, output, count: None}, ("returns None",)),
        ({"hook": lambda logits, output, count: logits if count > 3 else -logits}, ("cannot be traced",)),
    ],
    ids=lambda value: re.sub(" at 0x[0-9a-f]+", "", str(value))[:40],  # the same in every worker
)
def test_odd_requests(decoder, options, words):
    refused(lambda: decoder.add(PROMPT, **options), *words)
    assert not decoder.unfinished


@pytest.mark.parametrize(
    ("prompt", "word"), [([], "no token"), ([131], "0 … 130"), (None, "is no prompt"), ([[1]], "list within a list")]
)
def test_odd_prompts(decoder, prompt, word):
    refused(lambda: decoder.add(prompt), word)


def test_an_unknown_rule_is_no_rule(decoder, lm):
    with pytest.raises(TypeError, match="temprature"):
        decoder.add(PROMPT, temprature=0)
    with pytest.raises(TypeError, match="stops"):
        lm.generate([PROMPT], stops="x")
    refused(lambda: lm.generate([PROMPT], sampling=SAMPLING, allowed=[]), "allowed names no token")
    refused(lambda: lm.generate([PROMPT], sampling=SAMPLING, stop_ids=[131]), "stop_ids: token 131")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_length": 513}, ("max_length must be in 2 … 512",)),
        ({"max_length": 10.0}, ("max_length must be a whole number",)),
        ({"settings": EngineSettings(num_pages=3)}, ("3 pages of 16 tokens", "raise num_pages or lower max_length")),
        ({"attention": "block_topk:pages=4,page_size=4,dense_layers=9"}, ("no layer 9",)),
        ({"sampling": 5}, ("sampling must be a Sampling",)),
    ],
    ids=str,
)
def test_what_cannot_be_opened(lm, options, words):
    opened = inspect.unwrap(type(lm).open)  # without the tests' own checks of types
    refused(lambda: opened(lm, **options), *words, error=kj.errors.UserError)


@pytest.mark.slow
def test_samples_that_cannot_go_on(lm, decoder):
    other = lm.open(sampling=SAMPLING, settings=EngineSettings(slots=2), max_length=64)  # both of one model
    decoder.add(PROMPT, id="a", n=2)
    decoder.add(PROMPT, id="b", keep=False)
    other.add(PROMPT, id="a", n=2)
    first, second, lost = sorted(decoder, key=lambda sample: (sample.id, sample.sample))
    assert [sample.output_tokens for sample in other] == [first.output_tokens, second.output_tokens]
    refused(lambda: decoder.add([1, 2], id="a"), "id 'a' stands for another prompt")
    for call in (decoder.extend, decoder.fork, decoder.release):
        refused(lambda call=call: call(7), "give a sample that the decoder returned")
        refused(lambda call=call: call(lost), "sample 0 of 'b' was not kept", "keep=True")
    refused(lambda: other.extend(first, [5]), "belongs to another decoder")
    refused(lambda: decoder.extend(first, [131]), "tokens: token ids must lie in 0 … 130")
    refused(lambda: decoder.extend(first, [5], max_tokens=60), "of output", "max_length 64")
    refused(lambda: decoder.extend(first, [5], allowed=()), "allowed names no token")
    refused(lambda: decoder.fork(first, 0), "n must be at least 1")
    refused(lambda: decoder.extend(first, "text"), "token ids", error=kj.errors.UserError)  # it has no tokenizer
    decoder.extend(first, [5, 6])  # nothing was lost by all that
    for call in (decoder.extend, decoder.fork, decoder.release):
        refused(lambda call=call: call(first), "goes on already", "wait")
    (again,) = decoder
    assert again.output_tokens[:8] == [*first.output_tokens, 5, 6]
    refused(lambda: decoder.extend(first, [5]), "has gone on since")
    decoder.release(again, second)
    for call in (decoder.extend, decoder.fork, decoder.release):
        refused(lambda call=call: call(again), "was released", "add its prompt again")
    (schedule,) = decoder.decoding.schedules
    assert schedule.allocator.free == schedule.allocator.num_pages
    other.close()
    refused(lambda: other.extend(first), "the decoder is closed")
    refused(lambda: list(other), "the decoder is closed")
    decoder.add(PROMPT, id="c")
    assert [sample.id for sample in decoder] == ["c"]


def test_hooks_are_defined_once(decoder):
    """Each is a part of the program, so that one for each request would compile for each."""
    hooks = [lambda logits, output, count: logits for _ in range(MAX_HOOKS + 1)]
    own = decoder.rows.hooks
    for hook in hooks[:MAX_HOOKS]:
        decoder.add(PROMPT, hook=hook)
    refused(lambda: decoder.add(PROMPT, hook=hooks[-1]), f"one more than the {MAX_HOOKS}", "define hooks once")
    decoder.add(PROMPT, hook=hooks[0])
    decoder.decoding.schedules[0].waiting.clear()
    decoder.rows.hooks = own


@dataclasses.dataclass(frozen=True)
class NanScores(kj.AttentionPolicy):
    """Scores pages with NaN from its twelfth token on."""

    kind = "nan_scores"
    page_size: int = 4
    budget = 12

    def choose(self, step):
        zeros = jnp.zeros((step.batch, step.kv_heads, step.max_pages))
        scores = jnp.where((step.lengths > 11)[:, None, None], jnp.nan, zeros)
        return step.choose_pages(scores, pages=3, sink_pages=1, recent_pages=1)


@pytest.mark.slow
def test_a_policy_at_fault_loses_no_other_sample(lm):
    decoder = lm.open(sampling=SAMPLING, attention=NanScores(), settings=EngineSettings(slots=3), max_length=64)
    for length, name in ((3, "short"), (9, "long"), (4, "short too")):
        decoder.add(np.arange(10, 10 + length), id=name)
    samples = decoder.__iter__()
    assert {next(samples).id, next(samples).id} == {"short", "short too"}
    with pytest.raises(kj.attention.policies.base.PolicyError, match=r"nan_scores.*NaN.*'long', sample 0"):
        next(samples)
    decoder.add([10, 11], id="after")
    assert [sample.id for sample in decoder] == ["after"]
