"""Reading Hugging Face checkpoints: all faults named at once, nothing half-loaded, little memory beside the weights."""

import json
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from tiny import tiny_config, tiny_tensors, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.checkpoints.resolve import resolve
from kinetics_jax.errors import CheckpointError

CONFIG = tiny_config()
Q = "model.layers.0.self_attn.q_proj.weight"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.slow
def test_one_shard_and_many_are_the_same_model(tmp_path):
    tokens = [[5, 6, 7, 8]]
    one = kj.load(write_checkpoint(tmp_path / "one", CONFIG), dtype="float32").logits(tokens)
    many = kj.load(write_checkpoint(tmp_path / "many", CONFIG, shards=4), dtype="float32").logits(tokens)
    np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("stored", [np.float32, ml_dtypes.bfloat16, np.float16, np.float64])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_cast_to_the_dtype_asked_for(tmp_path, stored, dtype):
    tensors = {name: tensor.astype(stored) for name, tensor in tiny_tensors(CONFIG).items()}
    lm = kj.load(write_checkpoint(tmp_path, CONFIG, tensors), dtype=dtype)
    assert lm.dtype == jnp.dtype(dtype)
    loaded = lm.weights["layers"][0]["self_attn"]["q_proj"]["weight"][...]
    np.testing.assert_array_equal(np.asarray(loaded), tensors[Q].astype(jnp.dtype(dtype)))


def test_all_faults_are_reported_together(tmp_path):
    tensors = tiny_tensors(CONFIG)
    del tensors["model.norm.weight"]
    tensors["model.layers.7.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
    tensors[Q] = np.zeros((3, 3), np.float32)
    tensors[UP][4, 2] = np.nan
    tensors["model.layers.1.mlp.down_proj.weight"] = np.zeros((32, 48), np.int32)
    with pytest.raises(CheckpointError) as error:
        kj.load(write_checkpoint(tmp_path, CONFIG, tensors))
    text = str(error.value)
    for fault in (
        str(tmp_path),
        "missing: norm.weight",
        "not part of this model: layers.7.mlp.up_proj.weight",
        "layers.0.self_attn.q_proj.weight has shape [3, 3], expected [32, 32]",
        "layers.1.mlp.up_proj.weight holds 1 values that are NaN or infinite",
        "layers.1.mlp.down_proj.weight is stored as I32",
    ):
        assert fault in text


def test_overflow_in_the_target_dtype_is_a_fault(tmp_path):
    tensors = tiny_tensors(CONFIG)
    tensors[UP][0, 0] = 1e6
    with pytest.raises(CheckpointError, match=r"up_proj\.weight holds 1 values that are NaN or infinite in float16"):
        kj.load(write_checkpoint(tmp_path, CONFIG, tensors), dtype="float16")


def test_a_truncated_shard_and_an_absent_one_are_named(tmp_path):
    write_checkpoint(tmp_path, CONFIG, shards=3)
    shards = sorted(tmp_path.glob("*.safetensors"))
    shards[0].write_bytes(shards[0].read_bytes()[:-100])
    shards[1].unlink()
    with pytest.raises(CheckpointError) as error:
        kj.load(tmp_path)
    assert f"{shards[0].name} is truncated" in str(error.value)
    assert f"{shards[1].name} is named by" in str(error.value)
    assert "missing: " not in str(error.value)


def test_tensors_that_are_there_twice_are_named(tmp_path):
    write_checkpoint(tmp_path, CONFIG, shards=2)
    (tmp_path / "model.safetensors.index.json").unlink()
    shards = sorted(tmp_path.glob("*.safetensors"))
    (tmp_path / "stray.safetensors").write_bytes(shards[0].read_bytes())
    with pytest.raises(CheckpointError, match=r"is in both model-00001-of-00002\.safetensors and stray\.safetensors"):
        kj.load(tmp_path)


def test_names_and_fingerprints(tmp_path, monkeypatch):
    """A directory goes by its name however it is typed; other weights have another fingerprint."""
    first = kj.load(write_checkpoint(tmp_path / "mine", CONFIG, seed=1))
    monkeypatch.chdir(tmp_path / "mine")
    again = kj.load(".")
    assert first.config.name == again.config.name == "mine"
    assert first.fingerprint == again.fingerprint
    assert kj.load(write_checkpoint(tmp_path / "b" / "mine", CONFIG, seed=2)).fingerprint != first.fingerprint


def test_a_hub_model_goes_by_its_id(tmp_path, monkeypatch):
    import huggingface_hub.constants

    cached = tmp_path / "models--acme--tiny"
    write_checkpoint(cached / "snapshots" / "0123abc", CONFIG)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0123abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert kj.load("acme/tiny").config.name == "acme/tiny"


def test_a_broken_tokenizer_is_named(tmp_path):
    lm = kj.load(write_checkpoint(tmp_path, CONFIG))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: not a tokenizer"):
        lm.encode("text")


def test_a_tied_model_may_carry_its_lm_head(tmp_path):
    config = tiny_config(tie_word_embeddings=True)
    tensors = tiny_tensors(config)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    kj.load(write_checkpoint(tmp_path, config, tensors))


def test_pickled_weights_are_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is a pickle"):
        kj.load(tmp_path)


def test_end_tokens_of_both_files_count(tmp_path):
    write_checkpoint(tmp_path, CONFIG)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [9, 3]}))
    assert kj.load(tmp_path).config.eos_token_ids == (3, 9)


