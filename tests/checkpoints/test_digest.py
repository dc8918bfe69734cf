"""The digest of weights: it covers every byte, whatever the files; damage and replaced files are told."""

import hashlib
import json
import os
import shutil

import pytest
from safetensors.numpy import load_file, save_file
from test_gguf import write_gguf
from tiny import tiny_config, tiny_tensors, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.checkpoints import digest as digesting
from kinetics_jax.checkpoints.convert import convert
from kinetics_jax.checkpoints.digest import DIGEST, sampled_digest, weights_digest
from kinetics_jax.checkpoints.resolve import ORBAX_WEIGHTS, resolve
from kinetics_jax.errors import CheckpointError

CONFIG = tiny_config(num_hidden_layers=1)


def digest(path):
    return weights_digest(resolve(path))


def flip(path, at):
    """One bit, in place; the file's times are put back."""
    before = path.stat()
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_change_of_any_tensor_shows(tmp_path):
    source = write_checkpoint(tmp_path / "a", CONFIG)
    weights = source / "model.safetensors"
    first, tensors = digest(source), load_file(weights)
    seen = {first}
    for name in tensors:
        changed = {**tensors, name: tensors[name].copy()}
        changed[name].flat[-1] += 1
        save_file(changed, weights)
        seen.add(digest(source))
    assert len(seen) == 1 + len(tensors)
    save_file(tensors, weights)
    assert digest(source) == first


def test_how_tensors_are_split_into_files_does_not_matter(tmp_path):
    one, many = write_checkpoint(tmp_path / "a", CONFIG), write_checkpoint(tmp_path / "b", CONFIG, shards=3)
    assert digest(one) == digest(many)
    assert kj.load(one, dtype="float32").fingerprint == kj.load(many, dtype="bfloat16").fingerprint


def test_the_digest_of_large_files_is_kept_until_one_changes(tmp_path, monkeypatch):
    source = write_checkpoint(tmp_path / "a", CONFIG)
    monkeypatch.setattr(digesting, "KEPT_FROM", 0)
    cache, counted = tmp_path / "cache", []
    compute = digesting._computed
    monkeypatch.setattr(digesting, "_computed", lambda stretches: counted.append(1) or compute(stretches))
    first = weights_digest(resolve(source), cache=cache)
    assert weights_digest(resolve(source), cache=cache) == first
    assert len(counted) == 1
    flip(source / "model.safetensors", -1 + (source / "model.safetensors").stat().st_size)
    assert weights_digest(resolve(source), cache=cache) != first
    for text in ("[", '{"files": 5, "digest": 7}'):
        next(cache.iterdir()).write_text(text)
        assert weights_digest(resolve(source), cache=cache) != first
    assert sorted(path.name for path in source.iterdir()) == ["config.json", "model.safetensors"]


def test_files_that_change_after_loading_are_told(tmp_path):
    source = write_checkpoint(tmp_path / "a", CONFIG)
    lm = kj.load(source)
    write_checkpoint(source, CONFIG, seed=1)
    with pytest.raises(CheckpointError, match="its files changed after it was loaded"):
        _ = lm.fingerprint


def test_a_gguf_file_that_changes_in_one_bit_is_another(tmp_path):
    path = write_gguf(tmp_path / "tiny.gguf", CONFIG, tiny_tensors(CONFIG))
    first = digest(path)
    flip(path, path.stat().st_size - 4)
    assert digest(path) != first
    assert kj.load(path).fingerprint != first


@pytest.mark.parametrize("to", ["orbax", "hf"])
def test_damage_to_converted_weights_is_told(to, tmp_path):
    source = write_checkpoint(tmp_path / "a", CONFIG)
    target = convert(source, tmp_path / "b", to=to)
    said = json.loads((target / DIGEST).read_text())
    assert said == {"weights": digest(target), "source": digest(source)}
    lm = kj.load(target)
    assert lm.fingerprint == said["weights"]
    files = [path for path in (target / ORBAX_WEIGHTS).rglob("*") if path.is_file()] if to == "orbax" else []
    files = files or [target / "model.safetensors"]
    for path in sorted(files, key=lambda each: each.stat().st_size)[-2:]:
        flip(path, path.stat().st_size // 2)
        with pytest.raises(CheckpointError):
            kj.load(target)
        flip(path, path.stat().st_size // 2)
    moved = tmp_path / "moved"
    shutil.move(target, moved)
    assert kj.load(moved).fingerprint == said["weights"]


def test_weights_replaced_in_a_converted_checkpoint_are_told(tmp_path):
    target = convert(write_checkpoint(tmp_path / "a", CONFIG), tmp_path / "b", to="hf")
    write_checkpoint(target, CONFIG, seed=1)
    with pytest.raises(CheckpointError, match=rf"not those that were written.*then remove {DIGEST}"):
        kj.load(target)
    (target / DIGEST).unlink()
    kj.load(target)


def test_what_earlier_versions_held(tmp_path):
    """By hand, as they computed it."""
    source = write_checkpoint(tmp_path / "a", CONFIG, tiny_tensors(CONFIG, 3))
    data = (source / "model.safetensors").read_bytes()
    expected = hashlib.blake2b(digest_size=16)
    expected.update(f"model.safetensors {len(data)}\n".encode() + data[: 1 << 20])
    for part in range(64):
        expected.update(data[len(data) * part // 64 :][: 1 << 16])
    assert sampled_digest(resolve(source)) == expected.hexdigest()
    assert digest(source) != expected.hexdigest()
