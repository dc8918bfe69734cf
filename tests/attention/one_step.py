"""A decode step of one sequence in many rows, without a model: what a policy is given."""

import jax.numpy as jnp
import numpy as np
from kinetics_kernels.reference import page_summary

from kinetics_jax.attention.decode_step import DecodeOps, DecodeStep
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.reads import Tally

LENGTH, SIZE, KV_HEADS, GROUP, HEAD_DIM = 58, 4, 2, 2, 8
PAGES = -(-LENGTH // SIZE)
RNG = np.random.default_rng(0)
QUERIES = 1.5 * RNG.standard_normal((KV_HEADS * GROUP, HEAD_DIM))
KEYS, VALUES = RNG.standard_normal((2, KV_HEADS, PAGES * SIZE, HEAD_DIM))


def step_of(policy: AttentionPolicy, keys=None, *, rows: int = 1, layer: int = 0, size: int = SIZE) -> DecodeStep:
    """`rows` equal rows of LENGTH tokens in pages of `size`; `keys` are their random ones."""
    count = -(-LENGTH // size)
    padding = ((0, 0), (0, max(count * size - PAGES * SIZE, 0)), (0, 0))
    padded = [np.pad(x, padding)[:, : count * size] for x in (KEYS, VALUES)]
    pages = [jnp.asarray(x.reshape(KV_HEADS, count, size, HEAD_DIM), jnp.float32) for x in padded]
    summary = policy.cache_summary
    queries = jnp.broadcast_to(jnp.asarray(QUERIES, jnp.float32), (rows, *QUERIES.shape))
    lengths = jnp.full(rows, LENGTH, jnp.int32)
    return DecodeStep(
        policy=policy,
        layer=layer,
        queries=queries,
        group_queries=queries,
        k_pages=pages[0],
        v_pages=pages[1],
        summaries=page_summary(pages[0], summary) if summary else None,
        summary=summary or "mean",
        page_table=jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (rows, count)),
        lengths=lengths,
        keys=keys,
        carried={name: jnp.zeros((KV_HEADS, rows, *s), d) for name, (s, d) in policy.carried(HEAD_DIM).items()},
        first_kv_head=0,
        first_in_group=0,
        ops=DecodeOps.on(None),
        tally=Tally(str(policy), rows, KV_HEADS, lengths),
    )


def dense() -> tuple[np.ndarray, np.ndarray]:
    """Σ exp(logit) v `[heads, head_dim]` and Σ exp(logit) `[heads]` over all tokens, float64."""
    keys, values = (np.repeat(x[:, :LENGTH], GROUP, axis=0) for x in (KEYS, VALUES))
    weights = np.exp(np.einsum("hd,htd->ht", QUERIES, keys) * HEAD_DIM**-0.5)
    return np.einsum("ht,htd->hd", weights, values), weights.sum(axis=1)
