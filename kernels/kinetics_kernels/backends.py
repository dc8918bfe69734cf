"""Which backend an op runs on: `xla` is the jnp reference, the others are the modules of `ops/<op>/`."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import jax

from kinetics_kernels import reference

BACKENDS = ("xla", "triton", "mosaic_gpu", "mosaic_tpu")
OF_PLATFORM = {"gpu": ("triton", "mosaic_gpu"), "cuda": ("triton", "mosaic_gpu"), "tpu": ("mosaic_tpu",)}
KERNEL_OPS = ("append_kv", "select_pages", "paged_decode")
PARTS = {"block_topk_decode": ("select_pages", "paged_decode")}  # ops made of others


def chosen_backend(op: str, platform: str | None = None) -> tuple[str, str]:
    """The backend that `backend=None` gives an op of this package, and why.

    `platform` is `cpu`, `gpu` (or `cuda`) or `tpu`, by default that of the default device.
    """
    platform = platform or jax.default_backend()
    if not kernel_backends(op):
        return "xla", "no backend but the jnp reference has it"
    compiled = [name for name in OF_PLATFORM.get(platform, ()) if name in kernel_backends(op)]
    if compiled:
        return "xla", f"{' and '.join(compiled)} compiled for {platform} but not yet run on one; backend= forces it"
    return "xla", f"the jnp reference; no kernel is made for {platform}"


def backend_error(backend: str, platform: str | None = None) -> str | None:
    """Why a backend cannot be forced on a platform (by default the default device's); None where it can."""
    platform = platform or jax.default_backend()
    if backend not in BACKENDS:
        return f"backend {backend!r} is not known (known: {', '.join(BACKENDS)})"
    runs = ("xla", *OF_PLATFORM.get(platform, ()))
    if backend not in runs:
        return f"backend {backend!r} does not run on a {platform}; there: {', '.join(runs)}"
    return None


def kernel_backends(op: str) -> list[str]:
    """The backends, beside `xla`, that an op can be forced to."""
    return [name for name in BACKENDS[1:] if all(_has_kernel(part, name) for part in PARTS.get(op, (op,)))]


def implementation(op: str, backend: str | None) -> Callable[..., Any]:
    """The function behind an op. Raises ValueError for an unknown backend, NotImplementedError for one without it."""
    if backend is None:
        backend, _ = chosen_backend(op)
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend {backend!r} is not known (known: {', '.join(BACKENDS)})")
    if backend == "xla":
        return getattr(reference, op)
    if not _has_kernel(op, backend):
        has = ", ".join(["xla", *kernel_backends(op)])
        raise NotImplementedError(f"{op}: no {backend} kernel is written; it has: {has}")
    return getattr(importlib.import_module(_module(op, backend)), op)


def _has_kernel(op: str, backend: str) -> bool:
    package = f"{__package__}.ops.{op}"
    return importlib.util.find_spec(package) is not None and importlib.util.find_spec(_module(op, backend)) is not None


def _module(op: str, backend: str) -> str:
    return f"{__package__}.ops.{op}.{backend}"
