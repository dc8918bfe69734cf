"""Which backend an op runs on: `xla` is the jnp reference, the others are kernels, found by their files.

By default an op runs on what the device's tuning table names as the fastest for its shape; without an entry, on the
kernel made for the device (devices.py); and on the reference if there is none, or if it does not take the call.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from kinetics_kernels import devices, reference, tuning
from kinetics_kernels.choices import Backend as Backend
from kinetics_kernels.choices import Choice, choice_for, parsed
from kinetics_kernels.kernel_files import ATTENTION_OPS as ATTENTION_OPS
from kinetics_kernels.kernel_files import BACKENDS as BACKENDS
from kinetics_kernels.kernel_files import (
    KERNEL_OPS,
    PLATFORM_NAMES,
    kernel_files,
    kernel_function,
    kernel_names,
    kernel_options,
    runs_on,
)
from kinetics_kernels.kernel_files import PLATFORM_BACKENDS as PLATFORM_BACKENDS
from kinetics_kernels.summaries.registry import has_kernel_code

OPS = (
    "append_kv",
    "block_topk_decode",
    "choose_pages",
    "grouped_matmul",
    "litesys_mask",
    "masked_decode",
    "merge_partials",
    "paged_decode",
    "score_pages",
    "select_pages",
    "sliding_window_mask",
    "token_logits",
    "token_topk_mask",
)
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


def chosen_backend(op: str, platform: str | None = None, summary: str | None = None) -> tuple[str, str]:
    """The backend that `backend=None` chooses for an op of this package, and the reason in words.

    `platform` is `cpu`, `gpu` (or `cuda`) or `tpu`, by default that of the device calls are for (`devices.target`).
    If that device has a tuning table, the backend it names most often; else a heuristic, and the reason says so. A call
    that the kernel does not take falls back to the reference all the same: so does one with page summaries of a kind,
    `summary`, that the kernel has no code for. Raises ValueError for an unknown kind.
    """
    if not kernel_backends(op):
        return "xla", "only the jnp reference has it"
    parts, device = PARTS.get(op, (op,)), devices.target()
    backend, why = _suited(op, parts, device, PLATFORM_NAMES.get(platform or "", platform) or device.platform)
    for part in parts if backend != "xla" else ():
        if summary is not None and not has_kernel_code(part, backend, summary):
            return "xla", f"the jnp reference: {backend} has no code for summaries of kind {summary} in {part}"
    return backend, why


def _suited(op: str, parts: Sequence[str], device: devices.Device, platform: str) -> tuple[str, str]:
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


def used_backend(op: str, backend: Backend | None, summary: str | None = None) -> str:
    """The name of the backend that an op runs on under a spelling, or under None by default; for an op made of others
    that differ, theirs. `summary` as in `chosen_backend`.
    """
    names = []
    for part in PARTS.get(op, (op,)):
        choice = choice_for(part, backend)
        names.append(choice.backend if choice else chosen_backend(part, summary=summary)[0])
    return "+".join(dict.fromkeys(names))


def backend_error(backend: Backend, platform: str | None = None, ops: Sequence[str] = KERNEL_OPS) -> str | None:
    """Why a choice of backends cannot be forced on a platform; None if it can.

    `platform` is by default that of calls (`devices.target`); `ops` are those that can be chosen for. A backend for all
    ops may lack some: a call of these is refused, and names them.
    """
    platform = platform or devices.target().platform
    try:
        chosen = parsed(backend)
        for op, choice in chosen.items():
            if op and op not in ops:
                return f"backend {backend!r}: {op} cannot be chosen here ({', '.join(ops)})"
            _check(op, choice)
            runs = [name for name in kernel_names() if _on_platform(op, name, platform)]
            if choice.backend not in runs:
                where = f"{op}: " if op else ""
                return f"{where}backend {choice.backend!r} does not run on a {platform}; there: {', '.join(runs)}"
    except (ValueError, NotImplementedError) as error:
        return str(error)
    return None


def _on_platform(op: str, name: str, platform: str) -> bool:
    having = [each for each in ((op,) if op else KERNEL_OPS) if _has_kernel(each, name)]
    return name == "xla" or any(runs_on(each, name, platform) for each in having)


def kernel_backends(op: str) -> list[str]:
    """The backends, beside `xla`, that an op can be forced to."""
    return [name for name in kernel_names()[1:] if all(_has_kernel(part, name) for part in PARTS.get(op, (op,)))]


def implementation(op: str, backend: Backend | None, key: tuning.Key | None = None) -> Callable[..., Any]:
    """The function behind an op; for None the fastest of those measured at shapes like `key`, with its options.

    Without a `key`, or an entry for it in the device's tuning table, the kernel made for the device; a call that either
    does not take falls back to the reference with a warning. Raises ValueError for an unknown backend or option,
    NotImplementedError for a backend without the op.
    """
    choice = choice_for(op, backend)
    if choice is None:
        return _default_implementation(op, key)
    _check(op, choice)
    if choice.backend == "xla":
        return getattr(reference, op)
    function = kernel_function(op, choice.backend)
    return functools.partial(function, **dict(choice.options)) if choice.options else function


def _check(op: str, choice: Choice) -> None:
    """Raises ValueError for an unknown backend or option, NotImplementedError for a backend without the op."""
    where, name = f"{op}: " if op else "", choice.backend
    if name not in BACKENDS and name not in kernel_names():
        raise ValueError(f"{where}backend {name!r:.60} is not known (known: {', '.join(kernel_names())})")
    if op and name != "xla" and not _has_kernel(op, name):
        has = ", ".join(["xla", *kernel_backends(op)])
        owns = [other for other in KERNEL_OPS if _has_kernel(other, name)]
        cure = f"; it has {', '.join(owns)}: choose for each op, as in {owns[0]}={name}" if owns else ""
        raise NotImplementedError(f"{op}: no {name} kernel is written; backends of this op: {has}{cure}")
    for option, _ in choice.options:
        takes = kernel_options(op, name) if op else []
        if not op:
            raise ValueError(f"backend {str(choice)!r:.60}: an option belongs to an op, as in paged_decode={choice}")
        if option not in takes:
            has = f"it has: {', '.join(takes)}" if takes else "it has none"
            raise ValueError(f"{op}: the {name} backend has no option {option!r:.60} ({has})")


def _default_implementation(op: str, key: tuning.Key | None) -> Callable[..., Any]:
    device = devices.target()
    table = tuning.load_table(tuning.device_slug(device.kind))
    if table and key and (measured := tuning.lookup(table, op, key)):
        backend, options = measured
        fallback = "falling back to the reference: no tuning entry near this shape"
    else:
        backend, options = devices.suited_backend(device), {}
        fallback = "falling back to the reference"
        if backend != "xla" and not _has_kernel(op, backend):
            backend = "xla"
    if backend == "xla":
        return getattr(reference, op)
    return functools.partial(_call_or_fall_back, op, backend, options, fallback)


def _call_or_fall_back(
    op: str, backend: str, options: dict[str, Any], fallback: str, *args: Any, **settings: Any
) -> Any:
    """Calls a backend, or, with a warning, the reference if the kernel does not take the call."""
    try:
        return implementation(op, backend)(*args, **settings, **options)
    except NotImplementedError as refusal:
        warnings.warn(f"{refusal}; {fallback}", stacklevel=3)
        return getattr(reference, op)(*args, **settings)


def _has_kernel(op: str, backend: str) -> bool:
    return backend in kernel_files(op)
