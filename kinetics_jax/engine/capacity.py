"""How many pages a KV pool needs, and how many the device's memory holds."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from kinetics_jax.config import ModelConfig
from kinetics_jax.padding import pages_for, pool_pages, whole_runs
from kinetics_jax.settings import EngineSettings
from kinetics_jax.sharding.mesh import kv_copies, row_shards

SMALLER_POOL = "lower slots, max_tokens or num_pages"


def device_memory(mesh: Mesh | None = None) -> tuple[int, int] | None:
    """Bytes of memory of the default device: all of it, and what a KV pool may take; None where it reports neither.

    A pool may take nine tenths of an accelerator's free memory, half of a host's memory. On a mesh: of one of its
    devices.
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


def bytes_per_page(config: ModelConfig, *, page_size: int, dtype: DTypeLike, mesh: Mesh | None = None) -> int:
    """Bytes of a page's K and V in all layers, on one device; page summaries are not counted."""
    elements = page_size * config.kv_elements_per_token
    if mesh is not None:
        elements = elements * kv_copies(config.num_kv_heads, mesh) // mesh.shape["tensor"]
    return elements * jnp.dtype(dtype).itemsize


def worst_case(tokens: int, page_size: int) -> int:
    """Pages that a sequence of at most `tokens` tokens can need, with its prompt's own partial page beside them."""
    return pages_for(tokens, page_size) + 1


def pool_size(
    settings: EngineSettings, *, tokens: int, page_size: int, page_bytes: int, mesh: Mesh | None = None
) -> tuple[int, int]:
    """The page table's width for sequences of at most `tokens` tokens, and the pages in the pool, those of all shards.

    The pool has `settings.num_pages`, else every slot's worst case, or as much of that as the device's memory holds,
    one sequence's at least. `page_bytes` are a page's on one device.
    """
    shards = row_shards(mesh)
    width, enough = pool_pages(tokens, page_size, settings.slots // shards)
    if settings.num_pages is not None:
        return width, settings.num_pages // shards * shards
    if memory := device_memory(mesh):
        enough = min(enough, whole_runs(max(memory[1] // page_bytes, worst_case(tokens, page_size))))
    return width, enough * shards


def describe_pool(num_pages: int, *, page_size: int, page_bytes: int, mesh: Mesh | None = None) -> str:
    """A sentence's beginning, for errors: how much memory a pool of so many pages, those of all shards, needs."""
    gigabytes = num_pages // row_shards(mesh) * page_bytes / 1e9
    where = " on each device" if mesh is not None else ""
    return f"the KV pool of {num_pages} pages of {page_size} tokens needs {gigabytes:,.1f} GB{where}"
