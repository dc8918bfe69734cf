"""Hugging Face → Orbax → Hugging Face and back: every bit, every byte; what transformers makes of what we write."""

import json
import resource
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file
from tiny import PARITY_CASES, tiny_config, tiny_tensors, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.assets import ASSETS, builtin_models
from kinetics_jax.checkpoints.convert import convert
from kinetics_jax.checkpoints.hf import load_hf, read_config, save_hf
from kinetics_jax.checkpoints.resolve import checkpoint_kind
from kinetics_jax.checkpoints.tensors import arrays_by_name
from kinetics_jax.config import ConfigError
from kinetics_jax.errors import CheckpointError

CONFIG = tiny_config()
COMPANIONS = {
    "generation_config.json": b'{"eos_token_id": [3,\n 9]}',
    "tokenizer.json": '{"ä": "tokenizer, or not"}\n\n'.encode(),
    "tokenizer_config.json": b"{ }",
    "chat_template.jinja": b"{{ messages }}",
    "merges.txt": b"a b\r\n",
}


def write_source(folder, dtype, *, tied=False, shards=1):
    """A checkpoint with a tokenizer and an oddly spaced config.json."""
    config = tiny_config(tie_word_embeddings=tied, torch_dtype=np.dtype(dtype).name)
    tensors = {name: tensor.astype(dtype) for name, tensor in tiny_tensors(config).items()}
    write_checkpoint(folder, config, tensors, shards=shards)
    (folder / "config.json").write_text(json.dumps(config, indent=7) + "\n ")
    for name, data in COMPANIONS.items():
        (folder / name).write_bytes(data)
    (folder / "README.md").write_text("stays behind")
    return folder


def tensors_of(folder):
    """Every tensor of a directory's safetensors files, as dtype, shape and bytes."""
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= {name: (tensor.dtype.name, tensor.shape, tensor.tobytes()) for name, tensor in load_file(path).items()}
    return found


def companions_of(folder):
    return {name: (folder / name).read_bytes() for name in ("config.json", *COMPANIONS)}


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_there_and_back(tmp_path, dtype, tied, shards):
    source = write_source(tmp_path / "source", dtype, tied=tied, shards=shards)
    orbax = convert(source, tmp_path / "orbax")
    assert checkpoint_kind(orbax) == "orbax"
    assert not list(orbax.glob("*.safetensors"))
    back = convert(orbax, tmp_path / "back")
    assert tensors_of(back) == tensors_of(source)
    assert companions_of(orbax) == companions_of(back) == companions_of(source)
    assert not (back / "README.md").exists()
    again = convert(back, tmp_path / "again")
    configs = [read_config(path, name="same") for path in (source, orbax, back, again)]
    assert all(config == configs[0] for config in configs)
    arrays = [arrays_by_name(kj.load(path, dtype=dtype).weights) for path in (orbax, again)]
    for name, array in arrays[0].items():
        assert np.asarray(array).tobytes() == np.asarray(arrays[1][name]).tobytes(), name


def test_each_tensor_keeps_its_own_dtype(tmp_path):
    tensors = tiny_tensors(CONFIG)
    for name in tensors:
        tensors[name] = tensors[name].astype(np.float32 if "norm" in name else ml_dtypes.bfloat16)
    source = write_checkpoint(tmp_path / "source", CONFIG, tensors)
    back = convert(convert(source, tmp_path / "orbax"), tmp_path / "back")
    assert tensors_of(back) == tensors_of(source)
    assert {dtype for dtype, _, _ in tensors_of(back).values()} == {"float32", "bfloat16"}


@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_a_dtype_casts_all_and_config_json_says_so(tmp_path, to):
    source = write_source(tmp_path / "source", np.float32)
    cast = convert(source, tmp_path / "cast", to=to, dtype="bfloat16")
    assert checkpoint_kind(cast) == to
    loaded = arrays_by_name(kj.load(cast, dtype="bfloat16").weights)
    for name, (_, shape, data) in tensors_of(source).items():
        wanted = np.frombuffer(data, np.float32).reshape(shape).astype(ml_dtypes.bfloat16)
        assert np.asarray(loaded[name.removeprefix("model.")]).tobytes() == wanted.tobytes()
    fields = json.loads((source / "config.json").read_text())
    assert json.loads((cast / "config.json").read_text()) == {**fields, "torch_dtype": "bfloat16"}
    assert (cast / "tokenizer.json").read_bytes() == COMPANIONS["tokenizer.json"]


@pytest.mark.slow
def test_shards_and_their_index(tmp_path):
    source = write_source(tmp_path / "source", ml_dtypes.bfloat16)
    config = read_config(source)
    weights = load_hf(source, config, dtype=None)[1]
    counts = []
    directory = save_hf(
        tmp_path / "new", config, weights, companions=source, shard_bytes=10_000, on_tensor=lambda *n: counts.append(n)
    )
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    shards = sorted(directory.glob("*.safetensors"))
    assert len(shards) > 2
    assert [path.name for path in shards] == [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)
    ]
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in tensors_of(source).values())
    for path in shards:
        with safe_open(path, framework="np") as file:
            assert file.metadata() == {"format": "pt"}
            names = set(file.keys())
        assert names == {name for name, shard in index["weight_map"].items() if shard == path.name}
        assert len(names) == 1 or sum(tensor.nbytes for tensor in load_file(path).values()) <= 10_000
    assert tensors_of(directory) == tensors_of(source)
    assert counts[-1] == (len(index["weight_map"]),) * 2
    assert (kj.load(directory).logits([[5, 6]]) == kj.load(source).logits([[5, 6]])).all()


