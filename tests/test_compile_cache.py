"""Compiled programs between processes: hits, torn files, folders that cannot be written, and whose setting counts."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from kinetics_jax import compile_cache
from kinetics_jax.assets import builtin_models
from kinetics_jax.compile_cache import use_compile_cache, user_cache, watch_compiles
from kinetics_jax.errors import UserError

SETTINGS = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")


@pytest.fixture
def config():
    """jax's own defaults, whatever the suite runs under; what it was before comes back."""
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    jax.config.update("jax_compilation_cache_dir", None)
    yield jax.config
    for name, value in before.items():
        jax.config.update(name, value)


def sample(folder: Path, cache: Path) -> tuple[dict, str]:
    """A small run in a process of its own: what it prints as JSON, and its warnings."""
    command = [sys.executable, "-m", "kinetics_jax", "sample", builtin_models()[0]]
    size = ["--n", "1", "--limit", "3", "--slots", "3", "--max-tokens", "72", "--json"]
    done = subprocess.run(
        [*command, *size, "--out", str(folder), "--compile-cache", str(cache)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warm-up: " in done.stderr
    return json.loads(done.stdout), done.stderr


def texts(folder: Path) -> list[str]:
    return sorted(json.loads(line)["text"] for line in (folder / "samples.jsonl").read_text().splitlines())


@pytest.mark.slow
def test_a_second_process_compiles_nothing_that_takes_long(tmp_path):
    cache = tmp_path / "cache"
    first, says = sample(tmp_path / "first", cache)
    kept = {path.name.rsplit("-", 2)[0].removeprefix("jit_") for path in cache.iterdir()}
    assert first["compiled"]["cached_programs"] == 0
    assert {"decode_chunk", "prefill", "start_samples"} <= kept
    assert "compilation cache entry" not in says
    second, _ = sample(tmp_path / "second", cache)
    assert second["compiled"]["programs"] == first["compiled"]["programs"]
    assert second["compiled"]["cached_programs"] >= len(kept)
    assert texts(tmp_path / "second") == texts(tmp_path / "first")
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:100])  # as a kill in the middle of a write leaves them
    third, says = sample(tmp_path / "third", cache)
    assert third["compiled"]["cached_programs"] == 0
    assert "kinetics: Error reading persistent compilation cache entry for 'jit_decode_chunk'" in says
    assert "Traceback" not in says
    assert texts(tmp_path / "third") == texts(tmp_path / "first")


def test_whose_setting_counts(tmp_path, config, monkeypatch):
    monkeypatch.setattr(compile_cache, "user_cache", lambda: tmp_path / "user")
    assert use_compile_cache() == tmp_path / "user" / "compiled"
    assert config.jax_compilation_cache_dir == str(tmp_path / "user" / "compiled")
    assert config.jax_persistent_cache_min_compile_time_secs == compile_cache.MIN_SECONDS
    config.update("jax_compilation_cache_dir", "/own")
    config.update("jax_persistent_cache_min_compile_time_secs", 7)
    assert use_compile_cache() == Path("/own")
    assert config.jax_persistent_cache_min_compile_time_secs == 7
    assert use_compile_cache(str(tmp_path / "asked")) == tmp_path / "asked"
    assert use_compile_cache("off") is None
    assert not config.jax_enable_compilation_cache
    config.update("jax_compilation_cache_dir", "/own")
    assert use_compile_cache() is None


def test_a_folder_that_cannot_be_made_or_written(tmp_path, config, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(compile_cache, "user_cache", lambda: tmp_path / "file")
    with pytest.warns(UserWarning, match="compiled programs are not kept"):
        assert use_compile_cache() is None
    assert config.jax_compilation_cache_dir is None
    with pytest.raises(UserError, match=r"--compile-cache .*file.sub: Not a directory"):
        use_compile_cache(str(tmp_path / "file" / "sub"))

    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.warns(UserWarning, match="Permission denied; new compiled programs are not kept"):
        assert use_compile_cache(str(tmp_path / "shared")) == tmp_path / "shared"
    assert config.jax_compilation_cache_dir == str(tmp_path / "shared")
    assert config.jax_persistent_cache_min_compile_time_secs == float("inf")


def test_the_oldest_programs_go_first(tmp_path, config, monkeypatch):
    monkeypatch.setattr(compile_cache, "user_cache", lambda: tmp_path)
    monkeypatch.setattr(compile_cache, "MAX_BYTES", 250)
    folder = tmp_path / "compiled"
    folder.mkdir()
    for age, name in enumerate(("new", "middle", "old", "oldest")):
        (folder / name).write_bytes(b"x" * 100)
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    use_compile_cache()
    assert {path.name for path in folder.iterdir()} == {"new", "middle"}


@pytest.mark.parametrize(
    ("platform", "variable", "expected"),
    [
        ("linux", "XDG_CACHE_HOME", "base/kinetics_jax"),
        ("linux", None, "home/.cache/kinetics_jax"),
        ("darwin", None, "home/Library/Caches/kinetics_jax"),
        ("win32", "LOCALAPPDATA", "base/kinetics_jax"),
        ("win32", None, "home/AppData/Local/kinetics_jax"),
    ],
)
def test_the_users_cache_is_where_the_platform_has_it(tmp_path, monkeypatch, platform, variable, expected):
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "base"))
    assert user_cache() == tmp_path / expected


def test_what_is_compiled_is_watched():
    @jax.jit
    def watched_by_name(x):
        return jnp.tanh(x) @ x

    x = jnp.ones((3, 3))
    with watch_compiles() as compiled:
        watched_by_name(x)
        watched_by_name(x)
    watched_by_name(jnp.ones((4, 4)))
    assert [(name, cached) for name, _, cached in compiled.programs] == [("watched_by_name", False)]
    assert compiled.record()["programs"] == 1
    assert compiled.record()["slowest"][0]["program"] == "watched_by_name"
    assert compiled.line().startswith("warm-up: 1 programs in ")
