"""The header of a GGUF file, or of all its parts: metadata and the table of tensors. Versions 2 and 3, little-endian.

Read here because the `gguf` package's reader makes an array of each number and string, which takes seconds for a
vocabulary. Every count is held to the file and to a limit before anything is read.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from kinetics_jax.checkpoints.resolve import MAX_PARTS, gguf_parts
from kinetics_jax.errors import CheckpointError, shown, spelled
from kinetics_jax.files import open_regular

MAGIC = b"GGUF"
VERSIONS = (2, 3)
STRING, ARRAY = 8, 9
NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
ALIGNMENT = 32  # bytes, where general.alignment does not say otherwise
MAX_ALIGNMENT = 1 << 20
HEADER_BYTES = 1 << 28
MAX_KEYS, MAX_TENSORS, MAX_NAME = 1 << 16, 1 << 20, 1 << 16
MAX_ENTRIES = 1 << 22  # of all lists together
MAX_DIMENSIONS, MAX_SIZE = 4, 2**40
MAX_DEPTH = 4  # of arrays in arrays


class TensorInfo(NamedTuple):
    """`shape` has the row length last, as in NumPy; `kind` is ggml's number of its type; `offset` in bytes of the file
    `path`, which has `size` bytes.
    """

    kind: int
    shape: tuple[int, ...]
    offset: int
    path: Path
    size: int


class GGUFHeader(NamedTuple):
    """`metadata` by key: numbers, strings, lists of strings, arrays of numbers. `path` is the (first) file."""

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]

    @property
    def paths(self) -> list[Path]:
        """All files that hold tensors, and the first."""
        return list(dict.fromkeys([self.path, *(info.path for info in self.tensors.values())]))


def read_header(path: str | Path) -> GGUFHeader:
    """Reads the header of a file or, of a model that was split, those of all its parts, whichever of them is named.

    Raises CheckpointError saying where a file is broken, cut short, or no GGUF file, or which parts are missing.
    """
    path = Path(path)
    header = _read_one(path)
    count = header.metadata.get("split.count", 1)
    if type(count) is not int or not 0 <= count <= MAX_PARTS:
        raise CheckpointError(f"{path}: split.count is {spelled(count)}, no number of parts")
    if count < 2:
        return header
    paths = gguf_parts(path)
    if len(paths) != count:
        raise CheckpointError(
            f"{path}: is one part of {count}; its name must end in -00001-of-{count:05d}.gguf and so on"
        )
    if absent := [shown(part.name) for part in paths if not os.path.exists(part)]:
        raise CheckpointError(
            f"{path}: is one part of {count}, and of the others are missing: {', '.join(absent[:12])}"
        )
    headers = [header if part.name == path.name else _read_one(part) for part in paths]
    tensors: dict[str, TensorInfo] = {}
    for number, part in enumerate(headers):
        said = (part.metadata.get("split.no"), part.metadata.get("split.count"))
        if said != (number, count):
            raise CheckpointError(
                f"{part.path}: contradicts its name: split.no is {spelled(said[0])} and split.count {spelled(said[1])}"
            )
        if twice := [name for name in part.tensors if name in tensors]:
            raise CheckpointError(
                f"{part.path}: holds {shown(twice[0])}, which {tensors[twice[0]].path.name} holds too"
            )
        tensors |= part.tensors
    total = headers[0].metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise CheckpointError(f"{path}: its parts hold {len(tensors)} tensors, split.tensors.count is {spelled(total)}")
    return GGUFHeader(paths[0], headers[0].metadata, tensors)


def block(kind: int) -> tuple[int, int] | None:
    """Values and bytes of a block of ggml's type `kind`; None if it is not known."""
    return gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)] if kind in gguf.GGML_QUANT_SIZES else None


def tensor_bytes(info: TensorInfo) -> int | None:
    """Bytes of a tensor; None where its type is not known, or its rows are no whole blocks."""
    sizes = block(info.kind)
    if sizes is None or (info.shape[-1] if info.shape else 1) % sizes[0]:
        return None
    return math.prod(info.shape) // sizes[0] * sizes[1]


def _read_one(path: Path) -> GGUFHeader:
    with open_regular(path, error=CheckpointError) as file:
        size = file.seek(0, 2)
        if size < 24:
            raise CheckpointError(f"{path}: not a GGUF file, or cut short: it has {size} bytes")
        with mmap.mmap(file.fileno(), min(size, HEADER_BYTES), access=mmap.ACCESS_READ) as data:
            return _Cursor(path, data, size).header()


