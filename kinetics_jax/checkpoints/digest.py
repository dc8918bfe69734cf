"""What tells the weights of one checkpoint from those of another: a digest of every stored byte.

Of safetensors and GGUF files each tensor's name, type, shape and bytes count, in the order of names: how they are split
into files does not matter. Of Orbax, each file's name and bytes. Neither mesh, host nor the dtype asked for takes part.
A digest of large files is kept in the user's cache folder, beside the size and times of each file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kinetics_jax.checkpoints.files import find_shards, orbax_files
from kinetics_jax.checkpoints.gguf_header import read_header, tensor_bytes
from kinetics_jax.checkpoints.resolve import Checkpoint, gguf_parts
from kinetics_jax.checkpoints.safetensors_file import read_tensors
from kinetics_jax.compile_cache import user_cache
from kinetics_jax.errors import CheckpointError, shown, spelled
from kinetics_jax.files import FileError, open_regular, read_json, write_atomic

DIGEST = "digest.json"  # beside converted weights
KEPT_FROM = 64 << 20  # bytes of files whose digest is worth keeping
SLICE_BYTES = 1 << 20  # read at a time, by each of the workers
WORKERS = 8
# Sizes and times of files: (name, bytes, modified, changed), in nanoseconds.
FileStates = tuple[tuple[str, int, int, int], ...]


@dataclasses.dataclass(frozen=True)
class Stretch:
    """Bytes `begin` to `end` of a file; `label` says what they are."""

    label: str
    path: Path
    begin: int
    end: int


def weight_files(checkpoint: Checkpoint) -> list[Path]:
    """The files that hold a checkpoint's weights."""
    if checkpoint.kind == "gguf":
        return gguf_parts(checkpoint.path)
    return orbax_files(checkpoint.path) if checkpoint.kind == "orbax" else find_shards(checkpoint.path)[0]


def file_states(checkpoint: Checkpoint) -> FileStates:
    """Size and times of each file of the weights: what changes when a file does."""
    states = []
    for path in weight_files(checkpoint):
        with contextlib.suppress(OSError):  # whoever reads it says what is missing
            status = path.stat()
            states.append((str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    return tuple(states)


def same_files(one: FileStates, other: FileStates) -> bool:
    """Whether two states are of unchanged files. One more link, or a right, changes only when a file `changed`."""
    return [state[:3] for state in one] == [state[:3] for state in other]


def weights_digest(checkpoint: Checkpoint, *, cache: Path | None = None) -> str:
    """32 hex digits: BLAKE2b over every stored tensor.

    `cache` is the folder where digests of large files are kept; default: one of the user's caches. Raises
    CheckpointError where a file cannot be read, or changes meanwhile.
    """
    states = file_states(checkpoint)
    kept = None
    if sum(size for _, size, _, _ in states) >= KEPT_FROM:
        with contextlib.suppress(RuntimeError):  # a user without a home directory: hashed anew each time
            folder = cache or user_cache() / "digests"
            kept = (
                folder / f"{hashlib.blake2b(os.fsencode(checkpoint.path.absolute()), digest_size=16).hexdigest()}.json"
            )
    if kept and (digest := _kept(kept, states)):
        return digest
    digest = _computed(list(_stretches(checkpoint)))
    if not same_files(file_states(checkpoint), states):
        raise CheckpointError(f"{checkpoint.path}: its weights changed while they were read; load it again")
    if kept:
        with contextlib.suppress(OSError, FileError):  # a full or read-only disk: hashed anew each time
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(kept, json.dumps({"files": states, "digest": digest}) + "\n")
    return digest


def _kept(path: Path, states: FileStates) -> str | None:
    """The digest kept for files in these very states; None if there is none."""
    try:
        fields = read_json(path, error=CheckpointError)
    except (FileNotFoundError, CheckpointError):  # it is computed and written anew
        return None
    same = fields.get("files") == [list(state) for state in states]
    digest = fields.get("digest")
    return digest if same and isinstance(digest, str) else None


def _computed(stretches: list[Stretch]) -> str:
    whole = hashlib.blake2b(digest_size=16)
    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
        for stretch, digest in zip(stretches, pool.map(_stretch_digest, stretches), strict=True):
            whole.update(stretch.label.encode("utf-8", "backslashreplace") + b"\n" + digest)
    return whole.hexdigest()


def _stretch_digest(stretch: Stretch) -> bytes:
    digest = hashlib.blake2b(digest_size=32)
    with open_regular(stretch.path, error=CheckpointError) as file:
        file.seek(stretch.begin)
        left = stretch.end - stretch.begin
        while left and (part := file.read(min(left, SLICE_BYTES))):
            digest.update(part)
            left -= len(part)
    if left:
        raise CheckpointError(f"{stretch.path}: ends before byte {stretch.end}")
    return digest.digest()


def _stretches(checkpoint: Checkpoint) -> Iterator[Stretch]:
    if checkpoint.kind == "orbax":
        for path in orbax_files(checkpoint.path):
            name, size = path.relative_to(checkpoint.path).as_posix(), path.stat().st_size
            yield Stretch(f"{name} {size}", path, 0, size)
    elif checkpoint.kind == "gguf":
        for name, info in sorted(read_header(checkpoint.path).tensors.items()):
            size = tensor_bytes(info)
            if size is None:
                raise CheckpointError(
                    f"{checkpoint.path}: {shown(name)} has type {info.kind} and shape {list(info.shape)}"
                )
            yield Stretch(f"{name} {info.kind} {list(info.shape)}", info.path, info.offset, info.offset + size)
    else:
        tensors = [tensor for shard in find_shards(checkpoint.path)[0] for tensor in read_tensors(shard).values()]
        for each in sorted(tensors, key=lambda tensor: tensor.name):
            yield Stretch(f"{each.name} {each.dtype} {list(each.shape)}", each.path, each.begin, each.end)


def write_digest(checkpoint: Checkpoint, source: str | None) -> None:
    """Writes digest.json beside weights that have been written: their digest and that of their `source`."""
    fields = {"weights": weights_digest(checkpoint), "source": source}
    write_atomic(checkpoint.path / DIGEST, json.dumps(fields, indent=1) + "\n")


def check_digest(checkpoint: Checkpoint) -> None:
    """Raises CheckpointError where a checkpoint's digest.json, if it has one, is not that of its weights."""
    if checkpoint.kind == "gguf":
        return
    path = checkpoint.path / DIGEST
    try:
        said = read_json(path, error=CheckpointError).get("weights")
    except FileNotFoundError:
        return
    if said != (digest := weights_digest(checkpoint)):
        raise CheckpointError(
            f"{checkpoint.path}: its weights are not those that were written: their digest is {digest}, {DIGEST} says "
            f"{spelled(said, 40)}; a file was damaged (convert it again) or replaced on purpose (then remove {DIGEST})"
        )


def sampled_digest(checkpoint: Checkpoint) -> str:
    """What run folders of earlier versions hold: a digest of each file's name, size, first MiB and 64 slices of 64 KiB.

    Only to continue such a folder: it misses most changes.
    """
    root = checkpoint.path.parent if checkpoint.kind == "gguf" else checkpoint.path
    digest = hashlib.blake2b(digest_size=16)
    for path in weight_files(checkpoint):
        with open_regular(path, error=CheckpointError) as file:
            size = file.seek(0, 2)
            digest.update(f"{path.relative_to(root).as_posix()} {size}\n".encode())
            file.seek(0)
            digest.update(file.read(1 << 20))
            for part in range(64):
                file.seek(size * part // 64)
                digest.update(file.read(1 << 16))
    return digest.hexdigest()
