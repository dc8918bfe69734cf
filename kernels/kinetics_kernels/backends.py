"""Which backend an op runs on: `xla` is the jnp reference, the others are the modules of `ops/<op>/`.

By default an op runs on what a tuning table of the device names as the fastest for its shape, else on the reference: a
kernel that no measurement speaks for is not chosen, only forced.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import jax

from kinetics_kernels import reference, tuning

BACKENDS = ("xla", "triton", "mosaic_gpu", "mosaic_tpu")
OF_PLATFORM = {"gpu": ("triton", "mosaic_gpu"), "cuda": ("triton", "mosaic_gpu"), "tpu": ("mosaic_tpu",)}
PLATFORM_NAMES = {"cuda": "gpu"}  # as jax.default_backend spells them
KERNEL_OPS = ("append_kv", "select_pages", "paged_decode")
PARTS = {"block_topk_decode": ("select_pages", "paged_decode")}  # ops made of others


def chosen_backend(op: str, platform: str | None = None) -> tuple[str, str]:
    """The backend that `backend=None` gives an op of this package, and why.

    `platform` is `cpu`, `gpu` (or `cuda`) or `tpu`, by default that of the default device. Where the device has a
    tuning table, the backend it names most often.
    """
    here = platform is None or PLATFORM_NAMES.get(platform, platform) == jax.default_backend()
    platform = platform or jax.default_backend()
    if not kernel_backends(op):
        return "xla", "no backend but the jnp reference has it"
    compiled = [name for name in OF_PLATFORM.get(platform, ()) if name in kernel_backends(op)]
    if not compiled:
        return "xla", f"the jnp reference; no kernel is made for {platform}"
    table = _table_of_default_device() if here else None
    if table and (counts := tuning.chosen_backends(table, PARTS.get(op, (op,)))):
        spelled = ", ".join(f"{name} at {count}" for name, count in counts.items())
        return next(iter(counts)), f"the fastest on {table.device} by shape, of those measured: {spelled}"
    unmeasured = (
        f"{' and '.join(compiled)} compiled for {platform} but not measured on {'this' if here else 'a'} device"
    )
    return "xla", f"{unmeasured}: run experiments/tune_kernels.py there, or force one with backend="


def _table_of_default_device() -> tuning.Table | None:
    chosen = jax.config.jax_default_device  # type: ignore[attr-defined]
    device = chosen if isinstance(chosen, jax.Device) else jax.devices(chosen)[0]
    return tuning.load_table(tuning.device_slug(device.device_kind))


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


def implementation(op: str, backend: str | None, key: tuning.Key | None = None) -> Callable[..., Any]:
    """The function behind an op; for None the fastest of those measured at shapes like `key`, with its options.

    Raises ValueError for an unknown backend, NotImplementedError for one without the op.
    """
    if backend is None:
        table = _table_of_default_device()
        found = tuning.lookup(table, op, key) if table and key else None
        return functools.partial(_tuned, op, *found) if found else getattr(reference, op)
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend {backend!r} is not known (known: {', '.join(BACKENDS)})")
    if backend == "xla":
        return getattr(reference, op)
    if not _has_kernel(op, backend):
        has = ", ".join(["xla", *kernel_backends(op)])
        raise NotImplementedError(f"{op}: no {backend} kernel is written; it has: {has}")
    return getattr(importlib.import_module(_module(op, backend)), op)


def _tuned(op: str, backend: str, options: dict[str, Any], *args: Any, **settings: Any) -> Any:
    """A call as the nearest measurement advises; shapes far from it can be beyond a kernel, which a warning tells."""
    try:
        return implementation(op, backend)(*args, **settings, **options)
    except NotImplementedError as refusal:
        warnings.warn(f"{refusal}; this call, which no measurement is near, runs on the reference", stacklevel=3)
        return getattr(reference, op)(*args, **settings)


def _has_kernel(op: str, backend: str) -> bool:
    package = f"{__package__}.ops.{op}"
    return importlib.util.find_spec(package) is not None and importlib.util.find_spec(_module(op, backend)) is not None


def _module(op: str, backend: str) -> str:
    return f"{__package__}.ops.{op}.{backend}"
