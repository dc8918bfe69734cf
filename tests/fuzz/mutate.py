"""Broken files made of whole ones, and what counts as a right answer to them: success, or one clear error in time.

Everything follows from the random generator that is handed in: a case that fails is made again from its number.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from kinetics_jax.errors import UserError

SECONDS = 20  # of a case, at most
MEMORY = 4 << 30  # bytes of address space that a case may take beyond what the process has
MESSAGE = 6000  # characters of an error, at most: a few faults of a checkpoint, each in a line


def nested(depth: int, kind: type = list) -> Any:
    """A list in a list, or an object in an object, so many deep."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


def odd_values(rng: random.Random) -> Any:
    """A value of JSON that hardly any field should have."""
    whole = [0, 1, -1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**32, 2**53, 2**63, 2**64, -(2**63), 10**30, 10**400]
    real = [0.5, -0.0, 1.5, 1e-300, 1e30, 1e308, float("nan"), float("inf"), float("-inf")]
    text = [
        "",
        "0",
        "1",
        "nan",
        "true",
        "x" * 5000,
        "\x1b[31mred\x07",
        "a\nb",
        "a\r",
        "\ud800",
        "\0",
        "../../x",
        "²",
        "{}",
    ]
    lists = [[], [[]], [None], [1, 2, 3], ["a"], [1] * 5000, nested(50)]
    kinds = [None, True, False, *whole, *real, *text, *lists, {}, {"a": 1}, {"": None}, nested(300, dict)]
    return copy.deepcopy(rng.choice(kinds))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all values inside a value of JSON, its own among them; of a list's entries, the first few."""
    yield at
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*at, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 8)):
            yield from places(value[index], (*at, index))


def mutate_value(value: Any, rng: random.Random) -> Any:
    """A value of JSON with one of the values in it swapped, dropped, wrapped, doubled or moved to another's place."""
    value = copy.deepcopy(value)
    paths = list(places(value))
    path = rng.choice(paths)
    if not path:
        return odd_values(rng)
    parent = value
    for key in path[:-1]:
        parent = parent[key]
    last, old = path[-1], parent[path[-1]]
    kind = rng.choice(["swap", "swap", "swap", "drop", "wrap", "number", "other", "rename"])
    if kind == "drop":
        del parent[last]
    elif kind == "wrap":
        parent[last] = rng.choice([[old], {"a": old}, str(old), [old, old]])
    elif kind == "number" and isinstance(old, int | float) and not isinstance(old, bool):
        parent[last] = rng.choice([-old, old * 1000, old + 1, old - 1, old * 10**30, 0, float(str(old)), old // 2])
    elif kind == "other":
        other = value
        for key in rng.choice(paths):
            other = other[key]
        parent[last] = copy.deepcopy(other)
    elif kind == "rename" and isinstance(parent, dict):
        parent[rng.choice([last + "_x", last.upper(), "", "x" * 5000, "\x1b[31m"])] = parent.pop(last)
    else:
        parent[last] = odd_values(rng)
    return value


def mutate_json(text: str, rng: random.Random) -> bytes:
    """A JSON text with one value changed (`mutate_value`), nested without end, or no JSON any more (`mutate_bytes`)."""
    kind = rng.randrange(10)
    if kind == 0:
        return mutate_bytes(text.encode(), rng)
    if kind == 1:
        deep = rng.choice(["[", '{"a":']) * rng.choice([500, 5000, 200_000])
        at = rng.choice([0, len(text), text.find(":") + 1])
        return (text[:at] + deep + text[at:]).encode()
    value = json.loads(text)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        value = mutate_value(value, rng)
    return json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "backslashreplace")


def mutate_bytes(data: bytes, rng: random.Random, *, within: int | None = None) -> bytes:
    """Bytes of which some are flipped, cut off, left out, doubled, overwritten, or whose line ends are changed.

    `within` keeps the damage to so many first bytes (a header), but for cuts.
    """
    size = max(1, min(len(data), within or len(data)))
    at = rng.randrange(size)
    length = rng.choice([1, 2, 4, 8, 64])
    kind = rng.randrange(9)
    if kind <= 2:  # the most revealing kind
        changed = bytearray(data)
        for _ in range(rng.choice([1, 1, 1, 3, 16])):
            changed[rng.randrange(size)] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 3:
        return data[: rng.randrange(len(data) + 1)]
    if kind == 4:
        return data[:at] + data[at + length :]
    if kind == 5:
        return data[:at] + data[at : at + length] + data[at:]
    if kind == 6:
        return data[:at] + rng.choice([b"\0", b"\xff", b"\x7f"]) * length + data[at + length :]
    if kind == 7:
        return data.replace(b"\n", rng.choice([b"\r", b"\r\n", b"", b"\x85"]))
    return data[:at] + bytes(rng.randrange(256) for _ in range(length)) + data[at + length :]


def replace_file(path: Path, rng: random.Random) -> str:
    """Puts something else in a file's place; says what."""
    kind = rng.choice(["nothing", "empty", "directory", "pipe", "circle", "device", "sparse", "broken link"])
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "circle":
        path.symlink_to(path.name)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "broken link":
        path.symlink_to("nothing-here")
    elif kind == "sparse":
        with open(path, "wb") as file:
            file.truncate(1 << 40)
    return kind


class Outcome(NamedTuple):
    """How a case ended: `refused` with a UserError's text, `loaded`, or `fault` with what was wrong."""

    kind: str
    text: str
    seconds: float


class TooSlow(BaseException):
    """A case took too long. No Exception, so that no handler of the product takes it for a broken file."""


@contextlib.contextmanager
def limits(seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Time and memory of a case; in the main thread only."""

    def stop(*_: object) -> None:
        raise TooSlow

    before, old = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGALRM, stop)
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, before[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


def outcome(call: Callable[[], Any], *, allowed: tuple[type[BaseException], ...] = ()) -> Outcome:
    """What comes of a call on broken input. `allowed` errors count as refusals beside UserError."""
    start = time.monotonic()
    try:
        with limits():
            call()
        kind, text = "loaded", ""
    except (UserError, *allowed) as error:
        kind, text = "refused", str(error)
        if len(text) > MESSAGE or any(ord(letter) < 32 and letter != "\n" for letter in text):
            kind, text = "fault", f"unfit for a terminal: {text[:300]!r}"
    except TooSlow:
        kind, text = "fault", "took too long: " + traceback.format_exc(limit=-3)[-600:]
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        kind, text = "fault", traceback.format_exc(limit=-4)[-1500:]
    return Outcome(kind, text, time.monotonic() - start)
