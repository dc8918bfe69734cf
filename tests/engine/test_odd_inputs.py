"""What users pass by mistake is refused in one line with the cure; numbers of NumPy and jax are as good as Python's."""

import dataclasses
import inspect

import jax.numpy as jnp
import numpy as np
import pytest
from tiny import tiny_config, tiny_prompts, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.attention.policies.base import PolicyError
from kinetics_jax.engine.engine import Engine
from kinetics_jax.errors import UserError
from kinetics_jax.settings import EngineSettings, RequestError, Sampling, SamplingError

GREEDY = Sampling(temperature=0, max_tokens=3)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return kj.load(write_checkpoint(tmp_path_factory.mktemp("tiny"), tiny_config(), seed=5), dtype="float32")


def refused(call, *words: str, error: type[UserError] = RequestError, most: int = 300) -> None:
    """The call is refused in one short line, of at most so many letters, that holds these words."""
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < most
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        ([10, 11], ("put it in a list",)),
        (np.array([10, 11]), ("put it in a list",)),
        ("text", ("put it in a list",)),
        (7, ("list of texts",)),
        (None, ("list of texts",)),
        ([[[10]]], ("prompt 0", "list within a list")),
        ([[[10], [11, 12]]], ("list within a list",)),
        ([[10, 10.7]], ("prompt 0", "token 1 is 10.7")),
        (np.array([[10.0, 11.0]]), ("prompt 0", "token 0 is 10.0")),
        ([[10], [True]], ("prompt 1", "True")),
        ([[10], None], ("prompt 1", "None")),
        ([b"abc"], ("prompt 0", "b'abc'")),
        ([["a"]], ("prompt 0", "'a'")),
        ([{"role": "user", "content": "hello"}], ("chat messages", "chat template")),
        ([[{"role": "user", "content": "hello"}]], ("chat messages", "chat template")),
        ({"prompt": [10]}, ("list of texts",)),
        ([[]], ("prompt 0", "no token")),
        ([[10, 131]], ("prompt 0", "0 … 130")),
        ([[-1]], ("0 … 130",)),
        ([[10] * 512], ("512 prompt tokens", "shorten the prompt")),
        ([[10] * 600], ("600 prompt tokens", "shorten the prompt")),
        ([[10] * 510], ("lower max_tokens to 2",)),
    ],
    ids=str,
)
def test_odd_prompts(lm, prompts, words):
    refused(lambda: lm.generate(prompts, sampling=GREEDY), *words)


def test_lowering_max_tokens_is_not_the_cure_of_a_long_prompt(lm):
    settings = EngineSettings(num_pages=4)
    with pytest.raises(RequestError, match=r"raise num_pages$"):
        lm.generate([[10] * 100], sampling=GREEDY, settings=settings)
    with pytest.raises(RequestError, match=r"raise num_pages or lower max_tokens$"):
        lm.generate([[10] * 40], sampling=Sampling(max_tokens=100), settings=settings)


@pytest.mark.slow
def test_numbers_of_numpy_and_jax(lm):
    sampling = Sampling(
        temperature=np.float32(0),
        top_p=jnp.float32(1),
        top_k=np.int64(0),
        min_p=0,
        max_tokens=jnp.int32(3),
        seed=np.uint32(7),
        repetition_window=np.int8(0),
        known_ids_only=np.bool_(False),
    )
    assert {type(value) for value in dataclasses.asdict(sampling).values()} == {int, float, bool}
    settings = EngineSettings(
        slots=np.int32(2), chunk=jnp.int32(4), num_pages=np.int64(40), shared_prefix=np.bool_(0), speculate=np.int8(0)
    )
    assert [type(value) for value in dataclasses.astuple(settings)] == [int, int, int, int, bool, int]
    policy = kj.BlockTopK(pages=np.int32(4), page_size=np.int64(4), dense_layers=np.array([1, 0, 1]))
    assert str(policy) == str(kj.BlockTopK(pages=4, page_size=4, dense_layers=(0, 1)))
    prompts = tiny_prompts(2, first=5)
    plain = lm.generate(prompts, n=2, sampling=GREEDY)
    for same in ([np.array(p, np.uint8) for p in prompts], [jnp.asarray(p) for p in prompts], map(tuple, prompts)):
        drawn = lm.generate(same, n=np.int64(2), sampling=GREEDY)
        assert [sample.output_tokens for sample in drawn] == [sample.output_tokens for sample in plain]
    assert all(type(token) is int for token in drawn[0].output_tokens)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Sampling)])
