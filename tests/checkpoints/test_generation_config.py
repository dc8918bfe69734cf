"""How a checkpoint recommends to be sampled, and who is heard: the file, a GGUF's metadata, flags, a run that began."""

import json
import shutil
import warnings

import pytest
from command_line import kinetics
from test_gguf import write_gguf
from test_gguf_metadata import WIDE, vocabulary
from tiny import tiny_config, tiny_tensors, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.assets import ASSETS, builtin_models
from kinetics_jax.checkpoints.generation_config import NAME, read_recommended
from kinetics_jax.checkpoints.hf import read_config
from kinetics_jax.errors import CheckpointError
from kinetics_jax.runs.folder import read_run

QWEN3 = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": [151645, 151643]}


def read(tmp_path, fields):
    (tmp_path / NAME).write_text(json.dumps(fields))
    return read_recommended(tmp_path)


def test_what_a_checkpoint_recommends(tmp_path):
    found = read(tmp_path, QWEN3)
    assert found.settings == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert found.sampling(max_tokens=7) == kj.Sampling(temperature=0.6, top_p=0.95, top_k=20, max_tokens=7)
    assert found.words == "temperature 0.6, top_p 0.95, top_k 20"
    assert found.identity == {"from": NAME, **found.settings}


@pytest.mark.parametrize(
    "fields",
    [{}, {"eos_token_id": 3}, {"do_sample": True, "temperature": 1.0}, {"top_k": 0, "top_p": 1.0}, {"top_k": -1}],
)
def test_what_recommends_nothing(tmp_path, fields):
    assert read_recommended(tmp_path) is None
    assert read(tmp_path, fields) is None


def test_the_builtin_models_recommend_nothing():
    for model in builtin_models():
        assert read_recommended(ASSETS / model) is None


