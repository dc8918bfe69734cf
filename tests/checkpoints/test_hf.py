"""Reading Hugging Face checkpoints: all faults named at once, nothing half-loaded, little memory beside the weights."""

import json
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import MOE, tiny_config, tiny_tensors, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.checkpoints.hf import save_hf
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


@pytest.mark.parametrize("change", ["values", "shape", "last bit"])
def test_a_head_beside_tied_embeddings_must_be_the_embedding(tmp_path, change):
    config = tiny_config(tie_word_embeddings=True)
    tensors = tiny_tensors(config)
    head = tensors["model.embed_tokens.weight"].copy()
    head[-1, -1] = np.nextafter(head[-1, -1], np.float32(9))
    tensors["lm_head.weight"] = {"values": -head, "shape": head[:7, :3], "last bit": head}[change]
    with pytest.raises(CheckpointError, match=r"lm_head\.weight is not embed_tokens\.weight.*tie_word_embeddings"):
        kj.load(write_checkpoint(tmp_path, config, tensors))


def test_frequencies_that_are_stored_must_be_those_of_the_configuration(tmp_path):
    frequencies = 1e6 ** (-np.arange(4) / 4)
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    kj.load(write_checkpoint(tmp_path, CONFIG, {**tiny_tensors(CONFIG), name: frequencies.astype(np.float16)}))
    tensors = {**tiny_tensors(CONFIG), name: (1e4 ** (-np.arange(4) / 4)).astype(np.float32)}
    with pytest.raises(CheckpointError, match=r"inv_freq holds other frequencies than rope_theta = 1e\+06 gives"):
        kj.load(write_checkpoint(tmp_path, CONFIG, tensors))


def test_an_index_beside_a_single_file_is_refused(tmp_path):
    """One of them is older: transformers takes the file, other readers the index."""
    write_checkpoint(tmp_path, CONFIG, shards=2)
    write_checkpoint(tmp_path, CONFIG, seed=1)
    with pytest.raises(CheckpointError, match=r"holds both model\.safetensors and model\.safetensors\.index\.json"):
        kj.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds both model\.safetensors and shards \(model-00001-of-00002"):
        kj.load(tmp_path)
    for path in tmp_path.glob("model-*"):
        path.unlink()
    kj.load(tmp_path)


def test_shards_of_two_kinds_are_refused_and_other_files_named(tmp_path):
    write_checkpoint(tmp_path, CONFIG, shards=3)
    write_checkpoint(tmp_path, CONFIG, shards=2, seed=1)
    with pytest.raises(
        CheckpointError, match=r"holds model-00001-of-00003\.safetensors, which .*index\.json does not name"
    ):
        kj.load(tmp_path)
    for path in tmp_path.glob("*-of-00003*"):
        path.rename(tmp_path / "consolidated.safetensors")
    with pytest.warns(UserWarning, match=r"not read: consolidated\.safetensors"):
        kj.load(tmp_path)


@pytest.mark.parametrize("names", [{"a": "../x.safetensors"}, {"a": 5}, ["a"], {"a": "/dev/zero"}, None])
def test_an_index_that_is_none(tmp_path, names):
    write_checkpoint(tmp_path, CONFIG, shards=2)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(CheckpointError, match="not a shard index"):
        kj.load(tmp_path)


def test_an_adapter_is_not_left_out_silently(tmp_path):
    write_checkpoint(tmp_path, CONFIG)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"holds an adapter \(adapter_config\.json\).*merge"):
        kj.load(tmp_path)


def test_two_layouts_in_one_directory_are_refused(tmp_path):
    write_checkpoint(tmp_path, CONFIG)
    (tmp_path / "weights").mkdir()
    with pytest.raises(CheckpointError, match=r"holds both \*\.safetensors and Orbax's weights/"):
        kj.load(tmp_path)


def test_float64_files_are_read_where_a_dtype_is_asked_for(tmp_path):
    config = tiny_config(torch_dtype="float64")
    tensors = {name: tensor.astype(np.float64) for name, tensor in tiny_tensors(config).items()}
    lm = kj.load(write_checkpoint(tmp_path, config, tensors), dtype="float32")
    plain = kj.load(write_checkpoint(tmp_path / "plain", CONFIG), dtype="float32")
    np.testing.assert_array_equal(lm.logits([[5, 6]]), plain.logits([[5, 6]]))


