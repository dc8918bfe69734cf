"""How much memory a device has for the KV pool."""

from __future__ import annotations

import os

import jax
from jax.sharding import Mesh

SMALLER_POOL = "lower slots, max_tokens or num_pages"


def device_memory(mesh: Mesh | None = None) -> tuple[int, int] | None:
    """Bytes of memory of the default device, all of it and what a KV pool may take; None where it does not tell.

    A pool gets nine tenths of what an accelerator has left, half of a host's memory. On a mesh, of one of its devices.
    """
    device = jax.devices()[0] if mesh is None else mesh.devices.flat[0]
    if device.platform == "cpu":
        if not hasattr(os, "sysconf"):
            return None
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // (mesh.size if mesh else 1)
        return memory, memory // 2
    stats = device.memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return stats["bytes_limit"], (stats["bytes_limit"] - stats.get("bytes_in_use", 0)) * 9 // 10
