"""What a recording says of where it was made: revision, device and driver, versions, and what changes arithmetic."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import shutil
import subprocess
from typing import Any

import jax

ROOT = pathlib.Path(__file__).parents[3]
VERSIONED = ("jax", "jaxlib", "numpy", "libtpu", "jax-cuda12-plugin", "jax-cuda13-plugin", "kinetics_jax")
# Variables that change what XLA compiles, or how many threads run it.
VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "NVIDIA_TF32_OVERRIDE")


def circumstances() -> dict[str, Any]:
    """Of this process; what cannot be had is None."""
    versions: dict[str, str] = {"python": platform.python_version()}
    for name in VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0]
    return {
        "revision": revision(),
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "machine": platform.machine(),
            "count": jax.device_count(),
            "driver": driver(device),
        },
        "versions": versions,
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "matmul_precision": jax.config.jax_default_matmul_precision or "default",  # type: ignore[attr-defined]
        "threads": {"usable": usable_cpus(), "of": os.cpu_count()},
    }


def revision() -> str:
    """`git <commit>` of the checkout, `, changed` where its kernels or package are not those of it; else a version."""
    git = ("git", "-C", str(ROOT))
    commit = _output(*git, "rev-parse", "HEAD") if (ROOT / ".git").exists() else None
    if commit is not None:
        changed = _output(*git, "status", "--porcelain", "--", "kernels", "kinetics_jax", "experiments")
        return f"git {commit}{', changed' if changed else ''}"
    try:
        return f"kinetics_jax {importlib.metadata.version('kinetics_jax')}"
    except importlib.metadata.PackageNotFoundError:
        return "no checkout, and kinetics_jax is not installed"


def driver(device: Any) -> str | None:
    """The runtime that jax drives the device by, and of NVIDIA GPUs the driver; None on a CPU."""
    if device.platform == "cpu":
        return None
    named = [str(device.client.platform_version).strip().replace("\n", ", ")]
    if device.platform == "gpu" and shutil.which("nvidia-smi"):
        found = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        named += [f"NVIDIA driver {found.splitlines()[0]}"] if found else []
    return ", ".join(named)


def usable_cpus() -> int | None:
    """The CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.TimeoutExpired):  # not installed, or it hangs
        return None
    return done.stdout.strip() if done.returncode == 0 else None