def fused(tensors):
    """Experts as transformers 5 keeps them: gate above up, one tensor for all experts."""
    kept, stacked = {}, {}
    for name, tensor in tensors.items():
        layer, found, rest = name.partition(".experts.")
        if found:
            stacked.setdefault((layer, rest.split(".")[1]), []).append(tensor)
        else:
            kept[name] = tensor
    for (layer, matrix), each in stacked.items():
        if matrix != "up_proj":
            ups = stacked[layer, "up_proj"] if matrix == "gate_proj" else [each[0][:0]] * len(each)
            whole = np.stack([np.concatenate(pair) for pair in zip(each, ups, strict=True)])
            kept[f"{layer}.experts.{'gate_up_proj' if matrix == 'gate_proj' else matrix}"] = whole
    return kept


@pytest.mark.parametrize("experts", [8, 1])
def test_experts_in_one_tensor_each_and_in_one_for_all(tmp_path, experts):
    config = tiny_config(**MOE | {"num_experts": experts, "num_experts_per_tok": min(3, experts)})
    tensors = tiny_tensors(config)
    each = kj.load(write_checkpoint(tmp_path / "each", config, tensors), dtype="float32")
    one = kj.load(write_checkpoint(tmp_path / "one", config, fused(tensors)), dtype="float32")
    for ours, theirs in zip(jax.tree.leaves(each.weights), jax.tree.leaves(one.weights), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    saved = save_hf(tmp_path / "saved", each.config, each.weights)
    again = load_file(saved / "model.safetensors")
    assert again.keys() == tensors.keys()
    for name in tensors:
        np.testing.assert_array_equal(again[name], tensors[name], err_msg=name)


def test_sizes_are_held_to_the_files_before_anything_is_built(tmp_path):
    for change, says in (
        ({"num_hidden_layers": 65_000}, "says 65,000 layers, and its files hold"),
        ({**MOE, "num_experts": 60_000}, "says 60,000 experts"),
        ({"hidden_size": 2**20}, "has shape .*, expected .*1048576"),
    ):
        start = time.monotonic()
        with pytest.raises(CheckpointError, match=says):
            kj.load(write_checkpoint(tmp_path, tiny_config(**change), tiny_tensors(CONFIG)))
        assert time.monotonic() - start < 5


def header(**entries):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "it has 0 bytes"),
        ((2**63).to_bytes(8, "little") + b"{}", "its header would be 9,223,372,036,854,775,808 bytes long"),
        ((10**6).to_bytes(8, "little") + b"[" * 10**6, "nests too deeply"),
        (header(a={"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}) + bytes(4), "has 4 bytes, and F32 of shape"),
        (
            header(a={"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}) + bytes(4),
            "no dtype, shape and byte range",
        ),
        (header(a={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}) + bytes(5), "its tensors end at byte"),
        (header(a={"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}) + bytes(8), "begin at"),
        (
            header(**{n: {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} for n in "ab"}) + bytes(4),
            "the bytes of b begin at",
        ),
        (header(a=[1]), "no dtype, shape and byte range"),
        (header(__metadata__=[1]), "metadata are"),
        (header(a={"dtype": "F32", "shape": [10**30], "data_offsets": [0, 4]}) + bytes(4), "no dtype, shape"),
    ],
)
def test_headers_that_are_none(tmp_path, data, says):
    write_checkpoint(tmp_path, CONFIG)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors is truncated or not safetensors.*{says}") as error:
        kj.load(tmp_path)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("ends", "says"),
    [
        ([3, 700], r"end tokens \[700\] lie outside its vocabulary of 131 and are never drawn$"),
        ([700], r"no end token can be drawn.*\(its tokenizer's is '<end>'\)"),
        (None, "no end token can be drawn"),
    ],
)
def test_end_tokens_that_cannot_be_drawn_are_told(tmp_path, ends, says):
    write_checkpoint(tmp_path, tiny_config(eos_token_id=ends))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<end>"}}))
    with pytest.warns(UserWarning, match=says):
        kj.load(tmp_path)


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