@pytest.mark.slow
@pytest.mark.parametrize("case", PARITY_CASES)
def test_transformers_loads_what_we_write(tmp_path, case):
    """With a config.json of our own making, in shards."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    source = write_checkpoint(tmp_path / "source", tiny_config(**PARITY_CASES[case]))
    lm = kj.load(source, dtype="float32")
    written = save_hf(tmp_path / "written", lm.config, lm.weights, shard_bytes=20_000)
    assert read_config(written, name="source") == lm.config
    tokens = np.random.default_rng(0).integers(0, 131, (2, 17))
    model = transformers.AutoModelForCausalLM.from_pretrained(written, attn_implementation="eager").eval()
    assert model.dtype == torch.float32
    with torch.no_grad():
        theirs = model(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(np.asarray(lm.logits(tokens)), theirs, atol=2e-4, rtol=1e-4)


@pytest.mark.slow
def test_built_in_models_keep_their_text(tmp_path):
    name = "chase-131k"
    orbax = convert(name, tmp_path / "orbax")
    back = convert(orbax, tmp_path / "back")
    assert tensors_of(back) == tensors_of(ASSETS / name)
    ours, theirs = kj.load(orbax), kj.load(name)
    sampling = kj.Sampling(max_tokens=6)
    text = theirs.decode(list(range(5, 15)))
    assert ours.encode(text) == theirs.encode(text)
    assert ours.generate([text], sampling=sampling)[0].text == theirs.generate([text], sampling=sampling)[0].text


def test_progress_counts_every_tensor(tmp_path):
    source = write_source(tmp_path / "source", np.float32)
    for step, target in ((source, tmp_path / "orbax"), (tmp_path / "orbax", tmp_path / "back")):
        counts = []
        convert(step, target, on_tensor=lambda *count, counts=counts: counts.append(count))
        total = len(tensors_of(source))
        assert counts == [(done, total) for done in range(1, total + 1)]


def test_mistakes_are_told_before_anything_is_read(tmp_path):
    source = write_source(tmp_path / "source", np.float32)
    with pytest.raises(CheckpointError, match="source: exists and is not empty; name a new directory"):
        convert("no-such-model", source)
    with pytest.raises(CheckpointError, match="nor a built-in model"):
        convert("no-such-model", tmp_path / "new")
    with pytest.raises(CheckpointError, match="to 'gguf' is not one of hf, orbax"):
        convert(source, tmp_path / "new", to="gguf")
    with pytest.raises(ConfigError, match="dtype int8 is not one of"):
        convert(source, tmp_path / "new", dtype="int8")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


KILLED = """
import os, sys
from kinetics_jax.checkpoints import hf
from kinetics_jax.checkpoints.convert import convert
write = hf.save_file
def save_file(tensors, path, metadata):
    write(tensors, path, metadata=metadata)
    os._exit(9)
hf.save_file = save_file
convert(*sys.argv[1:], to="hf")
"""


@pytest.mark.slow
def test_a_killed_export_is_not_taken_for_a_checkpoint(tmp_path):
    source = write_source(tmp_path / "source", np.float32)
    new = tmp_path / "new"
    done = subprocess.run([sys.executable, "-c", KILLED, str(source), str(new)], capture_output=True)
    assert done.returncode == 9, done.stderr
    assert not new.exists()
    assert tensors_of(convert(source, new, to="hf")) == tensors_of(source)


MEASURE = """
import sys, threading
from pathlib import Path
import jax, safetensors.numpy
from kinetics_jax.checkpoints.hf import load_hf, read_config, save_hf

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

source, target = map(Path, sys.argv[1:3])
config = read_config(source)
weights = load_hf(source, config, dtype=None)[1]
jax.block_until_ready(weights)
peak, stop, base = 0, threading.Event(), resident()
def watch():
    global peak
    while not stop.is_set():
        peak = max(peak, resident())
watcher = threading.Thread(target=watch, daemon=True); watcher.start()
save_hf(target, config, weights, shard_bytes=int(sys.argv[3]))
stop.set(); watcher.join()
print(peak - base)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_export_holds_one_shard_beside_the_weights(tmp_path):
    config = tiny_config(vocab_size=20_000, hidden_size=512, intermediate_size=2048, num_hidden_layers=16)
    source = write_checkpoint(tmp_path / "source", config)
    shard = 50_000_000
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(source), str(tmp_path / "new"), str(shard)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(list((tmp_path / "new").glob("*.safetensors"))) > 3
    print(f"{int(done.stdout) / shard:.2f} shards")
    assert int(done.stdout) <= 1.2 * shard, f"{int(done.stdout) / shard:.2f} shards"


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
@pytest.mark.parametrize("to", ["hf", "orbax"])
def test_a_full_disk_is_told_in_one_line(tmp_path, to):
    """A limit on the size of files, which ends as a full disk does."""
    source = write_source(tmp_path / "source", np.float32)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (5000, 10):  # within the weights, and before them
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(CheckpointError, match=r"new: .*(cannot be written|Orbax cannot write it)") as error:
                convert(source, tmp_path / "new", to=to)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert "\n" not in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_link_is_no_new_directory(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    with pytest.raises(CheckpointError, match="link"):
        convert(builtin_models()[0], tmp_path / "link")