def test_what_is_not_done_is_named(tmp_path):
    found = read(tmp_path, {**QWEN3, "repetition_penalty": 1.05, "typical_p": 0.9, "num_beams": 1, "min_p": 0.1})
    assert found.settings["min_p"] == 0.1
    assert found.not_applied == {"repetition_penalty": 1.05, "typical_p": 0.9}
    assert found.words.endswith("; not applied: repetition_penalty 1.05, typical_p 0.9")
    assert found.identity["not_applied"] == found.not_applied
    greedy = read(tmp_path, {"do_sample": False, "temperature": 0.7, "top_k": 5})
    assert greedy.sampling().temperature == 0
    assert greedy.words == "temperature 0 (do_sample is false, so that its temperature, top_k are not used)"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"temperature": -1}, "recommends temperature -1, which cannot be .*mend the file.*--sampling plain"),
        ({"temperature": "hot"}, "recommends temperature 'hot'"),
        ({"top_p": 1.5}, "recommends top_p 1.5"),
        ({"top_k": 2.5}, "recommends top_k 2.5"),
        ({"do_sample": "yes"}, "recommends do_sample 'yes'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(tmp_path, fields, why):
    with pytest.raises(CheckpointError, match=f"{NAME}: {why}"):
        read(tmp_path, fields)


def test_end_tokens_that_contradict_each_other_are_told(tmp_path):
    write_checkpoint(tmp_path, tiny_config(eos_token_id=5))
    (tmp_path / NAME).write_text(json.dumps({"eos_token_id": 2}))
    with pytest.warns(
        UserWarning, match=r"config.json ends at \[5\] and generation_config.json at \[2\]; a sample ends"
    ):
        assert read_config(tmp_path).eos_token_ids == (5, 2)
    for more in ([2, 5], [5], 5, None, []):
        (tmp_path / NAME).write_text(json.dumps({"eos_token_id": more}))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert set(read_config(tmp_path).eos_token_ids) == {5, *(more if isinstance(more, list) else [])}


@pytest.mark.slow
def test_generate_draws_as_the_checkpoint_recommends(tmp_path):
    ends = list(range(15, 131))  # soon
    write_checkpoint(tmp_path, tiny_config(max_position_embeddings=2048, eos_token_id=ends))
    (tmp_path / NAME).write_text(json.dumps({"do_sample": True, "temperature": 0.5, "top_k": 3}))
    lm = kj.load(tmp_path, dtype="float32")
    with pytest.warns(
        UserWarning, match=r"sampled as it recommends \(temperature 0.5, top_k 3\); sampling=kj.Sampling"
    ):
        recommended = lm.generate([[5, 6]], n=16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        said = lm.generate([[5, 6]], n=16, sampling=kj.Sampling(temperature=0.5, top_k=3))
    drawn = [[sample.output_tokens for sample in samples] for samples in (recommended, said)]
    assert drawn[0] == drawn[1]


def test_gguf_metadata_recommend(tmp_path):
    metadata = vocabulary(eos_token_id=259)
    metadata |= {"general.sampling.temp": 0.6, "general.sampling.top_p": 0.95, "general.sampling.top_k": 20}
    lm = kj.load(write_gguf(tmp_path / "a.gguf", WIDE, tiny_tensors(WIDE), metadata=metadata))
    assert lm.recommended.settings == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}  # not 0.949999988
    lm = kj.load(write_gguf(tmp_path / "b.gguf", WIDE, tiny_tensors(WIDE), metadata=vocabulary(eos_token_id=259)))
    assert lm.recommended is None


@pytest.fixture(scope="module")
def recommending(tmp_path_factory):
    """The smallest built-in model, with a recommendation."""
    directory = tmp_path_factory.mktemp("models") / "mine"
    shutil.copytree(ASSETS / builtin_models()[0], directory)
    (directory / NAME).write_text(json.dumps({"do_sample": True, "temperature": 0.7, "top_k": 9, "eos_token_id": 0}))
    return directory


def sampled(model, out, *flags, code=0):
    ended = kinetics("sample", model, "--limit", 1, "--n", 1, "--max-tokens", 4, "--out", out, *flags, code=code)
    drawn = () if code else tuple(read_run(out).header["sampling"][name] for name in ("temperature", "top_k"))
    return drawn, ended.stderr


@pytest.mark.slow
def test_flags_win_over_the_recommendation_one_by_one(recommending, tmp_path):
    drawn, said = sampled(recommending, tmp_path / "a")
    assert drawn == (0.7, 9)
    assert "mine: sampled as it recommends (temperature 0.7, top_k 9); --sampling plain" in said
    assert read_run(tmp_path / "a").header["recommended"] == {"from": NAME, "temperature": 0.7, "top_k": 9}
    drawn, said = sampled(recommending, tmp_path / "b", "--top-k", 5)
    assert drawn == (0.7, 5)
    assert "but for --top-k" in said
    drawn, said = sampled(recommending, tmp_path / "c", "--sampling", "plain")
    assert drawn == (1.0, 0)
    assert "recommends" not in said
    assert "recommended" not in read_run(tmp_path / "c").header
    # A run goes on as it began, where no flag says otherwise.
    drawn, said = sampled(recommending, tmp_path / "c")
    assert drawn == (1.0, 0)
    assert "sampled as the run in the folder began (temperature 1.0, top_p 1.0, top_k 0, min_p 0.0)" in said
    _, said = sampled(recommending, tmp_path / "c", "--sampling", "recommended", code=2)
    assert "holds another run (sampling.temperature: 1.0 stored, 0.7 asked for" in said


@pytest.mark.slow
def test_greedy_plain_and_recommended_by_name(tmp_path):
    model = builtin_models()[0]
    drawn, said = sampled(model, tmp_path / "a", "--sampling", "greedy")
    assert drawn == (0.0, 0)
    drawn, said = sampled(model, tmp_path / "b")
    assert drawn == (1.0, 0)
    assert "sampled as" not in said
    _, said = sampled(model, tmp_path / "c", "--sampling", "recommended", code=2)
    assert f"{model}: recommends no sampling" in said
    _, said = sampled(model, tmp_path / "c", "--sampling", "greedy", "--temperature", 0.5, code=2)
    assert "--sampling greedy draws at temperature 0, --temperature says 0.5" in said
