"""Files and directories that appear whole or not at all, and files that one process holds at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing guards against a second writer
    fcntl = None


def write_atomic(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it, so that it is never seen half-written."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(encode_utf8(text))
        file.flush()
        os.fsync(file.fileno())  # else a power failure may leave the new name without its content
    os.replace(partial, path)


@contextlib.contextmanager
def atomic_directory(directory: Path) -> Iterator[Path]:
    """A new directory to write to, beside `directory`: renamed to it at the end of the `with`, removed if that fails.

    What a killed process leaves is named `.NAME.XXXXXXXX.partial`. Raises OSError if `directory` is there by then and
    is not an empty directory.
    """
    directory = Path(os.path.abspath(directory))  # "." has no name to put another beside
    partial = directory.with_name(f".{directory.name}.{uuid.uuid4().hex[:8]}.partial")
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.replace(directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def encode_utf8(text: str) -> bytes:
    """UTF-8; a lone surrogate, which UTF-8 cannot hold, is written as its JSON escape."""
    return text.encode("utf-8", "backslashreplace")


def lock_file(file: IO[Any]) -> None:
    """Holds an open file for this process alone until it is closed or the process dies; only where the system can.

    Raises BlockingIOError while another process holds it.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
