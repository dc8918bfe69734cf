"""Logits that are not finite end a sample by name, with one warning that says where that began; nothing is made up."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import QWEN2, tiny_config, tiny_prompts, tiny_tensors, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.engine.engine import Request
from kinetics_jax.engine.sampling import NONFINITE, sample_keys, sample_tokens, seed_key
from kinetics_jax.settings import EngineSettings

pytestmark = pytest.mark.slow

GREEDY = kj.Sampling(temperature=0, max_tokens=10)
SAMPLINGS = [
    GREEDY,
    kj.Sampling(max_tokens=10),
    kj.Sampling(top_k=5, max_tokens=10),
    kj.Sampling(top_p=0.9, max_tokens=10),
    kj.Sampling(top_k=5, top_p=0.9, min_p=0.1, max_tokens=10),
]


def checkpoint(folder, scaled: dict[str, float], **changes):
    """A tiny checkpoint with some of its tensors scaled."""
    config = tiny_config(eos_token_id=None, **changes)
    tensors = tiny_tensors(config, seed=5)
    for name, factor in scaled.items():
        tensors[f"model.layers.{name}"] = (tensors[f"model.layers.{name}"] * factor).astype(np.float32)
    return write_checkpoint(folder, config, tensors)


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """Whose feed-forward of layer 1 exceeds what float16 holds."""
    return checkpoint(tmp_path_factory.mktemp("wide"), {"1.mlp.gate_proj.weight": 300, "1.mlp.up_proj.weight": 300})


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_rows_that_say_nothing_draw_nothing(sampling):
    rows = np.random.default_rng(0).standard_normal((6, 40)).astype(np.float32)
    rows[0, 7] = np.nan
    rows[1, :] = np.nan
    rows[2, 39] = np.inf
    rows[3, :] = -np.inf
    rows[4, 1:] = -np.inf  # a mask that leaves one token
    keys = sample_keys(seed_key(0), jnp.uint32(1), jnp.arange(6))
    drawn = np.asarray(jax.jit(lambda x: sample_tokens(x, keys, jnp.zeros(6, jnp.int32), sampling))(rows))
    assert drawn[:5].tolist() == [NONFINITE] * 4 + [0]
    assert 0 <= drawn[5] < 40


@pytest.mark.parametrize("sampling", [GREEDY, kj.Sampling(top_k=5, max_tokens=10)], ids=str)
def test_overflow_from_the_first_token_on(wide, sampling):
    lm = kj.load(wide, dtype="float16")
    with pytest.warns(UserWarning, match="finite") as caught:
        samples = lm.generate(tiny_prompts(3, first=5), n=2, sampling=sampling)
    assert {(sample.finish_reason, len(sample.output_tokens)) for sample in samples} == {("nonfinite", 0)}
    (warning,) = caught
    text = str(warning.message)
    for words in ("layer 1 (its feed-forward", "float16", "--dtype bfloat16", "prompt 0, sample 0", "token 0"):
        assert words in text
    assert "\n" not in text


def test_the_cure_works(wide):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not finite")
        samples = kj.load(wide, dtype="bfloat16").generate(tiny_prompts(1, first=5), sampling=GREEDY)
    assert samples[0].finish_reason == "length"


@pytest.mark.parametrize("policy", [kj.Dense(), kj.BlockTopK(pages=3, page_size=4, dense_layers=())], ids=str)
def test_keys_that_overflow(tmp_path, policy):
    """Keys of +-inf and NaN are attended: neither an empty row nor a page that is passed over hides them."""
    folder = checkpoint(tmp_path, {"0.self_attn.k_proj.weight": 3e4}, **QWEN2)
    lm = kj.load(folder, dtype="float16")
    prompts = tiny_prompts(2, first=30)
    assert not np.isfinite(np.asarray(lm.logits(prompts[:1]))[0, -1]).any()
    with pytest.warns(UserWarning, match="layer 0 \\(its queries, keys or values"):
        samples = lm.generate(prompts, sampling=GREEDY, attention=policy)
    assert [sample.finish_reason for sample in samples] == ["nonfinite"] * 2


@pytest.fixture(scope="module")
def trap(tmp_path_factory):
    """A model in float16 with one token whose embedding, added to attention's output, overflows; and that token."""
    folder = tmp_path_factory.mktemp("trap")
    config = tiny_config(eos_token_id=None)
    tensors = tiny_tensors(config, seed=5)
    tensors["model.layers.0.self_attn.o_proj.weight"] *= 1000
    lm = kj.load(write_checkpoint(folder / "sound", config, tensors), dtype="float16")
    chain = lm.generate(tiny_prompts(1, first=6), sampling=GREEDY)[0].output_tokens
    token = next(token for place, token in enumerate(chain) if place >= 4 and token not in chain[:place])
    tensors["model.embed_tokens.weight"][token] = 65000
    return kj.load(write_checkpoint(folder / "trap", config, tensors), dtype="float16"), chain, token


@pytest.mark.parametrize("chunk", [1, 5, 32])
def test_tokens_before_the_failure_are_kept_and_neighbours_go_on(trap, chunk):
    lm, chain, token = trap
    prompts = [tiny_prompts(1, first=6)[0], *tiny_prompts(3, seed=9, first=4)]
    prompts = [[other for other in prompt if other != token] for prompt in prompts]
    engine = lm.engine(sampling=GREEDY, settings=EngineSettings(slots=2, chunk=chunk))
    requests = [Request(str(index), prompt, [0]) for index, prompt in enumerate(prompts)]
    decoding = engine.start(engine.check(requests))
    with pytest.warns(UserWarning, match=f"problem '0', sample 0, token {chain.index(token) + 1}: ") as caught:
        done = {sample.problem: sample for sample in decoding.run()}
    assert len(caught) == 1
    assert "layer 0" in str(caught[0].message)
    assert done["0"].finish_reason == "nonfinite"
    assert done["0"].output_tokens == chain[: chain.index(token) + 1]
    assert {done[str(index)].finish_reason for index in (1, 2, 3)} == {"length"}
    assert all(len(done[str(index)].output_tokens) == 10 for index in (1, 2, 3))
    assert decoding.counts.drawn == sum(len(sample.output_tokens) - 1 for sample in done.values())
    assert decoding.schedules[0].allocator.free == decoding.job.num_pages
