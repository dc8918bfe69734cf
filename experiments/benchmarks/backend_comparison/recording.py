"""A recording: a folder of `index.json` and `arrays.npz`, written as a whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

SCHEMA = 2
READABLE = (1, 2)  # 1 has neither revision, driver, variables, matmul precision, threads nor accuracy


class ComparisonError(Exception):
    """A user's mistake, or a recording that cannot be used; its message is one line."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """`index` says what was run where; `arrays` by name, bfloat16 as ml_dtypes' type."""

    path: Path
    index: dict[str, Any]
    arrays: dict[str, np.ndarray]

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names begin with `prefix/`, by the rest of the name."""
        start = f"{prefix}/"
        return {name.removeprefix(start): array for name, array in self.arrays.items() if name.startswith(start)}


def arrays_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, dtypes, shapes and bits."""
    sha256 = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        sha256.update(f"{name} {array.dtype} {array.shape}\n".encode())
        sha256.update(np.ascontiguousarray(array).tobytes())
    return sha256.hexdigest()


def failure_line(error: Exception) -> str:
    """An error as one line, its last one: compilers and callbacks name the cause last."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


def check_free(path: Path) -> None:
    """Raises ComparisonError unless `path` is new or an empty folder."""
    if (path / "index.json").exists():
        raise ComparisonError(f"{path} already holds a recording; name another folder, or remove it")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ComparisonError(f"{path} is not an empty folder; name another")


def write_recording(path: Path, index: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a recording beside its place and renames it. Raises ComparisonError unless `path` is free."""
    check_free(path)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        dtypes = {name: array.dtype.name for name, array in arrays.items()}
        stored = {name: x.view(np.uint16) if x.dtype == jnp.bfloat16 else x for name, x in arrays.items()}
        with open(partial / "arrays.npz", "wb") as file:
            np.savez(file, **stored)  # type: ignore[arg-type]
        whole = {"schema": SCHEMA, **index, "arrays": dtypes, "arrays_sha256": _file_sha256(partial / "arrays.npz")}
        (partial / "index.json").write_text(json.dumps(whole, indent=1) + "\n")
        os.rename(partial, path)
    except BaseException:
        shutil.rmtree(partial)
        raise


def read_recording(path: Path) -> Recording:
    """Reads a whole recording back. Raises ComparisonError if it is missing, torn or of another schema."""
    try:
        index = json.loads((path / "index.json").read_text())
    except FileNotFoundError:
        raise ComparisonError(f"{path} holds no recording: there is no index.json") from None
    except ValueError as error:
        raise ComparisonError(f"{path / 'index.json'} is torn: {error}") from None
    if not isinstance(index, dict) or index.get("schema") not in READABLE:
        schema = index.get("schema") if isinstance(index, dict) else None
        raise ComparisonError(f"{path} has schema {schema}, this is {SCHEMA}: record it again")
    file = path / "arrays.npz"
    if not file.exists():
        raise ComparisonError(f"{path} is incomplete: there is no arrays.npz")
    if _file_sha256(file) != index.get("arrays_sha256"):
        raise ComparisonError(f"{file} is torn: its SHA-256 is not the one in index.json")
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name].view(jnp.dtype(dtype)) for name, dtype in index["arrays"].items()}
    except (KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ComparisonError(f"{path}: arrays.npz and index.json do not agree ({error})") from None
    return Recording(path, index, arrays)


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
