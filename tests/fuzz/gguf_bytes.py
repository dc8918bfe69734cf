"""GGUF files written value by value, so that values of wrong types and impossible tables can stand in them."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import numpy as np

from kinetics_jax.checkpoints.gguf_header import ALIGNMENT, NUMBERS, read_header, tensor_bytes

CODES = {np.dtype(spelling): code for code, spelling in NUMBERS.items()}


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(data)) + data


def typed(value: Any) -> bytes:
    """A value behind the number of its type."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, int):
        return struct.pack("<IQ", 10, value % 2**64) if value >= 0 else struct.pack("<Iq", 11, max(value, -(2**63)))
    if isinstance(value, float):
        return struct.pack("<Id", 12, value)
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", 9, CODES[value.dtype], len(value)) + value.tobytes()
    if isinstance(value, list) and value and isinstance(value[0], str):
        return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(text, value))
    inner = typed(value[0]) if isinstance(value, list) and value else typed(0)
    return struct.pack("<I", 9) + inner[:4] + struct.pack("<Q", 1) + inner[4:]


def odd(rng: random.Random) -> Any:
    """A value that hardly any key should have."""
    deep: Any = 1
    for _ in range(rng.choice([1, 3, 10, 5000])):
        deep = [deep]
    numbers = [0, 1, -1, 2**31, 2**63, 2**64 - 1, 10**30 % 2**64, 0.0, float("nan"), float("inf"), 1e300, True, False]
    texts = ["", "x" * 5000, "\x1b[31m", "none", "linear", "qwen2", "llama", "gpt2", "a\nb"]
    arrays = [np.array([1, 2], np.uint32), np.array([], np.float32), np.array([np.nan], np.float64), ["a", "b c"], [""]]
    return rng.choice([*numbers, *texts, *arrays, deep])


def rewrite(path: Path, rng: random.Random) -> bytes:
    """The file with one or a few of its metadata or of the entries of its tensors changed."""
    header, data = read_header(path), path.read_bytes()
    metadata = [[key, value] for key, value in header.metadata.items()]
    tensors = []
    body = b""
    for name, info in header.tensors.items():
        if info.path != path:
            continue
        body += bytes(-len(body) % ALIGNMENT)
        tensors.append([name, list(info.shape[::-1]), info.kind, len(body)])
        body += data[info.offset : info.offset + (tensor_bytes(info) or 0)]
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        if rng.random() < 0.7:
            entry = rng.choice(metadata)
            kind = rng.randrange(8)
            if kind == 0:
                metadata.remove(entry)
            elif kind == 1:
                metadata.append([entry[0], odd(rng)])
            elif kind == 2:
                entry[0] = rng.choice(
                    [entry[0] + "x", "", "n" * 5000, "qwen3.unheard_of", "split.count", "general.alignment"]
                )
            elif kind == 3 and isinstance(entry[1], int | float):
                entry[1] = rng.choice(
                    [entry[1] * 1000, entry[1] + 1, -entry[1], float(entry[1]), int(entry[1] == entry[1])]
                )
            else:
                entry[1] = odd(rng)
        else:
            entry = rng.choice(tensors)
            kind = rng.randrange(5)
            if kind == 0:
                entry[0] = rng.choice(
                    [entry[0] + "x", "\x1b" * 5000, tensors[0][0], "output.weight", "rope_freqs.weight"]
                )
            elif kind == 1:
                entry[1] = rng.choice([[], [0], [2**63], entry[1][::-1], [*entry[1], 1], [1] * 60, [10**15, 10**15]])
            elif kind == 2:
                entry[2] = rng.choice([0, 1, 2, 8, 9, 16, 24, 30, 41, 99, 2**31])
            elif kind == 3:
                entry[3] = rng.choice([0, 1, entry[3] + 32, entry[3] - 32, 2**40, 2**64 - 32]) % 2**64
            else:
                tensors.remove(entry)
    table = b"".join(
        text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", side % 2**64) for side in shape)
        + struct.pack("<IQ", kind, offset)
        for name, shape, kind, offset in tensors
    )  # fmt: skip
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    head += b"".join(text(key) + typed(value) for key, value in metadata) + table
    return head + bytes(-len(head) % ALIGNMENT) + body
