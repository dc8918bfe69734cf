"""The `attend` function of a decode step: append the token, then attend as the policy says."""

from __future__ import annotations

import dataclasses

import jax
from jaxtyping import Array, Int, Key
from kinetics_kernels.backends import Backend

from kinetics_jax.attention.cache import PagedCache, Pools
from kinetics_jax.attention.decode_step import DecodeOps, DecodeStep
from kinetics_jax.attention.heads import Heads, on_mesh
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.shared_prefix import SharedPrefix, shared_prefix_decode
from kinetics_jax.models.qwen3 import Attend

Kept = tuple[Pools, dict[str, jax.Array]]  # of one layer, and what the policy carries


def decode_attend(
    policy: AttentionPolicy,
    page_table: Int[Array, "batch max_pages"],
    lengths: Int[Array, " batch"],
    keys: Key[Array, " batch"] | None = None,
    *,
    shared: SharedPrefix | None = None,
    backend: Backend | None = None,
) -> Attend:
    """One decode step (time 1): append the token to the cache, then attend as the policy says.

    `lengths` counts the new token; rows of length 0 are idle. `keys` holds the key of the token that each row is about
    to draw, `fold_in(sample's key, output position)`, for a policy that `needs_keys`. `shared` has dense layers read
    the pages that rows share once, on one device. `backend` forces the kernels' (None: what suits the device); rules
    over tokens run on the reference path whatever it says. Raises ValueError if `keys` is missing, if the cache was
    made for another policy, or if it lies on a mesh and `shared` is given; NotImplementedError for what the backend
    cannot do.
    """
    if policy.needs_keys and keys is None:
        raise ValueError(f"{policy} draws at random: give decode_attend the keys of its rows")
    ops = DecodeOps.on(backend)

    def attend(layer: int, q: jax.Array, k: jax.Array, v: jax.Array, cache: PagedCache):
        if shared is not None and cache.mesh is not None:
            raise ValueError("shared prefixes are for one device: the cache lies on a mesh")

        def body(heads: Heads, q: jax.Array, k: jax.Array, v: jax.Array, kept: Kept, table, lengths, keys=None):
            pools, carried = kept
            pools = ops.append_kv(*pools, k[:, 0], v[:, 0], table, lengths, summary=cache.summary)
            k_pages, v_pages, summaries = pools
            step = DecodeStep(
                layer=layer,
                queries=q[:, 0],
                group_queries=heads.group_queries[:, 0],
                k_pages=k_pages,
                v_pages=v_pages,
                summaries=summaries,
                summary=cache.summary,
                page_table=table,
                lengths=lengths,
                keys=keys,
                carried=carried,
                first_kv_head=heads.first,
                first_in_group=heads.within,
                ops=ops,
            )
            if not policy.is_dense(layer):
                out, carried = policy.attend_and_carry(step)
            elif shared is not None:
                out = shared_prefix_decode(q[:, 0], k_pages, v_pages, lengths, shared, backend=backend)
            else:
                out = step.attend_all()
            return out[:, None], (pools, carried)

        rows = (page_table, lengths, *([keys] if policy.needs_keys else []))
        kept = cache.pools(layer), cache.carried
        out, (pools, carried) = on_mesh(cache.mesh, body, q, k, v, kept, *rows)
        return out, dataclasses.replace(cache.with_layer(layer, *pools), carried=carried)

    return attend
