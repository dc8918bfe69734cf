"""Kernels, found by their files: `<package>/<op>/<backend>.py`, in this package's `ops` and in packages of others."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

from kinetics_kernels import reference

GROUP = "kinetics_kernels.backends"  # entry points NAME = "package" of installed packages with kernels
OWN = f"{__package__}.ops"
ATTENTION_OPS = ("append_kv", "select_pages", "paged_decode")
KERNEL_OPS = (*ATTENTION_OPS, "grouped_matmul")
# The platforms of this package's kernels, by the name of the backend; a kernel of another name says its own.
PLATFORM_BACKENDS: dict[str, tuple[str, ...]] = {
    "gpu": ("triton", "mosaic_gpu"),
    "cuda": ("triton", "mosaic_gpu"),
    "tpu": ("mosaic_tpu",),
}
PLATFORM_NAMES = {"cuda": "gpu"}  # as jax.default_backend spells them
BACKENDS = ("xla", "triton", "mosaic_gpu", "mosaic_tpu")  # of this package; others come after them

_packages: list[str] = [OWN]


def register_backends(package: str | ModuleType) -> list[str]:
    """Makes the kernels of a package known in this process: `<package>/<op>/<backend>.py`, as in this one's `ops`.

    Returns what it holds, as `paged_decode=mine`, …. Raises ValueError for a package that cannot be imported, or holds
    none.
    """
    name = package if isinstance(package, str) else package.__name__
    importlib.invalidate_caches()
    try:
        importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"register_backends: {name} cannot be imported ({type(error).__name__}: {error})") from error
    held = [f"{op}={backend}" for op in KERNEL_OPS for backend in _files_in(name, op)]
    if not held:
        raise ValueError(
            f"register_backends: {name} holds no kernel; write {name.replace('.', '/')}/OP/BACKEND.py, where OP is one "
            f"of {', '.join(KERNEL_OPS)}"
        )
    if name not in _packages:
        _packages.append(name)
    return held


def kernel_files(op: str) -> dict[str, str]:
    """The backends that an op has kernels of, and the modules of these: this package's first, then in their order.

    Raises ValueError where two packages have a kernel of one name for the op.
    """
    found: dict[str, str] = {}
    for package in (*_packages, *(name for name in _offered() if name not in _packages)):
        for backend, module in _files_in(package, op).items():
            if backend in found:
                raise ValueError(
                    f"{op}: {found[backend]} and {module} are two kernels of one name; give one of the files another"
                )
            found[backend] = module
    return dict(sorted(found.items(), key=lambda item: (item[0] not in BACKENDS, *_order(item[0]))))


def kernel_names() -> list[str]:
    """Every backend, `xla` first: those of this package, then those of others."""
    found = {backend for op in KERNEL_OPS for backend in kernel_files(op)}
    return [*BACKENDS, *sorted(found - {*BACKENDS})]


def kernel_function(op: str, backend: str) -> Callable[..., Any]:
    """The function of a kernel's file. Raises ValueError if it does not take what the reference takes."""
    module = importlib.import_module(kernel_files(op)[backend])
    function = getattr(module, op, None)
    if not callable(function):
        raise ValueError(f"{op}: {module.__file__} defines no function {op}")
    specified, taken = (list(inspect.signature(each).parameters) for each in (getattr(reference, op), function))
    if taken[: len(specified)] != specified:
        raise ValueError(f"{op}: the function of {module.__file__} must begin with {', '.join(specified)}")
    return function


def kernel_options(op: str, backend: str) -> list[str]:
    """Names of what a kernel takes beyond the reference's arguments, but for `interpret`."""
    if backend == "xla":
        return []
    specified = inspect.signature(getattr(reference, op)).parameters
    own = inspect.signature(kernel_function(op, backend)).parameters
    return [name for name in own if name not in specified and name != "interpret"]


def runs_on(op: str, backend: str, platform: str) -> bool:
    """Whether a kernel is for a platform: by its name, or by `PLATFORMS` of its file; without one it is for any."""
    if backend in BACKENDS:
        return backend == "xla" or backend in PLATFORM_BACKENDS.get(platform, ())
    platforms = getattr(importlib.import_module(kernel_files(op)[backend]), "PLATFORMS", None)
    named = PLATFORM_NAMES.get(platform, platform)
    return platforms is None or named in {PLATFORM_NAMES.get(each, each) for each in platforms}


def _order(backend: str) -> tuple[int, str]:
    return (BACKENDS.index(backend), "") if backend in BACKENDS else (0, backend)


def _files_in(package: str, op: str) -> dict[str, str]:
    """The kernels of an op in a package: name and module of each; none if it has no folder for the op."""
    try:
        folders = [f"{folder}/{op}" for folder in importlib.import_module(package).__path__]
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"kernels of the package {package}, which an entry point of group {GROUP} names, cannot be found "
            f"({type(error).__name__}: {error!s:.200}); mend or uninstall it"
        ) from error
    names = sorted(module.name for module in pkgutil.iter_modules(folders) if not module.name.startswith("_"))
    return {name: f"{package}.{op}.{name}" for name in names}


@functools.cache
def _offered() -> tuple[str, ...]:
    """The packages that installed distributions offer, by their entry points."""
    return tuple(sorted({entry.value for entry in importlib.metadata.entry_points(group=GROUP)}))