class _Cursor:
    """A place in the file that moves on as it is read."""

    def __init__(self, path: Path, data: mmap.mmap, size: int):
        """`data` is the beginning of a file of `size` bytes."""
        self.path, self.data, self.size, self.at = path, data, size, 0
        self.entries = 0

    def header(self) -> GGUFHeader:
        if (magic := self.take(4)) != MAGIC:
            raise CheckpointError(f"{self.path}: not a GGUF file: it begins with {magic!r}, not {MAGIC!r}")
        version = self.number("<I")
        if version not in VERSIONS:
            order = " (big-endian)" if version.to_bytes(4, "little")[::-1] in (b"\2\0\0\0", b"\3\0\0\0") else ""
            raise CheckpointError(f"{self.path}: GGUF version {version}{order} is not implemented (2 and 3 are)")
        tensor_count = self.count("tensors", MAX_TENSORS)
        key_count = self.count("keys", MAX_KEYS)
        metadata: dict[str, Any] = {}
        for _ in range(key_count):
            key = self.string(MAX_NAME)
            if key in metadata:
                raise self.broken(f"it holds {shown(key)} twice")
            metadata[key] = self.value(self.number("<I"))
        tensors: dict[str, TensorInfo] = {}
        for _ in range(tensor_count):
            name = self.string(MAX_NAME)
            if name in tensors:
                raise CheckpointError(f"{self.path}: holds two tensors named {shown(name)}")
            shape = tuple(self.number("<Q") for _ in range(self.count("dimensions", MAX_DIMENSIONS, "<I")))[::-1]
            if any(side > MAX_SIZE for side in shape):
                raise self.broken(f"{shown(name)} would have shape {list(shape)}")
            tensors[name] = TensorInfo(self.number("<I"), shape, self.number("<Q"), self.path, self.size)
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or not 1 <= alignment <= MAX_ALIGNMENT:
            raise CheckpointError(f"{self.path}: general.alignment is {spelled(alignment)}")
        begin = -(-self.at // alignment) * alignment
        placed = {name: info._replace(offset=begin + info.offset) for name, info in tensors.items()}
        self.check_places(placed, begin, alignment)
        return GGUFHeader(self.path, metadata, placed)

    def check_places(self, tensors: dict[str, TensorInfo], begin: int, alignment: int) -> None:
        """Tensors must be aligned, and none may hold bytes of another."""
        last, end = "", begin
        for name, info in sorted(tensors.items(), key=lambda each: each[1].offset):
            if (info.offset - begin) % alignment:
                raise self.broken(f"{shown(name)} begins at byte {info.offset}, which is not aligned to {alignment}")
            if info.offset < end:
                raise self.broken(f"{shown(name)} and {shown(last)} hold the same bytes")
            last, end = name, max(end, info.offset + (tensor_bytes(info) or 0))

    def broken(self, why: str) -> CheckpointError:
        return CheckpointError(f"{self.path}: broken header: {why}")

    def take(self, count: int) -> bytes:
        """The next bytes of the header. Raises CheckpointError where there are not so many."""
        if count > len(self.data) - self.at:
            if len(self.data) < self.size:
                raise self.broken(f"it would go on beyond byte {len(self.data):,}")
            raise CheckpointError(f"{self.path}: cut short: its header goes on beyond byte {self.size}")
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, spelling: str) -> Any:
        return struct.unpack(spelling, self.take(struct.calcsize(spelling)))[0]

    def count(self, what: str, most: int, spelling: str = "<Q") -> int:
        value = self.number(spelling)
        if value > most:
            raise self.broken(f"it would hold {value:,} {what} (before byte {self.at})")
        return value

    def string(self, most: int = HEADER_BYTES) -> str:
        began = self.at
        try:
            return self.take(self.count("bytes of text", most)).decode()
        except UnicodeDecodeError as error:
            raise self.broken(f"no text at byte {began}") from error

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            if depth == MAX_DEPTH:
                raise self.broken(f"arrays nest more than {MAX_DEPTH} deep (before byte {self.at})")
            kind = self.number("<I")
            if kind in NUMBERS:
                dtype = np.dtype(NUMBERS[kind])
                return np.frombuffer(self.take(self.count("numbers", HEADER_BYTES) * dtype.itemsize), dtype)
            count = self.count("entries of lists", MAX_ENTRIES - self.entries)
            self.entries += count
            return [self.value(kind, depth + 1) for _ in range(count)]
        if kind not in NUMBERS:
            raise self.broken(f"no value has type {kind} (before byte {self.at})")
        return self.number(NUMBERS[kind])
