"""The header of a GGUF file: its metadata and the table of its tensors. Versions 2 and 3, little-endian.

Read here because the `gguf` package's reader makes an array of each number and string, which takes seconds for a
vocabulary.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kinetics_jax.errors import CheckpointError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
ALIGNMENT = 32  # bytes, where general.alignment does not say otherwise


class TensorInfo(NamedTuple):
    """`shape` has the row length last, as in NumPy; `kind` is ggml's number of its type; `offset` in bytes."""

    kind: int
    shape: tuple[int, ...]
    offset: int


class GGUFHeader(NamedTuple):
    """`metadata` by key: numbers, strings, lists of strings, arrays of numbers. `size` of the file in bytes."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    size: int


def read_header(path: str | Path) -> GGUFHeader:
    """Reads a file's header. Raises CheckpointError saying where it is broken, cut short, or no GGUF file."""
    path = Path(path)
    size = path.stat().st_size
    if size < 24:
        raise CheckpointError(f"{path}: not a GGUF file, or cut short: it has {size} bytes")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return _Cursor(path, data).header()


class _Cursor:
    """A place in the file that moves on as it is read."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at = path, data, 0

    def header(self) -> GGUFHeader:
        if (magic := self.take(4)) != MAGIC:
            raise CheckpointError(f"{self.path}: not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
        version = self.number("<I")
        if version not in VERSIONS:
            order = " (big-endian)" if version.to_bytes(4, "little")[::-1] in (b"\2\0\0\0", b"\3\0\0\0") else ""
            raise CheckpointError(f"{self.path}: GGUF version {version}{order} is not implemented (2 and 3 are)")
        tensor_count, key_count = self.number("<Q"), self.number("<Q")
        metadata = {}
        for _ in range(key_count):
            key = self.string()
            metadata[key] = self.value(self.number("<I"))
        tensors = {}
        for _ in range(tensor_count):
            name = self.string()
            if name in tensors:
                raise CheckpointError(f"{self.path}: holds two tensors named {name}")
            shape = tuple(self.number("<Q") for _ in range(self.number("<I")))[::-1]
            tensors[name] = TensorInfo(self.number("<I"), shape, self.number("<Q"))
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise CheckpointError(f"{self.path}: general.alignment is {alignment!r}")
        begin = -(-self.at // alignment) * alignment
        placed = {name: info._replace(offset=begin + info.offset) for name, info in tensors.items()}
        return GGUFHeader(self.path, metadata, placed, len(self.data))

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise CheckpointError(f"{self.path}: cut short: its header goes on beyond byte {len(self.data)}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, spelling: str) -> Any:
        return struct.unpack(spelling, self.take(struct.calcsize(spelling)))[0]

    def string(self) -> str:
        began = self.at
        try:
            return self.take(self.number("<Q")).decode()
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{self.path}: broken header: no text at byte {began}") from error

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            kind, count = self.number("<I"), self.number("<Q")
            if kind in NUMBERS:
                dtype = np.dtype(NUMBERS[kind])
                return np.frombuffer(self.take(count * dtype.itemsize), dtype)
            return [self.value(kind) for _ in range(count)]
        if kind not in NUMBERS:
            raise CheckpointError(f"{self.path}: broken header: no value has type {kind} (before byte {self.at})")
        return self.number(NUMBERS[kind])
