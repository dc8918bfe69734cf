"""The engine's own decode chunk over random weights and a random cache, which every measurement of speed times."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from kinetics_kernels.backends import Backend

from kinetics_jax.attention.cache import empty_cache
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.config import ModelConfig
from kinetics_jax.engine.programs import decode_chunk
from kinetics_jax.engine.sampling import seed_key
from kinetics_jax.engine.slots import Slots
from kinetics_jax.models.qwen3 import Qwen3
from kinetics_jax.settings import Sampling

GREEDY = Sampling(temperature=0, max_tokens=1)


class RandomDecode:
    """Decode chunks of `batch` sequences that hold `context` tokens each, in pools for that and a chunk.

    Every call of `seconds_per_step` goes on from the same context, as if the chunk had not been decoded before.
    `steps` is the chunk; weights and pools have `dtype`; `backend` forces the kernels' backend; `clock` gives seconds.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: nnx.State,
        *,
        batch: int,
        context: int,
        policy: AttentionPolicy,
        steps: int,
        sampling: Sampling = GREEDY,
        dtype: DTypeLike = jnp.float32,
        backend: Backend | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        graph = random_graph(config)
        rng = np.random.default_rng(0)
        self.weights, self.context, self.clock = weights, context, clock
        pages = -(-(context + steps) // policy.page_size)
        shapes = {"num_pages": batch * pages, "dtype": dtype, "rows": batch}
        cache = jax.eval_shape(lambda: empty_cache(policy, config, **shapes))
        filled = jax.tree.map(lambda leaf: _normal(rng, leaf.shape, 1.0, dtype), cache.without_rows())
        carried = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in cache.carried.items()}
        self.cache = dataclasses.replace(filled, carried=carried)
        self.cache_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.cache))
        self.weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.weights))
        # Physical pages in random order, as an engine that has run for a while hands them out.
        self.table = jnp.asarray(rng.permutation(batch * pages).reshape(batch, pages).astype(np.int32))
        self.slots = dataclasses.replace(
            Slots.idle(batch, seed_key(0)),
            token=jnp.asarray(rng.integers(config.vocab_size, size=batch).astype(np.int32)),
            produced=jnp.ones(batch, jnp.int32),
            limit=jnp.full(batch, 2**30, jnp.int32),
            active=jnp.ones(batch, bool),
        )
        self.steps, self.patience = steps, jnp.int32(batch)
        static = {"policy": policy, "sampling": sampling, "eos": (-1,), "chunk": steps, "backend": backend}
        arguments = (self.weights, self.cache, self.slots, self.table, self.patience)
        self.decode = decode_chunk.lower(graph, *arguments, **static).compile()
        memory = self.decode.memory_analysis()
        assert memory is not None, "this backend does not report what a program allocates"
        self.temp_bytes = memory.temp_size_in_bytes
        self.seconds_per_step()  # the first call touches every page

    def seconds_per_step(self, context: int | None = None) -> float:
        """Decodes a chunk of sequences of `context` tokens, by default and at most as many as the pools were made for.
        Returns its seconds divided by its steps.
        """
        stored = self.context if context is None else context
        slots = dataclasses.replace(self.slots, stored=jnp.full(self.slots.token.shape, stored, jnp.int32))
        began = self.clock()
        self.cache, _, drawn, _ = self.decode(self.weights, self.cache, slots, self.table, self.patience)
        drawn.block_until_ready()
        return (self.clock() - began) / self.steps


def random_weights(config: ModelConfig, dtype: DTypeLike = jnp.float32) -> nnx.State:
    """Random weights for a configuration, small enough that activations stay finite."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: _normal(rng, leaf.shape, 0.02, dtype), nnx.split(_shapes(config))[1])


def random_graph(config: ModelConfig) -> nnx.GraphDef:
    """The graph that `random_weights` belong to."""
    return nnx.split(_shapes(config))[0]


def _shapes(config: ModelConfig) -> Qwen3:
    return nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0)))


def _normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float, dtype: DTypeLike) -> jax.Array:
    """Normal numbers that repeat after a prime count: drawing gigabytes of them would take longer than decoding."""
    few = rng.standard_normal(1_000_003, np.float32) * np.float32(scale)
    return _repeated(jnp.asarray(few, dtype), shape)


@functools.partial(jax.jit, static_argnames=("shape",))
def _repeated(few: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """`few [n]`, over and over, in `shape`: written on the device directly, without scratch memory."""
    size = math.prod(shape)
    assert size < 2**32, "an index needs more than 32 bits"
    return few[jnp.arange(size, dtype=jnp.uint32) % few.size].reshape(shape)


def read_bandwidth(megabytes: int = 1024) -> float:
    """Bytes per second at which this device sums a float32 array much larger than its caches; the best of five."""
    array = jnp.ones(megabytes * 2**18, jnp.float32)
    total = jax.jit(jnp.sum)
    total(array).block_until_ready()
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        total(array).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return array.nbytes / min(seconds)
