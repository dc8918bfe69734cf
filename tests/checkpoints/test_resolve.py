"""From a name to a directory: hub ids at a hub of our own, in its cache without one, and what is no checkpoint."""

import hashlib
import http.server
import json
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, errors
from tiny import tiny_config, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.assets import ASSETS, builtin_models
from kinetics_jax.checkpoints import resolve as resolving
from kinetics_jax.checkpoints.resolve import Checkpoint, checkpoint_kind, resolve
from kinetics_jax.errors import CheckpointError
from kinetics_jax.hub import hub_failure

CONFIG = tiny_config()
SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, and no hub."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def go_online(monkeypatch, port):
    address = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def hub(cache, monkeypatch):
    """A hub on this machine that holds acme/tiny: its `files`, the `status` it answers with, byte `ranges` asked for;
    `cut` closes that many connections after half a file.
    """
    state = SimpleNamespace(status=200, error="", files={}, ranges=[], cut=0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = self.path.partition("?")[0]
            if state.status != 200:
                return self.answer(state.status, b"", {"X-Error-Code": state.error})
            if path.startswith("/api/models/acme/tiny/revision/"):
                return self.answer(200, json.dumps({"id": "acme/tiny", "sha": SHA, "siblings": []}).encode())
            if path.startswith("/api/models/acme/tiny/tree/"):
                entries = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in state.files.items()
                ]
                return self.answer(200, json.dumps(entries).encode())
            data = state.files[path.removeprefix(f"/acme/tiny/resolve/{SHA}/")]
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": SHA}
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
            if start:
                state.ranges.append(start)
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            return self.answer(206 if start else 200, data[start:], headers)

        do_HEAD = do_GET

        def answer(self, status, body, headers=()):
            self.send_response(status)
            headers = {"Content-Length": str(len(body)), "Content-Type": "application/json", **dict(headers)}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                half = state.cut > 0 and "ETag" in headers
                state.cut -= half
                self.wfile.write(body[: len(body) // 2] if half else body)

        def log_message(self, *_):
            """Silent."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        go_online(monkeypatch, listening.server_port)
        yield state
        listening.shutdown()


def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def put_in_cache(cache, *, shards=1):
    """acme/tiny as huggingface_hub keeps it: a reference to a snapshot, whose files link to blobs."""
    repository = cache / "models--acme--tiny"
    snapshot = write_checkpoint(repository / "snapshots" / SHA, CONFIG, shards=shards)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(SHA)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sorted(snapshot.iterdir())):
        path.symlink_to(path.rename(repository / "blobs" / f"{number:064x}"))
    return snapshot


def test_a_hub_model_is_downloaded_then_needs_no_hub(hub, tmp_path, monkeypatch, capfd):
    """Its own files and no others, under the hub's progress bars."""
    source = write_checkpoint(tmp_path / "source", CONFIG, shards=3)
    wanted = {path.name: path.read_bytes() for path in source.iterdir()}
    hub.files = {**wanted, "original/model.safetensors": b"x", "pytorch_model.bin": b"x", "README.md": b"x"}
    snapshot = resolve("acme/tiny")
    assert {path.name: path.read_bytes() for path in snapshot.path.iterdir()} == wanted
    assert "Fetching 5 files" in capfd.readouterr().err
    go_online(monkeypatch, unused_port())
    assert resolve("acme/tiny") == snapshot


@pytest.mark.slow
def test_an_interrupted_download_resumes(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 64)  # what arrived in whole chunks is kept
    source = write_checkpoint(tmp_path / "source", CONFIG)
    hub.files = {path.name: path.read_bytes() for path in source.iterdir()}
    hub.cut = 1
    snapshot = resolve("acme/tiny")
    assert {path.name: path.read_bytes() for path in snapshot.path.iterdir()} == hub.files
    assert len(hub.ranges) == 1


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("said", [True, False], ids=["HF_HUB_OFFLINE", "no network"])
def test_the_cache_is_enough(cache, shards, said, monkeypatch):
    put_in_cache(cache, shards=shards)
    if not said:
        go_online(monkeypatch, unused_port())
    assert kj.load("acme/tiny").config.name == "acme/tiny"


@pytest.mark.parametrize("said", [True, False], ids=["HF_HUB_OFFLINE", "no network"])
def test_without_hub_and_cache_one_line_comes_fast(cache, said, monkeypatch):
    if not said:
        go_online(monkeypatch, unused_port())
    start = time.monotonic()
    with pytest.raises(CheckpointError) as error:
        resolve("acme/tiny")
    assert time.monotonic() - start < 5
    why = " (HF_HUB_OFFLINE is set)" if said else ""
    assert str(error.value) == (
        f"acme/tiny: not on disk, and the hub cannot be reached{why}; download it where there is a network"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (401, "RepoNotFound", "the hub has no repository of this name"),
        (404, "RepoNotFound", "the hub has no repository of this name"),
        (403, "GatedRepo", "accept its terms"),
        (503, "", "the hub answered 503"),
    ],
)
def test_what_the_hub_refuses(hub, status, code, says):
    hub.status, hub.error = status, code
    with pytest.raises(CheckpointError, match=says) as error:
        resolve("acme/tiny")
    assert str(error.value).startswith("acme/tiny: ")
    assert "\n" not in str(error.value)


def test_a_repository_without_safetensors_is_told(hub):
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"x"}
    with pytest.raises(CheckpointError, match=r"^acme/tiny: .* holds no \*\.safetensors"):
        resolve("acme/tiny")


