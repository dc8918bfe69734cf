"""Which backend and options were the fastest on a device: tables of measurements, looked up by shape.

A table is `tuned/<device slug>.json`, written by experiments/benchmarks/tune_kernels.py: `{"device": ..., "entries":
[...]}`, each entry an op, a key, a backend, its options and the seconds it took. Nothing here measures
or asks a device.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import pathlib
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import jax

TUNED = pathlib.Path(__file__).parent / "tuned"
CURE = "delete it, or write it anew with experiments/benchmarks/tune_kernels.py"


@dataclasses.dataclass(frozen=True)
class Key:
    """What a kernel's best options depend on. All fields but the last two must be equal to share an entry.

    `dtype` of the pools or summaries (and of q, where that of paged_decode is another); `kind` tells calls of one op
    apart: `per_sequence` or `per_head` tables of paged_decode, the summary of select_pages and of append_kv (`none`
    without); `rows` is batch x KV heads, `pages` the width of the page table.
    """

    dtype: str
    page_size: int
    head_dim: int
    group: int
    kind: str
    rows: int
    pages: int


EXACT = tuple(field.name for field in dataclasses.fields(Key))[:-2]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One measurement: the fastest backend at a key, its options, and its seconds."""

    op: str
    key: Key
    backend: str
    options: dict[str, Any]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Table:
    """The measurements of one device."""

    device: str
    entries: tuple[Entry, ...]


def decode_key(q: jax.Array, k_pages: jax.Array, page_table: jax.Array) -> Key:
    """The key of a `paged_decode` call, by shapes and dtypes alone, so of traced and abstract arrays too."""
    kv_heads, _, page_size, head_dim = k_pages.shape
    kind = "per_sequence" if page_table.ndim == 2 else "per_head"
    rows, group = q.shape[0] * kv_heads, q.shape[1] // kv_heads
    dtype = k_pages.dtype.name if q.dtype == k_pages.dtype else f"{q.dtype.name} and {k_pages.dtype.name}"
    return Key(dtype, page_size, head_dim, group, kind, rows, page_table.shape[-1])


def select_key(q: jax.Array, summaries: jax.Array, page_table: jax.Array, *, page_size: int, summary: str) -> Key:
    """The key of a `select_pages` call."""
    kv_heads, head_dim = summaries.shape[0], summaries.shape[-1]
    rows, group = q.shape[0] * kv_heads, q.shape[1] // kv_heads
    return Key(summaries.dtype.name, page_size, head_dim, group, summary, rows, page_table.shape[-1])


def append_key(k_pages: jax.Array, summaries: jax.Array | None, page_table: jax.Array, *, summary: str) -> Key:
    """The key of an `append_kv` call; its group is 1, as no query takes part."""
    kv_heads, _, page_size, head_dim = k_pages.shape
    kind = "none" if summaries is None else summary
    rows = page_table.shape[0] * kv_heads
    return Key(k_pages.dtype.name, page_size, head_dim, 1, kind, rows, page_table.shape[-1])


def device_slug(device_kind: str) -> str:
    """A device's name as a file's: `NVIDIA H100 80GB HBM3` → `nvidia-h100-80gb-hbm3`.

    Raises ValueError if the name has neither letter nor digit.
    """
    slug = "-".join(re.findall(r"[a-z0-9]+", device_kind.lower()))
    if not slug:
        raise ValueError(f"device_slug: {device_kind!r} names no device")
    return slug


def load_table(slug: str, folder: pathlib.Path | None = None) -> Table | None:
    """The table of a device, or None if it has none; read once per process.

    `folder` holds `<slug>.json`, by default the tables that come with the package. Raises ValueError, naming the file
    and the cure, for a file that is not a table.
    """
    return _read(pathlib.Path(folder or TUNED) / f"{slug}.json")


@functools.cache
def _read(path: pathlib.Path) -> Table | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        return Table(str(content["device"]), tuple(map(_entry, content["entries"])))
    except (KeyError, TypeError, ValueError) as error:  # not JSON, not an object, a field missing or of another type
        raise ValueError(f"{path} is not a tuning table ({type(error).__name__}: {error}); {CURE}") from error


def _entry(stored: dict[str, Any]) -> Entry:
    key = Key(**stored["key"])
    for field in dataclasses.fields(Key):
        value = stored["key"][field.name]
        good = isinstance(value, str) if field.type == "str" else type(value) is int and value > 0
        if not good:
            raise ValueError(f"{field.name} is {value!r}")
    if not isinstance(stored["options"], dict):
        raise TypeError(f"options are {stored['options']!r}")
    return Entry(str(stored["op"]), key, str(stored["backend"]), stored["options"], float(stored["seconds"]))


def lookup(table: Table, op: str, key: Key) -> tuple[str, dict[str, Any]] | None:
    """Backend and options of the measurement nearest to a key, or None if nothing of its kind was measured.

    Near in rows and pages: |log rows' / rows| + |log pages' / pages|, ties to the faster, among the entries of the op
    that are equal in everything else.
    """
    same = [
        entry
        for entry in table.entries
        if entry.op == op and all(getattr(entry.key, name) == getattr(key, name) for name in EXACT)
    ]
    if not same:
        return None
    nearest = min(same, key=lambda entry: (_distance(entry.key, key), entry.seconds))
    return nearest.backend, dict(nearest.options)


def chosen_backends(table: Table, ops: Sequence[str]) -> dict[str, int]:
    """How many of a table's entries of some ops name each backend, the most frequent first."""
    counts: Counter[str] = Counter(entry.backend for entry in table.entries if entry.op in ops)
    return dict(counts.most_common())


def _distance(one: Key, other: Key) -> float:
    def apart(count: int, others: int) -> float:
        return abs(math.log(max(count, 1) / max(others, 1)))  # an empty batch is as near as a lone row

    return apart(one.rows, other.rows) + apart(one.pages, other.pages)


def entry_json(entry: Entry) -> dict[str, Any]:
    """An entry as a table's file has it."""
    return dataclasses.asdict(entry)
