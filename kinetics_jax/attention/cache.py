"""The KV cache on the device: per-layer page pools with their summaries, and the copy that a shared prefix needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int
from kinetics_kernels.reference import page_summary, set_summaries
from kinetics_kernels.summaries.registry import summary_kind

from kinetics_jax.attention.policies.base import AttentionPolicy, PolicyError
from kinetics_jax.attention.reads import Reads
from kinetics_jax.config import ModelConfig
from kinetics_jax.errors import spelled
from kinetics_jax.sharding.mesh import ROWS, constrained, kv_copies, pool_spec

# Of one layer: K, V and its summaries, None where its policy needs none.
KVPool = Float[Array, "kv_heads num_pages page_size head_dim"]
Pools = tuple[KVPool, KVPool, jax.Array | None]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PagedCache:
    """Per layer: K and V pools `[kv_heads, num_pages, page_size, head_dim]` and page summaries `[kv_heads, num_pages,
    head_dim]` (None for a layer whose policy needs none; `[kv_heads, num_pages, vectors, head_dim]` where their kind,
    `summary`, takes several vectors). A tuple of arrays, not one stacked array: a step then updates each pool in place.

    `carried` is what the policy carries for each sequence over layers and steps: arrays `[kv_heads, rows, …]` by name.
    `reads` is what the step under way has read so far, None where nobody counts (`counting`).

    On a `mesh`, each device of its tensor axis holds its own KV heads (`kv_copies` of each side by side, where there
    are fewer; `kv_heads` counts them all), and each shard of the sequences its own `num_pages / shards` pages, whose
    ids count from 0.
    """

    k: tuple[KVPool, ...]
    v: tuple[KVPool, ...]
    summaries: tuple[jax.Array | None, ...]
    carried: dict[str, jax.Array] = dataclasses.field(default_factory=dict)
    reads: Reads | None = None
    summary: str = dataclasses.field(default="mean", metadata={"static": True})
    kv_copies: int = dataclasses.field(default=1, metadata={"static": True})
    mesh: Mesh | None = dataclasses.field(default=None, metadata={"static": True})

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
        mesh: Mesh | None = None,
    ) -> PagedCache:
        """An empty cache of `num_pages` pages, those of all shards of a mesh; layers in `summary_layers` keep page
        summaries, in `dtype` too, of the kind `summary`.
        """
        copies = kv_copies(config.num_kv_heads, mesh)
        kv_heads = config.num_kv_heads * copies
        pool = (kv_heads, num_pages, page_size, config.head_dim)
        kept = (*pool[:2], *summary_kind(summary).axis, config.head_dim)
        layers, device = range(config.num_layers), NamedSharding(mesh, pool_spec()) if mesh else None
        return cls(
            k=tuple(jnp.zeros(pool, dtype, device=device) for _ in layers),
            v=tuple(jnp.zeros(pool, dtype, device=device) for _ in layers),
            summaries=tuple(
                jnp.zeros(kept, dtype, device=device) if layer in summary_layers else None for layer in layers
            ),
            summary=summary,
            kv_copies=copies,
            mesh=mesh,
        )

    def pools(self, layer: int) -> Pools:
        """K, V and summaries of one layer."""
        return self.k[layer], self.v[layer], self.summaries[layer]

    def with_layer(self, layer: int, k: KVPool, v: KVPool, summaries: jax.Array | None) -> PagedCache:
        """The cache with one layer's pools replaced."""

        def replaced(pools: tuple, pool: jax.Array | None) -> tuple:
            return (*pools[:layer], pool, *pools[layer + 1 :])

        return dataclasses.replace(
            self, k=replaced(self.k, k), v=replaced(self.v, v), summaries=replaced(self.summaries, summaries)
        )

    def copy_pages(self, source: Int[Array, " count"], target: Int[Array, " count"]) -> PagedCache:
        """Copies whole pages in every layer, K and V; pairs with a negative target are skipped.

        Only a prompt's last, partial page is ever copied, and a partial page has no summary. On a mesh each
        shard copies as many pairs, of its own pages.
        """

        def copied(pools: tuple[jax.Array, ...], source: jax.Array, target: jax.Array) -> tuple[jax.Array, ...]:
            def copy_pool(pool: jax.Array) -> jax.Array:
                destination = jnp.where(target >= 0, target, pool.shape[1])
                return pool.at[:, destination].set(pool.at[:, source].get(mode="clip"), mode="drop")

            return tuple(map(copy_pool, pools))

        rows = PartitionSpec(ROWS)
        whole = self.on_shards(copied, (rows, rows), pool_spec())((*self.k, *self.v), source, target)
        return dataclasses.replace(self, k=whole[: len(self.k)], v=whole[len(self.k) :])

    def with_new_rows(self, chosen: Bool[Array, " rows"]) -> PagedCache:
        """The cache with nothing carried yet in the chosen rows."""

        def emptied(array: jax.Array) -> jax.Array:
            return jnp.where(chosen.reshape(1, -1, *[1] * (array.ndim - 2)), jnp.zeros_like(array), array)

        return dataclasses.replace(self, carried={name: emptied(array) for name, array in self.carried.items()})

    def with_carried_of(self, other: PagedCache, chosen: Bool[Array, " rows"]) -> PagedCache:
        """The cache with what another one carries in the chosen rows."""

        def taken(array: jax.Array, theirs: jax.Array) -> jax.Array:
            return jnp.where(chosen.reshape(1, -1, *[1] * (array.ndim - 2)), theirs, array)

        carried = {name: taken(array, other.carried[name]) for name, array in self.carried.items()}
        return dataclasses.replace(self, carried=carried)

    def counting(self, rows: int) -> PagedCache:
        """The cache for one step of `rows` rows whose reads are counted."""
        reads = Reads.none(self.k[0].shape[0], rows)
        if self.mesh is not None:
            reads = jax.tree.map(lambda counts: constrained(counts, self.mesh, *pool_spec()), reads)
        return dataclasses.replace(self, reads=reads)

    def counted(self) -> tuple[PagedCache, Reads]:
        """The cache after that step, and what the step read."""
        assert self.reads is not None
        return dataclasses.replace(self, reads=None), self.reads

    def without_rows(self) -> PagedCache:
        """The pages alone: nothing that is carried for a row."""
        return dataclasses.replace(self, carried={})

    def on_shards(self, function: Callable, specs: tuple[PartitionSpec, ...], out: PartitionSpec) -> Callable:
        """`function(pools, *arguments)` on each device, on its own part; the function itself without a mesh.

        `specs` are those of the arguments, `out` that of the results.
        """
        if self.mesh is None:
            return function
        return jax.shard_map(function, mesh=self.mesh, in_specs=(pool_spec(), *specs), out_specs=out, check_vma=False)


