"""The `attend` function of a decode step: append the token, then attend as the policy says."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key
from kinetics_kernels.backends import Backend

from kinetics_jax.attention.cache import PagedCache, Pools
from kinetics_jax.attention.decode_step import DecodeOps, DecodeStep, described
from kinetics_jax.attention.heads import Heads, on_mesh
from kinetics_jax.attention.policies.base import AttentionPolicy, PolicyError
from kinetics_jax.attention.reads import Reads, Tally
from kinetics_jax.attention.shared_prefix import SharedPrefix, shared_prefix_decode
from kinetics_jax.models.qwen3 import Attend

Kept = tuple[Pools, dict[str, jax.Array], Reads | None]  # of one layer; what the policy carries; what the step read


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
            pools, carried, reads = kept
            pools = ops.append_kv(*pools, k[:, 0], v[:, 0], table, lengths, summary=cache.summary)
            k_pages, v_pages, summaries = pools
            tally = Tally(f"{policy}: in layer {layer}", table.shape[0], k_pages.shape[0], lengths)
            step = DecodeStep(
                policy=policy,
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
                tally=tally,
            )
            if not policy.is_dense(layer):
                out, carried = sparse_attention(policy, step)
            elif shared is not None:
                out = shared_prefix_decode(q[:, 0], k_pages, v_pages, lengths, shared, backend=backend)
                tally.add(tokens=lengths[:, None])
            else:
                out = step.attend_all()
            return out[:, None], (pools, carried, None if reads is None else reads.plus(tally, layer))

        rows = (page_table, lengths, *([keys] if policy.needs_keys else []))
        kept = cache.pools(layer), cache.carried, cache.reads
        out, (pools, carried, reads) = on_mesh(cache.mesh, body, q, k, v, kept, *rows)
        return out, dataclasses.replace(cache.with_layer(layer, *pools), carried=carried, reads=reads)

    return attend


def sparse_attention(policy: AttentionPolicy, step: DecodeStep) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What the policy returns for a step, `attend_and_carry`, after a look at it while it is traced.

    Raises PolicyError, naming the layer, for results of another shape or type than the step's, and for attention that
    nothing was counted for; what depends on data is blamed in `tally`.
    """
    where = step.tally.where
    try:
        found = policy.attend_and_carry(step)
    except Exception as error:  # of the policy's own code: its traceback says where
        error.add_note(f"{where} of {type(policy).__module__}.{type(policy).__qualname__}")
        raise
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[1], dict)):
        raise PolicyError(f"{where} attend_and_carry must return attention and what is carried, a dict")
    out, carried = found
    for what, value, like in [
        ("attention", out, step.queries),
        *((f"carried {name!r}", carried.get(name), array) for name, array in step.carried.items()),
    ]:
        if (given := described(value)) != (wanted := described(like)):
            raise PolicyError(f"{where} its {what} is {given}; it must be {wanted}")
    if len(carried) > len(step.carried):
        raise PolicyError(f"{where} it carries {sorted(carried)}, and its `carried` declares {sorted(step.carried)}")
    if not step.tally.tokens:
        raise PolicyError(
            f"{where} it attends without the step's ops; say what it reads: step.count(tokens=…, vectors=…)"
        )
    attended = functools.reduce(jnp.add, step.tally.tokens)
    step.tally.blame(7, attended == 0)
    if policy.budget:
        step.tally.blame(6, attended > policy.budget)
    return out, carried
