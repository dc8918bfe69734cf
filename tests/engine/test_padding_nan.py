"""Padding of a prompt reaches no result, whatever the model makes of it."""

import numpy as np
import pytest
from tiny import tiny_config, tiny_prompts, tiny_tensors, write_checkpoint

import kinetics_jax as kj

pytestmark = pytest.mark.slow


def test_a_padding_token_that_overflows(tmp_path):
    """Prompts are padded with token 0, whose embedding overflows here in float16 and which is never drawn."""
    config = tiny_config(eos_token_id=None)
    tensors = tiny_tensors(config, seed=5)
    tensors["model.layers.0.self_attn.o_proj.weight"] *= 1000
    sampling, prompt = kj.Sampling(temperature=0, max_tokens=6), tiny_prompts(1, first=5)
    sound = kj.load(write_checkpoint(tmp_path / "sound", config, tensors), dtype="float16")
    expected = sound.generate(prompt, sampling=sampling)[0]
    assert 0 not in expected.output_tokens
    tensors["model.embed_tokens.weight"][0] = 65000
    odd = kj.load(write_checkpoint(tmp_path / "odd", config, tensors), dtype="float16")
    assert not np.isfinite(np.asarray(odd.logits([[5, 0]]))[0, 1]).any()
    sample = odd.generate(prompt, sampling=sampling)[0]
    assert (sample.output_tokens, sample.finish_reason) == (expected.output_tokens, "length")
