"""Orbax checkpoints: every bit back, straight to a sharding, faults named, nothing half-written taken for whole."""

import json
import os
import shutil
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx
from tiny import tiny_config, tiny_tensors, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.checkpoints import files
from kinetics_jax.checkpoints.hf import load_hf, read_config
from kinetics_jax.checkpoints.orbax import load_orbax, save_orbax
from kinetics_jax.checkpoints.tensors import arrays_by_name
from kinetics_jax.errors import CheckpointError

CONFIG = tiny_config()


def bits(weights):
    """Every array by name, as dtype and bytes."""
    return {name: (array.dtype.name, np.asarray(array).tobytes()) for name, array in arrays_by_name(weights).items()}


@pytest.fixture
def source(tmp_path):
    """A directory in Hugging Face layout whose tensors are of three dtypes."""
    tensors = tiny_tensors(CONFIG)
    for name in tensors:
        tensors[name] = tensors[name].astype(
            np.float32 if "norm" in name else np.float16 if "mlp" in name else ml_dtypes.bfloat16
        )
    return write_checkpoint(tmp_path / "source", CONFIG, tensors)


@pytest.fixture
def saved(source, tmp_path):
    """`source` as an Orbax directory."""
    config = read_config(source)
    return save_orbax(tmp_path / "saved", config, load_hf(source, config, dtype=None)[1], companions=source)


