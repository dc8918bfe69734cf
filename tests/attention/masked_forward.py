"""A float64 forward without cache, pages or tiles that masks what a policy does not choose: the oracle of decoding.

What each policy chooses is written here once more, one position, one KV head and one token at a time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import kinetics_jax as kj
from kinetics_jax.attention.policies.base import AttentionPolicy

RANDOM_BLOCKS = 0x52424C4B  # part of what fixes a sample's draws: not taken from the package


def attended(policy: AttentionPolicy, query: np.ndarray, keys: np.ndarray, draw) -> set[int]:
    """Positions that one KV head attends to: `query [group, head_dim]`, `keys [length, head_dim]`, float64.

    `draw(page)` is the random number of a page.
    """
    length, mean = len(keys), query.mean(axis=0)
    if isinstance(policy, kj.Dense):
        return set(range(length))
    if isinstance(policy, kj.TokenTopK):
        best = sorted(range(length - 1), key=lambda p: (-float(mean @ keys[p]), p))
        return {length - 1, *best[: policy.budget - 1]}
    if isinstance(policy, kj.SlidingWindow):
        window = policy.budget - policy.sink_tokens
        return {p for p in range(length) if p < policy.sink_tokens or p >= length - window}
    if isinstance(policy, kj.LiteSysBlockTopK):
        return litesys(policy, mean, keys)
    count = -(-length // policy.page_size)
    pages = [keys[p * policy.page_size : (p + 1) * policy.page_size] for p in range(count)]
    chosen = set(range(count))
    if count > policy.pages:
        forced = {*range(policy.sink_pages), *range(count - policy.recent_pages, count)}
        if isinstance(policy, kj.RandomBlocks):
            score = {page: draw(page) for page in range(count)}
        else:
            score = {page: score_of(policy.summary, mean, pages[page]) for page in range(count)}
        rest = sorted(chosen - forced, key=lambda page: (-score[page], page))
        chosen = forced | set(rest[: policy.pages - len(forced)])
    return {p for p in range(length) if p // policy.page_size in chosen}


def score_of(summary: str, query: np.ndarray, keys: np.ndarray) -> float:
    """A whole page's score from its keys."""
    if summary == "mean":
        return float((keys @ query).mean())
    if summary == "min_max":
        return float(np.maximum(query * keys.min(axis=0), query * keys.max(axis=0)).sum())
    scaled = query * len(query) ** -0.5
    return float((keys @ scaled).mean() + 0.5 * (scaled**2 * keys.var(axis=0)).sum())


def litesys(policy: kj.LiteSysBlockTopK, query: np.ndarray, keys: np.ndarray) -> set[int]:
    """The published rule: blocks follow the four sinks and end before the window."""
    length, size = len(keys), policy.page_size
    if length <= -(-(4 + policy.local + policy.pages * size) // size) * size:
        return set(range(length))
    starts = range(4, length - policy.local - size + 1, size)
    best = sorted(starts, key=lambda start: (-float((keys[start : start + size] @ query).mean()), start))
    return set(range(length)) - {p for start in best[policy.pages :] for p in range(start, start + size)}


def masked_logits(
    lm: kj.LanguageModel, tokens: list[int], prompt: int, policy: AttentionPolicy | None, key: jax.Array | None = None
) -> np.ndarray:
    """Logits `[time, vocab]` of a forward without cache or tiles, dense in the prompt and sparse behind it.

    `key` is the sample's: a position draws its random pages with that of the token it is about to give.
    """

    def draws(layer: int, position: int, head: int):
        def draw(page: int) -> float:
            assert key is not None
            token_key = jax.random.fold_in(key, position - prompt + 1)
            folded = jax.random.fold_in(jax.random.fold_in(token_key, RANDOM_BLOCKS), layer)
            return float(jax.random.uniform(jax.random.fold_in(jax.random.fold_in(folded, head), page)))

        return draw

    def attend(layer, q, k, v, state):
        q64, k64, v64 = (np.asarray(x[0], np.float64) for x in (q, k, v))
        time, kv_heads = k64.shape[:2]
        group = q64.shape[1] // kv_heads
        mask = np.broadcast_to(np.tri(time, dtype=bool), (kv_heads, time, time)).copy()
        if policy and layer not in getattr(policy, "dense_layers", ()):
            for position in range(prompt, time):
                for head in range(kv_heads):
                    query = q64[position, head * group : (head + 1) * group]
                    draw = draws(layer, position, head)
                    kept = attended(policy, query, k64[: position + 1, head], draw)
                    if not isinstance(policy, kj.Dense | kj.LiteSysBlockTopK):
                        assert len(kept) <= policy.budget
                    mask[head, position] = np.isin(np.arange(time), sorted(kept))
        keys, values, mask = (np.repeat(x, group, axis) for x, axis in ((k64, 1), (v64, 1), (mask, 0)))
        scores = np.where(mask, np.einsum("qhd,khd->hqk", q64, keys) * q64.shape[-1] ** -0.5, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), values)
        return jnp.asarray(out[None], q.dtype), state

    model = nnx.merge(lm.graph, lm.weights)
    return np.asarray(model.logits(model(jnp.asarray([tokens]), jnp.arange(len(tokens))[None], attend)[0]))[0]
