"""Parameters of the ledger family before training: each begins with the two habits that the tasks need.

Layer 0 looks back: of every kind of token its first two heads attend to the two earlier tokens of the page, or of the
line before, that say how to go on. Layer 1 compares names: it attends to where the same rule's name was looked back to,
and a name to operations, an operation to next states. Left to itself such retrieval is learned late or never. All
else, the arithmetic and the counting above all, begins at random.
"""

from __future__ import annotations

import numpy as np

from kinetics_jax.config import ModelConfig
from kinetics_jax.tasks import ledger
from training.decoder import random_arrays

FAST, SLOW = 4, 7  # rotary pairs: the fastest tell near places apart, the slowest hardly turn within a sequence
GAIN = 2.0  # of the norms of q and k: how sharp attention begins
WRITE = 1.5  # of a look-up's output, relative to a token's embedding
NOISE = 0.1
KINDS: tuple[str, ...] = ("#", ".", "rule", "operation", "next", "value", ";")
# How far back layer 0's two heads look from each kind of token; from a value, whichever of the line's two it is.
LOOK_BACK = (
    {"#": 7, ".": 5, "rule": 0, "operation": 1, "next": 2, "value": 2, ";": 7},
    {"#": 7, ".": 3, "rule": 0, "operation": 1, "next": 6, "value": 1, ";": 6},
)


def parts_of(token: str) -> list[str]:
    """What a token's embedding is the sum of: something common to all, its kind, and what it names. Even values and
    branches a share a part, and so do odd ones and branches b.
    """
    if token == ledger.STOP:
        return ["all", ";"]
    if token[0] in "#.":
        return ["all", token[0], token]
    if token[0] == ":":
        return ["all", ".", f".{token[1:]}", ":"]
    if token[0] == ">":
        return ["all", "next", token[1:]]
    if token[0] in "+*":
        return ["all", "operation", token]
    if token.isdigit():
        return ["all", "value", token, ledger.BRANCHES[int(token) % 2]]
    if token[0] == "s" and token[-1] in ledger.BRANCHES:
        return ["all", "rule", token[:-1], token[-1]]
    return ["all", token]


def initial(config: ModelConfig, seed: int) -> dict[str, np.ndarray]:
    """Parameters to train, float32. Raises ValueError for fewer than two layers or heads, or a head_dim but 32."""
    if config.num_layers < 2 or config.num_heads < 2 or config.head_dim != 32:
        raise ValueError("the ledger family has at least two layers of at least two heads, of 32 dimensions each")
    hidden, depth = config.hidden_size, 2 * config.num_layers
    params, rng = random_arrays(config, seed), np.random.default_rng([seed, 1])
    # The first dimensions hold names that were looked back to, the others what a token is.
    names = min(14, hidden // 3)
    kinds = hidden - names
    basis, _ = np.linalg.qr(rng.normal(size=(kinds, kinds)))
    basis = np.concatenate([np.zeros((kinds, names)), basis], axis=1)
    vectors: dict[str, np.ndarray] = dict(zip(("all", *KINDS), basis, strict=False))
    # Names share nothing with the kinds, where there is room: one that did would look back as another kind does.
    own = basis[len(vectors) :] if kinds - len(vectors) >= 12 else basis
    for name in [part for token in ledger.vocabulary() for part in parts_of(token)]:
        if name not in vectors:
            vectors[name] = rng.normal(size=len(own)) * len(own) ** -0.5 @ own
    weight: dict[str, float] = dict.fromkeys(("all", *KINDS), 0.6)
    rows = [sum(weight.get(part, 1.0) * vectors[part] for part in parts_of(token)) for token in ledger.vocabulary()]
    params["embed_tokens.weight"] = np.stack([row / np.linalg.norm(row) for row in rows])
    for name in params:
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            params[name] *= GAIN
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            params[name] *= 0.5 * depth**-0.5
    _look_back(params, config, rng, vectors, basis, names)
    _compare_names(params, config, rng, vectors, basis, names)
    return {name: np.asarray(value, np.float32) for name, value in params.items()}


def turned(config: ModelConfig, places: int) -> np.ndarray:
    """A query [head_dim] that the same key without a turn meets best from `places` tokens later."""
    half = config.head_dim // 2
    angles = config.rope_theta ** (-np.arange(FAST) / half) * places
    query = np.zeros(config.head_dim)
    query[:FAST], query[half : half + FAST] = np.cos(angles), -np.sin(angles)
    return query


def _noise(rng: np.random.Generator, config: ModelConfig) -> np.ndarray:
    return rng.normal(size=(config.head_dim, config.hidden_size)) * NOISE * config.hidden_size**-0.5


def _look_back(params, config: ModelConfig, rng: np.random.Generator, vectors, basis, names: int) -> None:
    size, hidden, place = config.head_dim, config.hidden_size, "layers.0.self_attn."
    params[f"{place}k_proj.weight"][:size] = _noise(rng, config) + 2 * np.outer(turned(config, 0), vectors["all"])
    for head, places in enumerate(LOOK_BACK):
        query = _noise(rng, config)
        for kind in KINDS:
            query += 2 * np.outer(turned(config, places[kind]), vectors[kind])
        params[f"{place}q_proj.weight"][head * size : (head + 1) * size] = query
    kinds = hidden - names
    common = len(KINDS) + 1
    read = basis[common : common + size] if kinds - common >= 16 else basis[:size]  # without the kinds, where room is
    value = np.zeros((size, hidden))
    value[: len(read)] = read
    params[f"{place}v_proj.weight"][:size] = value
    as_name = np.zeros((hidden, size))
    as_name[:names] = rng.normal(size=(names, size)) * names**-0.5
    output = params[f"{place}o_proj.weight"]
    output[:, :size], output[:, size : 2 * size] = WRITE * as_name, WRITE * value.T


def _compare_names(params, config: ModelConfig, rng: np.random.Generator, vectors, basis, names: int) -> None:
    size, hidden, place = config.head_dim, config.hidden_size, "layers.1.self_attn."
    half, group = size // 2, config.group
    key, query = _noise(rng, config), _noise(rng, config)
    slow = [*range(half - SLOW, half), *range(size - SLOW, size)][:names]
    for dimension, name in zip(slow, range(names), strict=True):
        key[dimension, name] += 1
        query[dimension, name] += 1
    for dimension, (asks, holds) in (
        (half - SLOW - 1, ("rule", "operation")),
        (size - SLOW - 1, ("operation", "next")),
    ):
        query[dimension] += 3 * vectors[asks]
        key[dimension] += 3 * vectors[holds]
    params[f"{place}k_proj.weight"][:size] = key
    value = np.zeros((size, hidden))
    value[: min(size, len(basis))] = basis[:size]
    params[f"{place}v_proj.weight"][:size] = value
    for head in range(group):
        rows = slice(head * size, (head + 1) * size)
        params[f"{place}q_proj.weight"][rows] = query + (head > 0) * _noise(rng, config)
        params[f"{place}o_proj.weight"][:, rows] = WRITE / group * value.T + rng.normal(size=(hidden, size)) * 0.03
