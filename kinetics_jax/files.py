"""Writing a file whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system: runs are not guarded against a second writer
    fcntl = None


def write_whole(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it, so that it is never seen half-written."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        file.write(_encoded(text))
        file.flush()
        os.fsync(file.fileno())  # else a power failure may leave the new name without its content
    os.replace(partial, path)


def _encoded(text: str) -> bytes:
    """UTF-8, where a lone surrogate, which it cannot hold, is written as its JSON escape."""
    return text.encode("utf-8", "backslashreplace")