def write_prompt(
    pools: Pools,
    k: Float[Array, "time kv_heads head_dim"],
    v: Float[Array, "time kv_heads head_dim"],
    pages: Int[Array, " prompt_pages"],
    length: Int[Array, ""],
    summary: str,
) -> Pools:
    """One layer's pools with one prompt's K and V stored; time = prompt_pages * page_size.

    `pages` holds physical ids, -1 for pages beyond the prompt (not written); `length` counts the prompt's tokens; the
    pools keep page summaries of the kind `summary`, or None. Pages that the prompt fills get their summary; the last,
    partial one holds padding beyond `length`.
    """
    k_pages, v_pages, summaries = pools
    kv_heads, num_pages, page_size, head_dim = k_pages.shape
    target = jnp.where(pages >= 0, pages, num_pages)  # out of range: dropped

    def paged(x: jax.Array, pool: jax.Array) -> jax.Array:
        return x.reshape(-1, page_size, kv_heads, head_dim).transpose(2, 0, 1, 3).astype(pool.dtype)

    keys = paged(k, k_pages)
    if summaries is not None:
        full = (jnp.arange(pages.shape[0]) + 1) * page_size <= length
        closed = jnp.where(full, target, num_pages)
        summaries = set_summaries(summaries, closed, page_summary(keys, summary), summary)
    return (
        k_pages.at[:, target].set(keys, mode="drop"),
        v_pages.at[:, target].set(paged(v, v_pages), mode="drop"),
        summaries,
    )


def summary_layers(policy: AttentionPolicy, num_layers: int) -> frozenset[int]:
    """The layers whose pages need summaries under a policy."""
    return frozenset(filter(policy.searches, range(num_layers)) if policy.cache_summary else ())


def empty_cache(
    policy: AttentionPolicy,
    config: ModelConfig,
    *,
    num_pages: int,
    dtype: DTypeLike,
    rows: int | None = None,
    mesh: Mesh | None = None,
) -> PagedCache:
    """A cache as a policy needs it: pages of its size, page summaries of its kind in sparse layers, and zeros for what
    it carries in each of `rows` sequences.

    On a mesh `num_pages` and `rows` are those of all shards of the sequences (`sharding.row_shards`). Raises ValueError
    if the policy carries something and `rows` is not given.
    """
    carried = _declared(policy, config.head_dim)
    if carried and rows is None:
        raise ValueError(f"{policy} carries something for each sequence: give empty_cache their number, rows")
    kv_heads = config.num_kv_heads * kv_copies(config.num_kv_heads, mesh)
    device = NamedSharding(mesh, pool_spec()) if mesh else None
    cache = PagedCache.create(
        config,
        num_pages=num_pages,
        page_size=policy.page_size,
        dtype=dtype,
        summary_layers=summary_layers(policy, config.num_layers),
        summary=policy.cache_summary or "mean",
        mesh=mesh,
    )
    zeros = {
        name: jnp.zeros((kv_heads, rows or 0, *shape), dtype, device=device) for name, (shape, dtype) in carried.items()
    }
    return dataclasses.replace(cache, carried=zeros)


def _declared(policy: AttentionPolicy, head_dim: int) -> dict[str, tuple[tuple[int, ...], jnp.dtype]]:
    """What a policy carries. Raises PolicyError for what declares no arrays."""
    declared = policy.carried(head_dim)
    try:
        return {name: (tuple(map(int, shape)), jnp.dtype(dtype)) for name, (shape, dtype) in declared.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise PolicyError(
            f"{policy}: carried(head_dim) must name arrays, each by its shape and dtype, as in "
            f'{{"age": ((head_dim,), "float32")}}, got {spelled(declared, 60)}'
        ) from error