@pytest.mark.parametrize("value", [None, "1", (1,), np.array([1.0]), float("nan")], ids=str)
def test_sampling_of_another_type(field, value):
    refused(lambda: Sampling(**{field: value}), f"sampling: {field} must be", error=SamplingError)


@pytest.mark.parametrize("value", [20.0, np.float32(20), 20.5, True, "20", jnp.float32(20)], ids=repr)
@pytest.mark.parametrize("field", ["top_k", "max_tokens", "seed", "repetition_window"])
def test_no_float_is_a_whole_number(field, value):
    """One rule: what must be whole is whole by its type."""
    words = [f"sampling: {field} must be a whole number"]
    words += ["write 20"] if type(value) is float and value == 20 else []
    refused(lambda: Sampling(**{field: value}), *words, error=SamplingError)


@pytest.mark.parametrize("field", ["slots", "chunk", "num_pages", "prefill_chunk", "shared_prefix"])
@pytest.mark.parametrize("value", [2.0, "2", (2,), b"x" * 5000], ids=lambda value: repr(value)[:10])
def test_engine_settings_of_another_type(field, value):
    refused(lambda: EngineSettings(**{field: value}), f"engine: {field} must be")


@pytest.mark.parametrize(
    "make",
    [
        lambda: kj.BlockTopK(pages=4.0),
        lambda: kj.BlockTopK(pages="4"),
        lambda: kj.BlockTopK(pages=None),
        lambda: kj.BlockTopK(pages=True),
        lambda: kj.BlockTopK(pages=4, page_size=16.0),
        lambda: kj.BlockTopK(pages=4, dense_layers=0),
        lambda: kj.BlockTopK(pages=4, dense_layers="0"),
        lambda: kj.BlockTopK(pages=4, dense_layers=(0.0,)),
        lambda: kj.BlockTopK(pages=4, summary=1),
        lambda: kj.TokenTopK(budget=4.0),
        lambda: kj.SlidingWindow(budget="64"),
        lambda: kj.RandomBlocks(pages=np.float64(4)),
        lambda: kj.LiteSysBlockTopK(pages=2.0),
        lambda: kj.LiteSysBlockTopK(pages=None),
    ],
)
def test_policies_of_other_types(make):
    refused(make, "must be", error=PolicyError)


@pytest.mark.slow
def test_policies_by_spelling(lm):
    prompts = tiny_prompts(1, first=30)
    spelled = lm.generate(prompts, sampling=GREEDY, attention="block_topk:pages=4,page_size=4")
    policy = lm.generate(prompts, sampling=GREEDY, attention=kj.BlockTopK(pages=4, page_size=4))
    assert spelled[0].output_tokens == policy[0].output_tokens
    refused(lambda: lm.generate(prompts, attention="no_such"), "no_such", "known: dense", error=PolicyError, most=420)
    make = inspect.unwrap(Engine.__init__)  # without the tests' own checks of types
    setup = {"policy": kj.Dense(), "sampling": GREEDY}
    for name, value, words in (
        ("policy", None, "attention must be a policy or its spelling"),
        ("sampling", {"temperature": 0}, "sampling must be a Sampling"),
        ("settings", 8, "settings must be an EngineSettings"),
    ):
        arguments = {**setup, name: value}
        refused(
            lambda made=arguments: make(object.__new__(Engine), lm.graph, lm.weights, lm.config, **made),
            words,
            error=UserError,
        )


@pytest.mark.parametrize("n", [0, 2.0, "2", None, True])
def test_odd_numbers_of_samples(lm, n):
    refused(lambda: lm.generate([[10]], n=n), "generate: n must be")


def test_no_prompts_are_no_samples(lm):
    assert lm.generate([]) == []


@pytest.mark.parametrize(
    ("tokens", "word"),
    [
        ([[1.5]], "whole numbers"),
        ([1, 2], "shape (2,)"),
        ([[]], "shape (1, 0)"),
        ([[1], [2, 3]], "one length"),
        ([[131]], "0 … 130"),
        ([["a"]], "whole numbers"),
    ],
)
def test_odd_token_ids_of_logits(lm, tokens, word):
    refused(lambda: lm.logits(tokens), word)
