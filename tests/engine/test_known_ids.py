"""Ids that no token has are drawn like any other, or, where asked, never."""

import dataclasses

import numpy as np
import pytest
from tiny import tiny_config, tiny_prompts, write_checkpoint
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import kinetics_jax as kj
from kinetics_jax.engine.engine import Engine
from kinetics_jax.errors import CheckpointError
from kinetics_jax.settings import RequestError

pytestmark = pytest.mark.slow

WORDS = [place for place in range(40) if place != 7]  # of 131 ids; and the end token, 3, is one of them


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("padded"), tiny_config(), seed=5)
    words = {f"word{place}": place for place in WORDS}
    Tokenizer(WordLevel(words, unk_token="word0")).save(str(folder / "tokenizer.json"))
    return kj.load(folder, dtype="float32")


@pytest.mark.parametrize("settings", [{"temperature": 5.0}, {"temperature": 0}, {"temperature": 5.0, "top_k": 50}])
def test_only_known_ids_are_drawn(lm, settings):
    sampling = kj.Sampling(max_tokens=8, **settings)
    prompts = tiny_prompts(2, first=3)
    drawn = {token for sample in lm.generate(prompts, n=8, sampling=sampling) for token in sample.output_tokens}
    assert drawn - set(WORDS), "the case is not the one meant: nothing unknown would be drawn"
    known = dataclasses.replace(sampling, known_ids_only=True)
    samples = lm.generate(prompts, n=8, sampling=known)
    assert {token for sample in samples for token in sample.output_tokens} <= set(WORDS)
    if sampling.temperature == 0:
        first = lm.logits([prompts[0]])[0, -1]
        assert samples[0].output_tokens[0] == WORDS[int(np.argmax(np.asarray(first)[WORDS]))]


def test_it_needs_a_tokenizer(lm, tmp_path):
    sampling = kj.Sampling(known_ids_only=True)
    bare = kj.load(write_checkpoint(tmp_path, tiny_config(), seed=5), dtype="float32")
    with pytest.raises(CheckpointError, match="tokenizer"):
        bare.generate([[10]], sampling=sampling)
    with pytest.raises(RequestError, match="known_ids"):
        Engine(lm.graph, lm.weights, lm.config, policy=kj.Dense(), sampling=sampling)
