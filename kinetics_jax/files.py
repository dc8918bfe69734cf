"""Files read only if they are files, files and directories that appear whole or not at all, and files that one process
holds at a time.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from kinetics_jax.errors import UserError, shown

try:
    import fcntl
except ImportError:  # not a POSIX system: nothing guards against a second writer
    fcntl = None


JSON_BYTES = 16 << 20  # of a JSON file that describes something, at most
KINDS = (
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class FileError(UserError):
    """A file that cannot be read: none at all, too large, or not what it should hold; the message names it."""


def open_regular(path: str | Path, *, at_most: int | None = None, error: type[UserError] = FileError) -> IO[bytes]:
    """Opens a regular file for reading; a link to one is followed, and nothing waits for a pipe's other end.

    Raises FileNotFoundError if there is nothing, and `error` for a directory, pipe, socket, device or circle of links,
    for a file that may not be read, and for one of more than `at_most` bytes.
    """
    name = shown(str(path), 400)
    try:
        _require_regular(os.stat(path), name, error)  # before it is opened: to open a device can do something
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, UserError):
        raise
    except (OSError, ValueError) as why:  # ValueError: a name with a zero byte
        raise error(f"{name}: cannot be opened ({getattr(why, 'strerror', None) or why})") from why
    file = os.fdopen(descriptor, "rb")
    try:
        status = os.fstat(descriptor)
        _require_regular(status, name, error)
        if at_most is not None and status.st_size > at_most:
            raise error(f"{name}: is too large to be one ({status.st_size:,} bytes; at most {at_most:,} are read)")
    except BaseException:
        file.close()
        raise
    return file


def _require_regular(status: os.stat_result, name: str, error: type[UserError]) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for is_kind, kind in KINDS if is_kind(status.st_mode)), "something else")
        raise error(f"{name}: is {kind}, not a regular file")


def read_regular(path: str | Path, *, at_most: int = JSON_BYTES, error: type[UserError] = FileError) -> bytes:
    """All bytes of a regular file. Raises as `open_regular` does, also for a file that grows beyond `at_most`."""
    with open_regular(path, at_most=at_most, error=error) as file:
        data = file.read(at_most + 1)
    if len(data) > at_most:
        raise error(f"{shown(str(path), 400)}: is too large to be one (more than {at_most:,} bytes)")
    return data


def read_json(path: str | Path, *, at_most: int = JSON_BYTES, error: type[UserError] = FileError) -> dict[str, Any]:
    """The object in a JSON file. Raises FileNotFoundError, or `error` for what is no such file (`parse_json`)."""
    return parse_json(read_regular(path, at_most=at_most, error=error), shown(str(path), 400), error=error)


def parse_json(data: bytes | str, where: str, *, error: type[UserError] = FileError) -> dict[str, Any]:
    """The object that a JSON text spells. Raises `error`, beginning with `where`, for what is not UTF-8 or not JSON,
    is no object, nests too deeply, or gives a name two different values.
    """
    try:
        value = json.loads(data, object_pairs_hook=_once)
    except RecursionError as why:
        raise error(f"{where}: not valid JSON that can be read (it nests too deeply)") from why
    except ValueError as why:  # UnicodeDecodeError is one too
        raise error(f"{where}: not valid JSON ({shown(str(why), 200)})") from why
    if not isinstance(value, dict):
        raise error(f"{where}: holds {type(value).__name__}, expected a JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object of which no name has two values, since readers differ in which of them they take."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        for name, value in pairs:
            if repr(fields[name]) != repr(value):
                raise ValueError(f"{shown(name)} stands there twice, with different values")
    return fields


def output_file(path: str | Path) -> Path:
    """Where `write_atomic` would write: the file itself, links followed.

    Raises FileError for what cannot be one: no name, a directory, a circle of links, a folder that is not there.
    """
    name, path = shown(str(path), 400), Path(path)
    try:
        if path.name and path.exists() and not (path.is_file() or path.is_dir()):
            return path  # a pipe or device, of which a link such as /dev/stdout may have no other name
        target = Path(os.path.realpath(path))
        if not path.name or target.is_dir():
            raise FileError(f"{name}: is a directory; name a file to write")
        if target.is_symlink():
            raise FileError(f"{name}: is a circle of links; name a file to write")
        if not target.parent.is_dir():
            raise FileError(f"{name}: cannot be written: there is no folder {shown(str(target.parent), 400)}")
    except FileError:
        raise
    except (OSError, ValueError) as why:  # ValueError: a name with a zero byte
        raise FileError(f"{name}: cannot be written ({getattr(why, 'strerror', None) or why})") from why
    return target


def write_atomic(path: str | Path, content: str | bytes) -> None:
    """Writes a file whole or not at all: under a temporary name, which then replaces it and keeps its permissions.

    Links are followed; a pipe, a device, a standard stream, and a file that is a mount point are written in place. Text
    is written as UTF-8. Raises FileError if the file cannot be written; nothing is left behind then.
    """
    target = output_file(path)
    data = encode_utf8(content) if isinstance(content, str) else content
    try:
        if (stream := _standard_stream(target)) is not None:
            with open(os.dup(stream), "wb") as file:  # behind what is there, as what is printed next will be
                file.write(data)
        elif target.exists() and not target.is_file():
            _write_in_place(target, data)
        else:
            _replace(target, data)
    except OSError as why:
        raise FileError(f"{shown(str(path), 400)}: cannot be written ({why.strerror or why})") from why


def _replace(target: Path, data: bytes) -> None:
    partial = target.with_name(f".{uuid.uuid4().hex[:8]}.partial")
    try:
        with open(partial, "xb") as file:
            if target.exists():
                shutil.copymode(target, partial)
                if hasattr(os, "geteuid") and os.geteuid() == 0:  # anyone else can only make files of their own
                    os.chown(partial, target.stat().st_uid, target.stat().st_gid)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power failure may leave the new name without its content
        os.replace(partial, target)
    except OSError as why:
        if why.errno != errno.EBUSY:
            raise
        _write_in_place(target, data)
    finally:
        partial.unlink(missing_ok=True)


def _standard_stream(target: Path) -> int | None:
    """Standard output or error, if that is what the path leads to (/dev/stdout, or the file it is sent to)."""
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            same = os.path.samestat(os.fstat(number), os.stat(target))
        except OSError:  # closed, or nothing there yet
            continue
        if same:
            if stream is not None:
                stream.flush()
            return number
    return None


def _write_in_place(target: Path, data: bytes) -> None:
    with open(target, "wb") as file:
        file.write(data)


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
