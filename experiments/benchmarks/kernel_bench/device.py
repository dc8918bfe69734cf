"""Facts of the device: kind, versions, bandwidths, launch overhead."""

from __future__ import annotations

import functools
import importlib.metadata
import shutil
import subprocess
import sys
from typing import Any

import jax

from kernel_bench.runner import Case
from kernel_bench.timing import bandwidths, launch_overhead


def cases(num_bytes: int) -> list[Case]:
    """The cases of the device section: facts, bandwidths over arrays of `num_bytes`, launch overhead."""
    return [
        Case("facts", lambda: {"status": "ok", **facts()}),
        Case("bandwidth", functools.partial(_bandwidth, num_bytes)),
        Case("launch", lambda: {"status": "ok", **launch_overhead()}),
    ]


def _bandwidth(num_bytes: int) -> dict:
    return {"status": "ok", "array_bytes": num_bytes, **bandwidths(num_bytes)}


def facts() -> dict:
    """The device's kind, memory and driver, and the versions that made the programs."""
    device = jax.devices()[0]
    return {
        "kind": device.device_kind,
        "platform": device.platform,
        "platform_version": device.client.platform_version,
        "memory_bytes": memory_bytes(device),
        "python": sys.version.split()[0],
        "versions": {
            name: _version(name) for name in ("jax", "jaxlib", "jax-cuda13-plugin", "libtpu", "numpy", "torch")
        },
        "nvidia_smi": _nvidia_smi(),
    }


def memory_bytes(device: Any) -> int | None:
    """Bytes that the allocator may give; None if the platform does not report them."""
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def healthy() -> bool:
    """Whether the device still computes: after a fault in a kernel a CUDA process does not."""
    try:
        return float(jax.jit(lambda x: x + 1)(1.0)) == 2.0
    except Exception:  # whatever the error, it does not compute
        return False


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    fields = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return (answer.stdout or answer.stderr).strip()
