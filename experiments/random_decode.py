"""Decoding with random weights at a published shape: what the speed measurements here share. Not a script."""

from __future__ import annotations

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from kinetics_jax.attention import empty_cache
from kinetics_jax.config import ModelConfig
from kinetics_jax.models.qwen3 import Qwen3
from kinetics_jax.policies import Policy, Sampling
from kinetics_jax.sampling import seed_key
from kinetics_jax.steps import Slots, decode_chunk

GREEDY = Sampling(temperature=0, max_tokens=1)


class RandomDecode:
    """The engine's own decode chunk over random weights, float32: `batch` sequences that hold `context` tokens each.

    Every call of `seconds_per_step` goes on from the same context, as if the chunk had not been decoded before.
    """

    def __init__(
        self, config: ModelConfig, weights: nnx.State, *, batch: int, context: int, policy: Policy, steps: int
    ):
        graph = nnx.split(_shapes(config))[0]
        rng = np.random.default_rng(0)
        self.weights = weights
        pages = -(-(context + steps) // policy.page_size)
        cache = jax.eval_shape(lambda: empty_cache(policy, config, num_pages=batch * pages, dtype=jnp.float32))
        self.cache = jax.tree.map(lambda leaf: _normal(rng, leaf.shape, 1.0), cache)
        self.cache_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.cache))
        self.weight_bytes = sum(leaf.nbytes for leaf in jax.tree.leaves(self.weights))
        # Physical pages in random order, as an engine that has run for a while hands them out.
        self.table = jnp.asarray(rng.permutation(batch * pages).reshape(batch, pages).astype(np.int32))
        self.slots = dataclasses.replace(
            Slots.idle(batch, seed_key(0)),
            token=jnp.asarray(rng.integers(config.vocab_size, size=batch).astype(np.int32)),
            stored=jnp.full(batch, context, jnp.int32),
            produced=jnp.ones(batch, jnp.int32),
            limit=jnp.full(batch, 2**30, jnp.int32),
            active=jnp.ones(batch, bool),
        )
        self.steps, self.patience = steps, jnp.int32(batch)
        self.decode = functools.partial(decode_chunk, policy=policy, sampling=GREEDY, eos=(-1,), chunk=steps)
        self.graph = graph
        arguments = (graph, self.weights, self.cache, self.slots, self.table, self.patience)
        compiled = decode_chunk.lower(*arguments, policy=policy, sampling=GREEDY, eos=(-1,), chunk=steps).compile()
        memory = compiled.memory_analysis()
        assert memory is not None, "this backend does not tell what a program allocates"
        self.temp_bytes = memory.temp_size_in_bytes
        self.seconds_per_step()  # the first call compiles

    def seconds_per_step(self) -> float:
        """Decodes one chunk; seconds divided by its steps."""
        began = time.perf_counter()
        self.cache, _, drawn = self.decode(self.graph, self.weights, self.cache, self.slots, self.table, self.patience)
        drawn.block_until_ready()
        return (time.perf_counter() - began) / self.steps


def random_weights(config: ModelConfig) -> nnx.State:
    """Float32 weights of a model's shape, small enough that activations stay finite."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: _normal(rng, leaf.shape, 0.02), nnx.split(_shapes(config))[1])


def _shapes(config: ModelConfig) -> Qwen3:
    return nnx.eval_shape(lambda: Qwen3(config, rngs=nnx.Rngs(0)))


def _normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> jax.Array:
    """Normal numbers that repeat after a prime count: drawing gigabytes anew would take longer than decoding."""
    few = rng.standard_normal(1_000_003, np.float32) * np.float32(scale)
    return jnp.asarray(np.resize(few, shape))


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