def test_a_snapshot_without_its_weights_is_told(cache):
    snapshot = put_in_cache(cache, shards=3)
    next(snapshot.glob("*2-of*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00003\.safetensors is named by .* and missing"):
        kj.load("acme/tiny")
    for path in snapshot.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"^acme/tiny: .* holds no \*\.safetensors.*interrupted"):
        kj.load("acme/tiny")


def test_names_the_hub_does_not_take(cache):
    with pytest.raises(CheckpointError, match=r"^a--b/c: not on disk, and not a name on the hub"):
        resolve("a--b/c")


def test_any_failure_is_one_line():
    line = hub_failure("acme/tiny", OSError(28, "No space left on device\nmore"))
    assert line == (
        "acme/tiny: the download broke off (OSError: [Errno 28] No space left on device); the same command resumes it"
    )
    response = SimpleNamespace(headers={}, request=None, status_code=451)
    refused = errors.HfHubHTTPError("451 Client Error.\n\nmore", response=response)
    assert hub_failure("acme/tiny", refused) == "acme/tiny: not on disk, and the hub refused: 451 Client Error"


def test_a_checkpoint_is_named_by_its_place(tmp_path, monkeypatch):
    """A built-in name is the model's; a directory gives its own, however it is typed, as does a GGUF file."""
    name = builtin_models()[0]
    assert resolve(name) == Checkpoint(ASSETS / name, "hf", name)
    write_checkpoint(tmp_path / "mine", CONFIG)
    monkeypatch.chdir(tmp_path / "mine")
    assert resolve(".") == Checkpoint(Path("."), "hf", "mine")
    (tmp_path / "tiny.q8.gguf").touch()
    assert resolve(tmp_path / "tiny.q8.gguf") == Checkpoint(tmp_path / "tiny.q8.gguf", "gguf", "tiny.q8")


def test_the_kind_is_asked_once(tmp_path, monkeypatch):
    write_checkpoint(tmp_path, CONFIG)
    asked = []
    monkeypatch.setattr(resolving, "checkpoint_kind", lambda path: asked.append(path) or "hf")
    assert len(kj.load(tmp_path).fingerprint) == 32
    assert asked == [tmp_path]


def test_names_that_no_file_can_have():
    for name in ("n" * 5000, "a/" * 3000 + "x.gguf", "zero\0", "\x1b[31m"):
        with pytest.raises(CheckpointError, match="no such") as error:
            resolve(name)
        assert len(str(error.value)) < 600
        assert "\x1b" not in str(error.value)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"not a checkpoint; one holds config\.json and either"):
        kj.load(tmp_path)
    (tmp_path / "_METADATA").write_text("{}")
    with pytest.raises(CheckpointError, match=r"bare Orbax arrays; a checkpoint has them in weights/"):
        checkpoint_kind(tmp_path)
