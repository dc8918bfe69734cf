"""Compiled programs kept between processes by jax's persistent cache, and a report of what a process compiled."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from kinetics_jax.errors import UserError

OFF = "off"
# Programs that compile faster are not worth a file: most are single operations, about 30 ms on a CPU.
MIN_SECONDS = 0.1
MAX_BYTES = 2 << 30
COMPILED = "/jax/core/compile/backend_compile_duration"  # of every program, those from the cache included
FROM_CACHE = "/jax/compilation_cache/cache_hits"  # comes before the above, in the same thread


def user_cache() -> Path:
    """The folder of this user's caches of kinetics_jax, by the platform's conventions."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return base / "kinetics_jax"


def use_compile_cache(choice: str | None = None) -> Path | None:
    """Turns jax's persistent compilation cache on for this process, before anything is compiled.

    `choice`: a directory, `off`, or None: jax's own setting if the user made one, else a folder of the user's caches,
    whose oldest programs are removed once it holds more than 2 GiB. Returns the directory in use; None if there is no
    cache. Warns if the directory can be read only, or cannot be made; raises UserError if one that was asked for cannot
    be made.
    """
    if choice == OFF:
        jax.config.update("jax_enable_compilation_cache", False)
        return None
    own = jax.config.values["jax_compilation_cache_dir"]
    if choice is None and own:
        return Path(own) if jax.config.values["jax_enable_compilation_cache"] else None
    try:
        directory = Path(choice) if choice else user_cache() / "compiled"
    except RuntimeError as error:  # a user without a home directory
        warnings.warn(f"{error} Compiled programs are not kept; --compile-cache names a place", stacklevel=2)
        return None
    try:
        directory.mkdir(parents=True, exist_ok=True)
        names = os.listdir(directory)
    except OSError as error:
        if choice:
            raise UserError(f"--compile-cache {choice}: {error.strerror}") from error
        warnings.warn(f"{directory}: {error.strerror}; compiled programs are not kept", stacklevel=2)
        return None
    min_seconds = MIN_SECONDS
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        warnings.warn(f"{directory}: {error.strerror}; new compiled programs are not kept", stacklevel=2)
        min_seconds = float("inf")
    else:
        if choice is None:
            _prune(directory, names, MAX_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(directory))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", min_seconds)
    return directory


def _prune(directory: Path, names: list[str], max_bytes: int) -> None:
    """Removes the files written longest ago until the rest have at most `max_bytes` bytes."""
    files = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # another process prunes too
            files.append(((directory / name).stat(), directory / name))
    total = sum(stat.st_size for stat, _ in files)
    for stat, path in sorted(files, key=lambda file: file[0].st_mtime):
        if total <= max_bytes:
            return
        if path.is_file():
            path.unlink(missing_ok=True)
            total -= stat.st_size


@dataclasses.dataclass
class Compiled:
    """The programs that this process compiled or took from the cache: name, seconds, and whether from the cache."""

    programs: list[tuple[str, float, bool]] = dataclasses.field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """How many programs and seconds, how many of both came from the cache, and the slowest by name."""
        return {
            "programs": len(self.programs),
            "seconds": round(sum(seconds for _, seconds, _ in self.programs), 3),
            "cached_programs": sum(cached for _, _, cached in self.programs),
            "cached_seconds": round(sum(seconds for _, seconds, cached in self.programs if cached), 3),
            "slowest": [
                {"program": name, "seconds": round(seconds, 3), "cached": cached}
                for name, seconds, cached in sorted(self.programs, key=lambda program: -program[1])[:3]
            ],
        }

    def line(self) -> str:
        """`record` in words."""
        record = self.record()
        slowest = ", ".join(f"{each['program']} {each['seconds']:.1f} s" for each in record["slowest"])
        return (
            f"warm-up: {record['programs']} programs in {record['seconds']:.1f} s, {record['cached_programs']} of them "
            f"from the compilation cache in {record['cached_seconds']:.1f} s (slowest: {slowest or 'none'})"
        )


@contextlib.contextmanager
def watch_compiles() -> Iterator[Compiled]:
    """Yields a record that lists every program compiled while the context lasts."""
    compiled, from_cache = Compiled(), False

    def on_event(event: str, **_: Any) -> None:
        nonlocal from_cache
        from_cache |= event == FROM_CACHE

    def on_duration(event: str, duration_secs: float, **about: Any) -> None:
        nonlocal from_cache
        if event == COMPILED:
            name = str(about.get("fun_name", "a program")).removeprefix("jit(").removesuffix(")")
            compiled.programs.append((name, duration_secs, from_cache))
            from_cache = False

    jax.monitoring.register_event_listener(on_event)
    jax.monitoring.register_event_duration_secs_listener(on_duration)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_listener(on_event)
        jax.monitoring.unregister_event_duration_listener(on_duration)
