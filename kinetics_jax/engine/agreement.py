"""How far a policy and dense attention agree on the tokens of samples, from both next-token distributions.

A sample's tokens are given to the model once more, twice side by side: one by one under the policy, over the cache
that the policy's own steps filled, which are the numbers that the sample was drawn by; and several at once under dense
attention, over a cache of the dense model's own K and V of the same tokens. So what is compared is the policy against
the dense model on the same token prefix, not against dense attention over K and V that sparse steps made.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Int32, Key
from kinetics_kernels.backends import Backend

from kinetics_jax.attention.cache import PagedCache, empty_cache
from kinetics_jax.attention.decode import decode_attend
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.verify import Beside, store_tokens, verify_attend
from kinetics_jax.config import ModelConfig
from kinetics_jax.engine.replay import STEPS, Drawn, Part, Rows, check_steps, step_fault

ROWS = 8  # samples compared side by side


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Of each drawn token, in order: its log-probability under the policy (`logprobs`) and under the dense model
    (`dense_logprobs`), natural logarithms; how much of the two next-token distributions is the same (`overlap`); and
    whether their most likely tokens are one (`top1`).

    Distributions are the model's own: temperature 1, no filter. `overlap` is Σ_v min(p_v, q_v) = 1 - ½ Σ_v |p_v - q_v|,
    in 0 … 1: one less half the L1 distance, and the probability with which speculative sampling accepts a token of one
    for the other (Leviathan et al., arXiv 2211.17192). Its 5th percentile is the figure that Sparrow (arXiv 2606.08446)
    found to predict whether training on sparse samples is stable: from 0.86 up, for Qwen3 of 1.7B to 14B. The first
    token follows the prompt, which every policy reads densely: its overlap is 1 but for rounding.
    """

    logprobs: np.ndarray
    dense_logprobs: np.ndarray
    overlap: np.ndarray
    top1: np.ndarray

    @property
    def ratios(self) -> np.ndarray:
        """p_dense / p_policy of each drawn token: its importance weight."""
        return np.exp(self.dense_logprobs - self.logprobs)

    @classmethod
    def joined(cls, several: Sequence[Agreement]) -> Agreement:
        """The tokens of several samples as those of one: percentiles are of tokens, not of samples."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: np.concatenate([getattr(each, name) for each in several]) for name in names})

    def summary(self) -> dict[str, float]:
        """`agreement` is the mean overlap of the tokens, `agreement_p5` its 5th percentile (linear between tokens),
        `top1` the share of tokens whose most likely ones are the same, `ratio` the mean importance weight. Empty for
        no token.
        """
        if not len(self.overlap):
            return {}
        return {
            "agreement": float(self.overlap.mean()),
            "agreement_p5": float(np.percentile(self.overlap, 5)),
            "top1": float(self.top1.mean()),
            "ratio": float(self.ratios.mean()),
        }


def agreements(
    graph: nnx.GraphDef,
    weights: nnx.State,
    config: ModelConfig,
    samples: Sequence[Drawn],
    *,
    policy: AttentionPolicy,
    seed: int = 0,
    cache_dtype: DTypeLike = jnp.float32,
    backend: Backend | None = None,
    rows: int = ROWS,
) -> Iterator[Agreement]:
    """Yields the agreement of `policy` with dense attention on each sample, in order; `rows` at a time, on one device.

    Random policies draw with the sample's key, as when it was drawn. Memory is that of two caches of `rows` samples
    and of the logits of STEPS tokens each. Raises PolicyError for a policy that chooses what it may not.
    """
    longest = max((len(each.prompt) + len(each.tokens) for each in samples), default=0)  # one shape for all
    for first in range(0, len(samples), rows):
        group = samples[first : first + rows]
        side_by_side = Rows(group, rows=rows, page_size=policy.page_size, seed=seed, longest=longest)
        made: Any = {"num_pages": side_by_side.num_pages, "dtype": cache_dtype}
        sparse = empty_cache(policy, config, rows=rows, **made)
        dense = PagedCache.create(config, page_size=policy.page_size, **made)
        found: list[list[np.ndarray]] = []
        for row, sample in enumerate(group):
            sparse, _ = side_by_side.prefill(graph, weights, sparse, row)
            dense, logits = side_by_side.prefill(graph, weights, dense, row)
            found.append([jax.device_get(_compared(logits, logits, jnp.array([*sample.tokens[:1], 0][:1], jnp.int32)))])
        table = jnp.asarray(side_by_side.table)
        for start in range(0, side_by_side.steps, STEPS):
            part = side_by_side.part(start)
            sparse, dense, compared, faults = compare_chunk(
                graph, weights, sparse, dense, part, table, side_by_side.keys, policy=policy, backend=backend
            )
            compared, faults, counts = jax.device_get((compared, faults, part.count))
            check_steps(policy, faults, first)
            for row, count in enumerate(counts[: len(group)]):
                found[row].append(compared[row, :count])
        for sample, pieces in zip(group, found, strict=True):
            columns = np.concatenate(pieces)[: len(sample.tokens)].astype(np.float64).T
            yield Agreement(columns[0], columns[1], columns[2], columns[3] > 0)


@functools.partial(jax.jit, static_argnames=("graph", "policy", "backend"), donate_argnames=("sparse", "dense"))
def compare_chunk(
    graph: nnx.GraphDef,
    weights: nnx.State,
    sparse: PagedCache,
    dense: PagedCache,
    part: Part,
    page_table: Int[Array, "rows max_pages"],
    keys: Key[Array, " rows"],
    *,
    policy: AttentionPolicy,
    backend: Backend | None = None,
) -> tuple[PagedCache, PagedCache, Float[Array, "rows steps 4"], Int32[Array, "steps rows"]]:
    """Both models on the next tokens of every row. Returns the caches with these tokens, and for each `_compared` and
    the policy's fault (`replay.step_fault`).
    """
    model = nnx.merge(graph, weights)
    steps = part.tokens.shape[1]
    active = part.count > 0
    stored = jnp.where(active, part.stored, 0)
    positions = stored[:, None] + jnp.arange(steps, dtype=jnp.int32)[None]
    beside = Beside(dense)
    hidden, beside = model(part.tokens, positions, verify_attend(page_table, stored, backend=backend), beside)
    dense = store_tokens(beside, page_table, stored, part.count, backend=backend)
    dense_logits = model.logits(hidden)

    def step(cache: PagedCache, place: jax.Array) -> tuple[PagedCache, tuple[jax.Array, jax.Array]]:
        lengths = jnp.where(place < part.count, part.stored + place + 1, 0)
        step_keys = jax.vmap(jax.random.fold_in)(keys, part.produced + place)
        attend = decode_attend(policy, page_table, lengths, step_keys, backend=backend)
        counting = cache.counting(stored.shape[0])
        hidden, cache = model(part.tokens[:, place, None], (part.stored + place)[:, None], attend, counting)
        cache, reads = cache.counted()
        logits = model.logits(hidden[:, 0])
        compared = _compared(logits, dense_logits[:, place], part.following[:, place])
        return cache, (compared, step_fault(reads, logits))

    sparse, (compared, faults) = jax.lax.scan(step, sparse, jnp.arange(steps, dtype=jnp.int32))
    return sparse, dense, jnp.swapaxes(compared, 0, 1), faults


@jax.jit
def _compared(
    logits: Float[Array, "rows vocab"], dense: Float[Array, "rows vocab"], drawn: Int[Array, " rows"]
) -> Float[Array, "rows 4"]:
    """Log-probabilities of the drawn tokens under both, the distributions' overlap, and 1 where their best agree."""
    ours, theirs = jax.nn.log_softmax(logits), jax.nn.log_softmax(dense)

    def of_drawn(logprobs: jax.Array) -> jax.Array:
        return jnp.take_along_axis(logprobs, drawn[:, None], axis=-1)[:, 0]

    overlap = jnp.sum(jnp.exp(jnp.minimum(ours, theirs)), axis=-1)
    same: Bool[Array, " rows"] = jnp.argmax(ours, axis=-1) == jnp.argmax(theirs, axis=-1)
    return jnp.stack([of_drawn(ours), of_drawn(theirs), overlap, same.astype(jnp.float32)], axis=-1)
