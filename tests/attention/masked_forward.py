"""A float64 forward without cache, pages or tiles that masks what a policy does not choose: the oracle of decoding.

What each policy chooses is written once more in its test, one position, one KV head and one token at a time.
"""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import kinetics_jax as kj
from kinetics_jax.attention.policies.base import AttentionPolicy

SHAPES = 32  # tokens
RANDOM_BLOCKS = 0x52424C4B  # part of what fixes a sample's draws: not taken from the package


def attended(policy: AttentionPolicy, query: np.ndarray, keys: np.ndarray, draw) -> set[int]:
    """Positions that one KV head attends to: `query [group, head_dim]`, `keys [length, head_dim]`, float64.

    `draw(page)` is the random number of a page. The rule is the one in the policy's own test, policies/test_<kind>.py.
    """
    return importlib.import_module(f"test_{policy.kind}").attended(policy, query, keys, draw)


def log_weights(policy: AttentionPolicy, query: np.ndarray, keys: np.ndarray, draw) -> dict[int, float]:
    """What a policy adds to the logits of positions: none, where its own test has no rule for it."""
    module = importlib.import_module(f"test_{policy.kind}")
    return module.log_weights(policy, query, keys, draw) if hasattr(module, "log_weights") else {}


def chosen_in(policy: AttentionPolicy, layer: int) -> int:
    """The layer whose choice a sparse layer attends to: itself, where the policy's own test has no rule for it."""
    module = importlib.import_module(f"test_{policy.kind}")
    return module.chosen_in(policy, layer) if hasattr(module, "chosen_in") else layer


def masked_logits(
    lm: kj.LanguageModel, tokens: list[int], prompt: int, policy: AttentionPolicy | None, key: jax.Array | None = None
) -> np.ndarray:
    """Logits `[time, vocab]` of a forward without cache or tiles, dense in the prompt and sparse behind it.

    `key` is the sample's: a position draws its random pages with that of the token it is about to give. Texts are
    padded to whole SHAPES behind their end, which no earlier position sees: operations are compiled once for each.
    """
    end = len(tokens)
    tokens = [*tokens, *[0] * (-end % SHAPES)]

    def draws(layer: int, position: int, head: int):
        def draw(page: int) -> float:
            assert key is not None
            token_key = jax.random.fold_in(key, position - prompt + 1)
            folded = jax.random.fold_in(jax.random.fold_in(token_key, RANDOM_BLOCKS), layer)
            return float(jax.random.uniform(jax.random.fold_in(jax.random.fold_in(folded, head), page)))

        return draw

    choices: dict[tuple[int, int, int], set[int]] = {}  # by layer, position and KV head

    def attend(layer, q, k, v, state):
        q64, k64, v64 = (np.asarray(x[0], np.float64) for x in (q, k, v))
        time, kv_heads = k64.shape[:2]
        group = q64.shape[1] // kv_heads
        mask = np.broadcast_to(np.tri(time, dtype=bool), (kv_heads, time, time)).copy()
        more = np.zeros((kv_heads, time, time))
        if policy and not policy.is_dense(layer):
            for position in range(prompt, end):
                for head in range(kv_heads):
                    query = q64[position, head * group : (head + 1) * group]
                    draw = draws(layer, position, head)
                    seen = query, k64[: position + 1, head], draw
                    if (source := chosen_in(policy, layer)) == layer:
                        choices[layer, position, head] = attended(policy, *seen)
                        for other, weight in log_weights(policy, *seen).items():
                            more[head, position, other] = weight
                    kept = choices[source, position, head]
                    assert not policy.budget or len(kept) <= policy.budget
                    mask[head, position] = np.isin(np.arange(time), sorted(kept))
        keys, values, mask, more = (np.repeat(x, group, a) for x, a in ((k64, 1), (v64, 1), (mask, 0), (more, 0)))
        scores = np.where(mask, np.einsum("qhd,khd->hqk", q64, keys) * q64.shape[-1] ** -0.5 + more, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        out = np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), values)
        return jnp.asarray(out[None], q.dtype), state

    model = nnx.merge(lm.graph, lm.weights)
    return np.asarray(model.logits(model(jnp.asarray([tokens]), jnp.arange(len(tokens))[None], attend)[0]))[0, :end]