@pytest.mark.slow
def test_no_tokenizer_is_needed_until_text_is(tmp_path):
    lm = kj.load(write_checkpoint(tmp_path, CONFIG))
    assert lm.generate([[5, 6]], sampling=kj.Sampling(max_tokens=2))[0].text is None
    with pytest.raises(CheckpointError, match=r"tokenizer.json: no such file"):
        lm.generate(["text"])


def test_names_that_lead_nowhere(tmp_path):
    with pytest.raises(CheckpointError, match="nor a built-in model"):
        resolve("no-such-model")
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="give the directory"):
        resolve(path)


def test_a_hub_id_without_a_network_says_so(monkeypatch, tmp_path):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="hub cannot be reached"):
        resolve("Qwen/Qwen3-0.6B")


MEASURE = """
import sys, threading, numpy as np, jax, kinetics_jax as kj
from pathlib import Path
from kinetics_jax.checkpoints import hf

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

jax.numpy.zeros(1).block_until_ready()
import safetensors.numpy
peak, stop = 0, threading.Event()
base = resident()
def watch():
    global peak
    while not stop.is_set():
        peak = max(peak, resident())
watcher = threading.Thread(target=watch, daemon=True); watcher.start()
lm = kj.load(sys.argv[1], dtype=sys.argv[2])
stop.set(); watcher.join()
print(peak - base, sum(leaf.nbytes for leaf in jax.tree.leaves(lm.weights)))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("stored", "dtype"), [(np.float32, "float32"), (ml_dtypes.bfloat16, "float32")])
def test_peak_memory_beyond_the_weights(tmp_path, stored, dtype):
    """At most 1.5 times the largest tensor beside the weights themselves, measured in a process of its own."""
    config = tiny_config(vocab_size=100_000, hidden_size=512, intermediate_size=1024, num_hidden_layers=4)
    rng = np.random.default_rng(0)
    config["num_key_value_heads"] = config["num_attention_heads"]
    tensors = {
        name: rng.standard_normal(tensor.shape, np.float32).astype(stored)
        for name, tensor in tiny_tensors(config).items()
    }
    write_checkpoint(tmp_path, config, tensors, shards=2)
    largest = max(tensor.size for tensor in tensors.values()) * np.dtype(dtype).itemsize
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), dtype], capture_output=True, text=True, check=True
    )
    peak, weights = map(int, done.stdout.split())
    assert weights == sum(tensor.size for tensor in tensors.values()) * np.dtype(dtype).itemsize
    assert peak - weights <= 1.5 * largest, f"{(peak - weights) / largest:.2f} times the largest tensor"
    print(f"{Path(tmp_path).name}: {(peak - weights) / largest:.2f} x the largest tensor")
