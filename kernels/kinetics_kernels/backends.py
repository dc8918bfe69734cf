"""Which backend an op runs on: `xla` is the jnp reference, the others are the modules of `ops/<op>/`.

By default an op runs on what a tuning table of the device names as the fastest for its shape; where none speaks for it,
on the kernels made for the device (devices.py), and on the reference where there are none or they do not take the call.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

from kinetics_kernels import devices, reference, tuning

BACKENDS = ("xla", "triton", "mosaic_gpu", "mosaic_tpu")
OF_PLATFORM = {"gpu": ("triton", "mosaic_gpu"), "cuda": ("triton", "mosaic_gpu"), "tpu": ("mosaic_tpu",)}
PLATFORM_NAMES = {"cuda": "gpu"}  # as jax.default_backend spells them
KERNEL_OPS = ("append_kv", "select_pages", "paged_decode")
PARTS = {"block_topk_decode": ("select_pages", "paged_decode")}  # ops made of others
# Devices that kernels are made for, where a platform is asked about that is not here.
MADE_FOR = {
    "gpu": (devices.Device("", "gpu", devices.AMPERE), "NVIDIA GPUs of compute capability 8.0 and newer"),
    "tpu": (devices.Device(devices.TPUS[0], "tpu"), "TPU v5e, v5p and v6e"),
}
# Why a kernel: the bytes that it moves, and those of the reference as XLA compiles it (tests/deviceless).
FLOOR = "reads each attended row of K and V once, the floor of 2 x head_dim numbers a token and KV head"
APPEND = "moves what it writes, and reads a page when it is full; the reference reads it at every token"
BYTES = {
    "gpu": {
        "append_kv": APPEND,
        "select_pages": "reads each summary once and chooses in registers; the reference sorts its scores in memory",
        "paged_decode": f"{FLOOR}; the reference gathers a copy first, three times the bytes",
    },
    "tpu": {
        "append_kv": APPEND,
        "select_pages": "reads each summary once; the reference gathers a copy of them first, three times the bytes",
        "paged_decode": f"{FLOOR}; the reference reads every row of a batch as far as its longest",
    },
}


def chosen_backend(op: str, platform: str | None = None) -> tuple[str, str]:
    """The backend that `backend=None` gives an op of this package, and why.

    `platform` is `cpu`, `gpu` (or `cuda`) or `tpu`, by default that of the device calls are for (`devices.target`).
    Where that device has a tuning table, the backend it names most often; else a heuristic, which says so. A call that
    a kernel does not take runs on the reference all the same.
    """
    if not kernel_backends(op):
        return "xla", "no backend but the jnp reference has it"
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
    measured = "not measured on this device" if here else "not measured on such a device"
    moves = [BYTES[platform][part] for part in parts]
    moves = "; ".join(f"{part} {moved}" for part, moved in zip(parts, moves, strict=True)) if moves[1:] else moves[0]
    return backend, f"by heuristic for {named}, {measured}: {moves}"


def backend_error(backend: str, platform: str | None = None) -> str | None:
    """Why a backend cannot be forced on a platform (by default the default device's); None where it can."""
    platform = platform or devices.target().platform
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

    Where the device's tuning table has none, the kernel made for the device; what that, or the table's advice, does not
    take runs on the reference with a warning. Raises ValueError for an unknown backend, NotImplementedError for one
    without the op.
    """
    if backend is None:
        return _by_default(op, key)
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend {backend!r} is not known (known: {', '.join(BACKENDS)})")
    if backend == "xla":
        return getattr(reference, op)
    if not _has_kernel(op, backend):
        has = ", ".join(["xla", *kernel_backends(op)])
        raise NotImplementedError(f"{op}: no {backend} kernel is written; it has: {has}")
    return getattr(importlib.import_module(_module(op, backend)), op)


def _by_default(op: str, key: tuning.Key | None) -> Callable[..., Any]:
    device = devices.target()
    table = tuning.load_table(tuning.device_slug(device.kind))
    if table and key and (found := tuning.lookup(table, op, key)):
        backend, options = found
        unlike = "this call, which no measurement is near,"
    else:
        backend, options = devices.suited_backend(device), {}
        unlike = "this call"
    if backend == "xla":
        return getattr(reference, op)
    return functools.partial(_or_reference, op, backend, options, unlike)


def _or_reference(op: str, backend: str, options: dict[str, Any], call: str, *args: Any, **settings: Any) -> Any:
    """A call on a backend, or, with a warning, on the reference where the kernel does not take it."""
    try:
        return implementation(op, backend)(*args, **settings, **options)
    except NotImplementedError as refusal:
        warnings.warn(f"{refusal}; {call} runs on the reference", stacklevel=3)
        return getattr(reference, op)(*args, **settings)


def _has_kernel(op: str, backend: str) -> bool:
    package = f"{__package__}.ops.{op}"
    return importlib.util.find_spec(package) is not None and importlib.util.find_spec(_module(op, backend)) is not None


def _module(op: str, backend: str) -> str:
    return f"{__package__}.ops.{op}.{backend}"
