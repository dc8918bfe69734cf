"""Safetensors files: their header, held to the file before anything is believed, and rows of their tensors.

Read here and not by the `safetensors` package, so that a broken header ends in one line, and so that the bytes that are
read are the bytes that are hashed. Format: the header's length (8 bytes, little-endian), the header (a JSON object of
dtype, shape and byte range by name), the tensors' bytes, without gaps.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from kinetics_jax.errors import CheckpointError, shown, spelled
from kinetics_jax.files import open_regular, parse_json

HEADER_BYTES = 100_000_000  # at most, as the format says
MAX_DIMENSIONS, MAX_SIZE = 8, 2**40
FLOAT_DTYPES = {"F32": np.float32, "BF16": ml_dtypes.bfloat16, "F16": np.float16, "F64": np.float64}
BYTES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}


class StoredTensor(NamedTuple):
    """A tensor in a file: `dtype` as the format spells it; its bytes are `begin` to `end` of the file."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a file by name, in the order of their bytes.

    Raises CheckpointError where the header is none, or contradicts itself or the size of the file.
    """
    try:
        opened = open_regular(path, error=CheckpointError)
    except FileNotFoundError as error:
        raise CheckpointError("it is a link to nothing") from error
    with opened as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 10 or length > min(size - 8, HEADER_BYTES):
            raise CheckpointError(f"its header would be {length:,} bytes long, and it has {size:,} bytes")
        header = parse_json(file.read(length), "its header", error=CheckpointError)
    begin = 8 + length
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise CheckpointError(f"its header's metadata are {spelled(metadata, 40)}, not an object")
    tensors = sorted((_tensor(path, name, entry, begin) for name, entry in header.items()), key=lambda each: each.begin)
    end = begin
    for tensor in tensors:
        if tensor.begin != end:
            raise CheckpointError(f"the bytes of {shown(tensor.name)} begin at {tensor.begin:,}, expected {end:,}")
        end = tensor.end
    if end != size:
        raise CheckpointError(f"its tensors end at byte {end:,}, the file at {size:,}")
    return {tensor.name: tensor for tensor in tensors}


def _tensor(path: Path, name: str, entry: Any, begin: int) -> StoredTensor:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), _whole(fields.get("shape")), _whole(fields.get("data_offsets"))
    if (
        not isinstance(dtype, str)
        or shape is None
        or offsets is None
        or len(shape) > MAX_DIMENSIONS
        or len(offsets) != 2
    ):
        raise CheckpointError(f"its entry of {shown(name)} is {spelled(entry, 60)}, no dtype, shape and byte range")
    first, last = offsets
    expected = math.prod(shape) * BYTES[dtype] if dtype in BYTES else None
    if last < first or (expected is not None and last - first != expected):
        raise CheckpointError(f"{shown(name)} has {last - first:,} bytes, and {dtype} of shape {shape} {expected:,}")
    return StoredTensor(path, name, dtype, tuple(shape), begin + first, begin + last)


def _whole(value: Any) -> list[int] | None:
    """A list of sizes; None for anything else."""
    fits = isinstance(value, list) and all(type(each) is int and 0 <= each <= MAX_SIZE for each in value)
    return value if fits else None


def read_rows(file: IO[bytes], tensor: StoredTensor, start: int, stop: int) -> np.ndarray:
    """Rows of a tensor of floats seen as [rows, columns] (one row, if it has one dimension), in its stored dtype."""
    dtype = np.dtype(FLOAT_DTYPES[tensor.dtype])
    columns = row_length(tensor)
    file.seek(tensor.begin + start * columns * dtype.itemsize)
    data = file.read((stop - start) * columns * dtype.itemsize)
    if len(data) != (stop - start) * columns * dtype.itemsize:
        raise CheckpointError(f"{tensor.path}: became shorter while it was read")
    return np.frombuffer(data, dtype).reshape(stop - start, columns)


def row_length(tensor: StoredTensor) -> int:
    """Values in a row: the last dimension, or 1 for a scalar."""
    return tensor.shape[-1] if tensor.shape else 1
