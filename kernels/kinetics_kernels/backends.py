"""Which backend an op runs on: `xla` is the jnp reference, the others are the modules of `ops/<op>/`.

By default an op runs on what the device's tuning table names as the fastest for its shape; without an entry, on the
kernel made for the device (devices.py); and on the reference if there is none, or if it does not take the call.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any, Literal, get_args

from kinetics_kernels import devices, reference, tuning

Backend = Literal["xla", "triton", "mosaic_gpu", "mosaic_tpu"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
PLATFORM_BACKENDS: dict[str, tuple[Backend, ...]] = {
    "gpu": ("triton", "mosaic_gpu"),
    "cuda": ("triton", "mosaic_gpu"),
    "tpu": ("mosaic_tpu",),
}
PLATFORM_NAMES = {"cuda": "gpu"}  # as jax.default_backend spells them
ATTENTION_OPS = ("append_kv", "select_pages", "paged_decode")
KERNEL_OPS = (*ATTENTION_OPS, "grouped_matmul")
PARTS = {"block_topk_decode": ("select_pages", "paged_decode")}  # ops made of others
# Devices that kernels are made for, to answer about a platform of another machine.
MADE_FOR = {
    "gpu": (devices.Device("", "gpu", devices.AMPERE), "NVIDIA GPUs of compute capability 8.0 and newer"),
    "tpu": (devices.Device(devices.TPUS[0], "tpu"), "TPU v5e, v5p and v6e"),
}
# Why a kernel: the bytes that it moves, and those of the reference as XLA compiles it (tests/deviceless).
FLOOR = "reads each attended row of K and V once, the floor of 2 x head_dim numbers a token and KV head"
APPEND = "moves what it writes, and reads a page when it is full; the reference reads it at every token"
REASONS = {
    "gpu": {
        "append_kv": APPEND,
        "select_pages": "reads each summary once and chooses in registers; the reference sorts its scores in memory",
        "paged_decode": f"{FLOOR}; the reference gathers a copy first, three times the bytes",
        "grouped_matmul": "reads the matrices of groups that have rows, and those alone, in one launch; the reference "
        "is a loop of one small product after another",
    },
    "tpu": {
        "append_kv": APPEND,
        "select_pages": "reads each summary once; the reference gathers a copy of them first, three times the bytes",
        "paged_decode": f"{FLOOR}; the reference reads every row of a batch as far as its longest",
    },
}
XLA_KERNELS = {("grouped_matmul", "tpu"): "; XLA has a kernel of its own, jax.lax.ragged_dot"}


def chosen_backend(op: str, platform: str | None = None) -> tuple[Backend, str]:
    """The backend that `backend=None` chooses for an op of this package, and the reason in words.

    `platform` is `cpu`, `gpu` (or `cuda`) or `tpu`, by default that of the device calls are for (`devices.target`).
    If that device has a tuning table, the backend it names most often; else a heuristic, and the reason says so. A call
    that the kernel does not take falls back to the reference all the same.
    """
    if not kernel_backends(op):
        return "xla", "only the jnp reference has it"
    parts, device = PARTS.get(op, (op,)), devices.target()
    platform = PLATFORM_NAMES.get(platform or "", platform) or device.platform
    if here := platform == device.platform:
        table = tuning.load_table(tuning.device_slug(device.kind))
        if table and (counts := tuning.chosen_backends(table, parts)):
            spelled = ", ".join(f"{name} at {count}" for name, count in counts.items())
            return next(iter(counts)), f"the fastest on {table.device} by shape, of those measured: {spelled}"
        named = device.kind
    else:
        device, named = MADE_FOR.get(platform, (devices.Device(platform, platform), platform))
    backend = devices.suited_backend(device)
    if backend == "xla":
        return backend, f"the jnp reference; no kernel is made for {named}"
    if backend not in kernel_backends(op):
        xla_kernel = XLA_KERNELS.get((op, platform), "")
        return "xla", f"the jnp reference on {named}; no {backend} kernel is written{xla_kernel}"
    measured = "not measured on this device" if here else "not measured on such a device"
    reasons = [REASONS[platform][part] for part in parts]
    named_reasons = [f"{part} {reason}" for part, reason in zip(parts, reasons, strict=True)]
    why = "; ".join(named_reasons) if len(parts) > 1 else reasons[0]
    return backend, f"by heuristic for {named}, {measured}: {why}"


def backend_error(backend: str, platform: str | None = None) -> str | None:
    """Why a backend cannot be forced on a platform (by default that of calls, `devices.target`); None if it can."""
    platform = platform or devices.target().platform
    if backend not in BACKENDS:
        return f"backend {backend!r} is not known (known: {', '.join(BACKENDS)})"
    runs = ("xla", *PLATFORM_BACKENDS.get(platform, ()))
    if backend not in runs:
        return f"backend {backend!r} does not run on a {platform}; there: {', '.join(runs)}"
    return None


def kernel_backends(op: str) -> list[Backend]:
    """The backends, beside `xla`, that an op can be forced to."""
    return [name for name in BACKENDS[1:] if all(_has_kernel(part, name) for part in PARTS.get(op, (op,)))]


def implementation(op: str, backend: str | None, key: tuning.Key | None = None) -> Callable[..., Any]:
    """The function behind an op; for None the fastest of those measured at shapes like `key`, with its options.

    Without a `key`, or an entry for it in the device's tuning table, the kernel made for the device; a call that either
    does not take falls back to the reference with a warning. Raises ValueError for an unknown backend,
    NotImplementedError for one without the op.
    """
    if backend is None:
        return _default_implementation(op, key)
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend {backend!r} is not known (known: {', '.join(BACKENDS)})")
    if backend == "xla":
        return getattr(reference, op)
    if not _has_kernel(op, backend):
        has = ", ".join(["xla", *kernel_backends(op)])
        raise NotImplementedError(f"{op}: no {backend} kernel is written; backends of this op: {has}")
    return getattr(importlib.import_module(_module(op, backend)), op)


def _default_implementation(op: str, key: tuning.Key | None) -> Callable[..., Any]:
    device = devices.target()
    table = tuning.load_table(tuning.device_slug(device.kind))
    if table and key and (measured := tuning.lookup(table, op, key)):
        backend, options = measured
        fallback = "falling back to the reference: no tuning entry near this shape"
    else:
        backend, options = devices.suited_backend(device), {}
        fallback = "falling back to the reference"
        if not _has_kernel(op, backend):
            backend = "xla"
    if backend == "xla":
        return getattr(reference, op)
    return functools.partial(_call_or_fall_back, op, backend, options, fallback)


def _call_or_fall_back(
    op: str, backend: Backend, options: dict[str, Any], fallback: str, *args: Any, **settings: Any
) -> Any:
    """Calls a backend, or, with a warning, the reference if the kernel does not take the call."""
    try:
        return implementation(op, backend)(*args, **settings, **options)
    except NotImplementedError as refusal:
        warnings.warn(f"{refusal}; {fallback}", stacklevel=3)
        return getattr(reference, op)(*args, **settings)


@functools.cache
def _has_kernel(op: str, backend: str) -> bool:
    package = f"{__package__}.ops.{op}"
    return importlib.util.find_spec(package) is not None and importlib.util.find_spec(_module(op, backend)) is not None


def _module(op: str, backend: str) -> str:
    return f"{__package__}.ops.{op}.{backend}"
