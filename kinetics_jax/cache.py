"""The KV cache on the device: per-layer page pools with their summaries, and the copy that a shared prefix needs."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Int
from kinetics_kernels.reference import SUMMARY_VECTORS, page_summary, set_summaries

from kinetics_jax.config import ModelConfig


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PagedCache:
    """Per layer: K and V pools `[kv_heads, num_pages, page_size, head_dim]` and summaries `[kv_heads, num_pages,
    head_dim]` (None for a layer whose policy needs none; `[kv_heads, num_pages, 2, head_dim]` where their kind,
    `summary`, takes two vectors). A tuple of arrays, not one stacked array: a step then updates each pool in place.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    summaries: tuple[jax.Array | None, ...]
    summary: str = dataclasses.field(default="mean", metadata={"static": True})

    @classmethod
    def create(
        cls,
        config: ModelConfig,
        *,
        num_pages: int,
        page_size: int,
        dtype: DTypeLike,
        summary_layers: frozenset[int] = frozenset(),
        summary: str = "mean",
    ) -> PagedCache:
        """An empty cache of `num_pages` pages; layers in `summary_layers` keep page summaries, in `dtype` too, of the
        kind `summary`.
        """
        pool = (config.num_kv_heads, num_pages, page_size, config.head_dim)
        kept = (*pool[:2], *([2] if SUMMARY_VECTORS[summary] == 2 else []), config.head_dim)
        layers = range(config.num_layers)
        return cls(
            k=tuple(jnp.zeros(pool, dtype) for _ in layers),
            v=tuple(jnp.zeros(pool, dtype) for _ in layers),
            summaries=tuple(jnp.zeros(kept, dtype) if layer in summary_layers else None for layer in layers),
            summary=summary,
        )

    def with_layer(self, layer: int, k: jax.Array, v: jax.Array, summaries: jax.Array | None) -> PagedCache:
        """The cache with one layer's pools replaced."""

        def replaced(pools: tuple, pool: jax.Array | None) -> tuple:
            return (*pools[:layer], pool, *pools[layer + 1 :])

        return dataclasses.replace(
            self, k=replaced(self.k, k), v=replaced(self.v, v), summaries=replaced(self.summaries, summaries)
        )

    def write_prompt(
        self, layer: int, k: jax.Array, v: jax.Array, pages: Int[Array, " prompt_pages"], length: jax.Array
    ) -> PagedCache:
        """Stores one prompt's K and V, `[time, kv_heads, head_dim]` with time = prompt_pages * page_size.

        `pages` holds physical ids, -1 for pages beyond the prompt (not written); `length` counts the prompt's tokens.
        Pages that the prompt fills get their summary; the last, partial one holds padding beyond `length`.
        """
        kv_heads, num_pages, page_size, head_dim = self.k[layer].shape
        target = jnp.where(pages >= 0, pages, num_pages)  # out of range: dropped

        def paged(x: jax.Array, pool: jax.Array) -> jax.Array:
            return x.reshape(-1, page_size, kv_heads, head_dim).transpose(2, 0, 1, 3).astype(pool.dtype)

        keys = paged(k, self.k[layer])
        summaries = self.summaries[layer]
        if summaries is not None:
            full = (jnp.arange(pages.shape[0]) + 1) * page_size <= length
            closed = jnp.where(full, target, num_pages)
            summaries = set_summaries(summaries, closed, page_summary(keys, self.summary), self.summary)
        return self.with_layer(
            layer,
            self.k[layer].at[:, target].set(keys, mode="drop"),
            self.v[layer].at[:, target].set(paged(v, self.v[layer]), mode="drop"),
            summaries,
        )

    def copy_pages(self, source: Int[Array, " count"], target: Int[Array, " count"]) -> PagedCache:
        """Copies whole pages in every layer, K and V; pairs with a negative target are left out.

        Only a prompt's last, partial page is ever copied, and a partial page has no summary.
        """

        def copied(pool: jax.Array) -> jax.Array:
            goal = jnp.where(target >= 0, target, pool.shape[1])
            return pool.at[:, goal].set(pool.at[:, source].get(mode="clip"), mode="drop")

        return dataclasses.replace(self, k=tuple(map(copied, self.k)), v=tuple(map(copied, self.v)))