def test_every_bit_and_dtype_comes_back(source, saved):
    config = read_config(source)
    before = load_hf(source, config, dtype=None)
    after = load_orbax(saved, read_config(saved), dtype=None)
    assert bits(before[1]) == bits(after[1])
    assert {dtype for dtype, _ in bits(after[1]).values()} == {"float32", "bfloat16", "float16"}
    assert (saved / "config.json").read_bytes() == (source / "config.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_casts_as_safetensors_are_cast(source, saved, dtype):
    ours, theirs = kj.load(saved, dtype=dtype), kj.load(source, dtype=dtype)
    assert bits(ours.weights) == bits(theirs.weights)
    assert ours.dtype == dtype


SHARDED = """
import gc, sys, jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P, SingleDeviceSharding
from kinetics_jax.checkpoints.hf import load_hf, read_config
from kinetics_jax.checkpoints.orbax import load_orbax, save_orbax
from kinetics_jax.checkpoints.tensors import arrays_by_name
from kinetics_jax.errors import CheckpointError

source, saved, again = sys.argv[1:]
config = read_config(__import__("pathlib").Path(source))
devices = jax.devices()
assert len(devices) == 8
one = arrays_by_name(load_hf(source, config, dtype=None, sharding=SingleDeviceSharding(devices[5]))[1])
assert all(array.devices() == {devices[5]} for array in one.values())
host = {name: np.array(array) for name, array in one.items()}
del one  # host holds copies

mesh = Mesh(np.array(devices).reshape(4, 2), ("model", "data"))
def place(name):
    if "norm" in name or name == "embed_tokens.weight" or name == "lm_head.weight":
        return NamedSharding(mesh, P())
    columns = name.endswith(("o_proj.weight", "down_proj.weight"))
    return NamedSharding(mesh, P("data", "model") if columns else P("model"))

def whole_on_one_device():
    gc.collect()
    cut = {array.shape for name, array in host.items() if not place(name).is_fully_replicated}
    return [array.shape for array in jax.live_arrays() if len(array.devices()) == 1 and array.shape in cut]

for load, path in ((load_orbax, saved), (load_hf, source)):
    assert not whole_on_one_device()
    weights = load(path, config, dtype=None, sharding=place)[1]
    assert not whole_on_one_device()
    arrays = arrays_by_name(weights)
    assert arrays.keys() == host.keys()
    for name, array in arrays.items():
        assert array.sharding == place(name), (name, array.sharding)
        assert array.committed and len(array.addressable_shards) == 8
        for shard in array.addressable_shards:
            assert shard.data.shape == place(name).shard_shape(array.shape)
            np.testing.assert_array_equal(np.asarray(shard.data), host[name][shard.index])
        del array, shard
    assert arrays["layers.0.mlp.down_proj.weight"].addressable_shards[0].data.shape == (16, 12)
    if load is load_orbax:
        save_orbax(again, config, weights)  # by shards
    del weights, arrays

back = arrays_by_name(load_orbax(again, config, dtype=None, sharding=SingleDeviceSharding(devices[3]))[1])
for name, array in back.items():
    assert array.devices() == {devices[3]}
    np.testing.assert_array_equal(np.asarray(array), host[name])

uneven = NamedSharding(Mesh(np.array(devices), ("x",)), P("x"))  # 131 tokens over 8 devices
for load, path in ((load_orbax, saved), (load_hf, source)):
    try:
        load(path, config, dtype=None, sharding=uneven)
    except CheckpointError as error:
        assert "embed_tokens.weight of shape [131, 32] cannot be laid out as" in str(error), error
        assert "lm_head.weight of shape" in str(error), error
    else:
        raise AssertionError("not refused")
print("sharded")
"""


@pytest.mark.slow
def test_arrays_go_straight_to_their_sharding(source, saved, tmp_path):
    """On eight simulated devices, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, str(source), str(saved), str(tmp_path / "again")],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
            "JAX_PLATFORMS": "cpu",
        },
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["sharded"]


def test_all_faults_are_reported_together(source, tmp_path):
    config = read_config(source)
    arrays = arrays_by_name(load_hf(source, config, dtype="float32")[1])
    tensors = {name: np.asarray(array).copy() for name, array in arrays.items()}
    del tensors["norm.weight"]
    tensors["layers.7.mlp.up_proj.weight"] = np.zeros((2, 2), np.float32)
    tensors["layers.0.self_attn.q_proj.weight"] = np.zeros((3, 3), np.float32)
    tensors["layers.1.mlp.down_proj.weight"] = np.zeros((32, 48), np.int32)
    directory = tmp_path / "faulty"
    write_checkpoint(directory, CONFIG, {})
    (directory / "model.safetensors").unlink()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "weights", tensors)
    files.list_orbax_files(directory)
    with pytest.raises(CheckpointError) as error:
        kj.load(directory)
    for fault in (
        f"{directory}: cannot load this checkpoint",
        "missing: norm.weight",
        "not part of this model: layers.7.mlp.up_proj.weight",
        "layers.0.self_attn.q_proj.weight has shape [3, 3], expected [32, 32]",
        "layers.1.mlp.down_proj.weight is stored as int32, expected one of float32, bfloat16, float16, float64",
    ):
        assert fault in str(error.value)


def test_values_that_are_no_numbers_are_faults(source, tmp_path):
    config = read_config(source)
    graph, weights = load_hf(source, config, dtype="float32")
    model = nnx.merge(graph, weights)
    up = model.layers[1].mlp.up_proj.weight
    up[...] = up[...].at[4, 2].set(np.nan).at[0, 0].set(1e6)
    saved = save_orbax(tmp_path / "saved", config, nnx.split(model)[1])
    with pytest.raises(CheckpointError, match=r"1\.mlp\.up_proj\.weight holds 1 values that are NaN .* float32"):
        kj.load(saved, dtype="float32")
    with pytest.raises(CheckpointError, match=r"1\.mlp\.up_proj\.weight holds 2 values that are NaN .* float16"):
        kj.load(saved, dtype="float16")


def test_double_precision_needs_a_dtype(source, tmp_path):
    config = read_config(source)
    doubles = {name: tensor.astype(np.float64) for name, tensor in tiny_tensors(CONFIG).items()}
    directory = write_checkpoint(tmp_path / "hf", CONFIG, doubles)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is stored as F64, which jax does not hold"):
        load_hf(directory, config, dtype=None)
    (directory / "model.safetensors").unlink()
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(directory / "weights", {name.removeprefix("model."): doubles[name] for name in doubles})
    files.list_orbax_files(directory)
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight is stored as float64, which jax does not hold"):
        load_orbax(directory, config, dtype=None)
    loaded = bits(load_orbax(directory, config, dtype="float32")[1])
    assert loaded["norm.weight"] == ("float32", doubles["model.norm.weight"].astype(np.float32).tobytes())


def test_what_a_broken_copy_lacks_is_named(saved):
    data = sorted((saved / "weights").rglob("d/*"), key=lambda path: path.stat().st_size)
    data[-1].write_bytes(data[-1].read_bytes()[:-10])
    data[0].unlink()
    with pytest.raises(CheckpointError) as error:
        kj.load(saved)
    assert f"missing files: {data[0].relative_to(saved)}" in str(error.value)
    assert f"files of another size than was written: {data[-1].relative_to(saved)}" in str(error.value)
    (saved / "weights.json").unlink()
    with pytest.raises(CheckpointError, match=r"weights\.json, which is written last, is missing"):
        kj.load(saved)


def test_what_orbax_says_is_one_line(saved, monkeypatch):
    def fail(self, *_, **__):
        raise ValueError("DATA_LOSS: corrupted chunk\n  [source: zarr]" + 500 * "x")

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "restore", fail)
    with pytest.raises(CheckpointError) as error:
        kj.load(saved)
    wanted = f"{saved}: Orbax cannot read its arrays: ValueError: DATA_LOSS: corrupted chunk [source: zarr]xxx"
    assert str(error.value).startswith(wanted)
    assert len(str(error.value)) < len(wanted) + 200
    metadata = saved / "weights" / "_METADATA"
    metadata.write_bytes(b"\xff" * metadata.stat().st_size)
    with pytest.raises(CheckpointError, match="Orbax finds no arrays in weights/"):
        kj.load(saved)


def test_only_new_directories_are_written(source, saved, tmp_path):
    config = read_config(source)
    weights = load_hf(source, config, dtype=None)[1]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="exists and is not empty; name a new directory"):
        save_orbax(saved, config, weights)
    with pytest.raises(CheckpointError, match="is a file"):
        save_orbax(source / "config.json", config, weights)
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    assert kj.load(save_orbax(tmp_path / "empty", config, weights)).config.name == "empty"


def test_a_failed_save_leaves_nothing(source, tmp_path, monkeypatch):
    config = read_config(source)
    weights = load_hf(source, config, dtype=None)[1]

    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "finalize", full)
    with pytest.raises(CheckpointError, match=r"new: Orbax cannot write it: OSError: \[Errno 28\] No space left"):
        save_orbax(tmp_path / "new", config, weights)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


KILLED = """
import os, sys
from kinetics_jax.checkpoints import orbax
from kinetics_jax.checkpoints.convert import convert
orbax.list_orbax_files = lambda directory: os._exit(9)
convert(*sys.argv[1:])
"""


@pytest.mark.slow
def test_a_killed_save_is_not_taken_for_a_checkpoint(source, tmp_path):
    """Killed when the last array is written, before the directory gets its name."""
    new = tmp_path / "new"
    done = subprocess.run([sys.executable, "-c", KILLED, str(source), str(new)], capture_output=True)
    assert done.returncode == 9, done.stderr
    assert not new.exists()
    (partial,) = tmp_path.glob(".new.*.partial")
    with pytest.raises(CheckpointError, match=r"weights\.json, which is written last, is missing"):
        kj.load(partial)


def test_a_config_is_made_where_none_comes_along(source, tmp_path):
    config = read_config(source)
    saved = save_orbax(tmp_path / "source2", config, load_hf(source, config, dtype="bfloat16")[1])
    assert json.loads((saved / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert read_config(saved, name="source") == kj.ModelConfig.from_hf(
        {**CONFIG, "torch_dtype": "bfloat16"}, name="source"
    )


@pytest.mark.slow
def test_a_fingerprint_stays_with_its_directory(source, saved, tmp_path):
    first = kj.load(saved).fingerprint
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(saved, moved)
    assert kj.load(moved).fingerprint == first
    config = read_config(source)
    other = jax.tree.map(lambda leaf: -leaf, load_hf(source, config, dtype=None)[1])
    assert kj.load(save_orbax(tmp_path / "other", config, other)).fingerprint != first
