"""The worker that times the engine's decode chunk over random weights and a random cache; runs by `python -m`."""

from __future__ import annotations

import gc
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from kernel_bench.timing import bandwidths
from kinetics_kernels.backends import chosen_backend

from decode_bench.points import Settings, shape
from decode_bench.serving import Measure, check_host_memory, serve
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.memory import kv_bytes_per_token, total_parameters
from kinetics_jax.devices.random_decode import RandomDecode, random_weights, read_bandwidth


class Engine:
    """Holds the weights of one model at a time, the last one asked for."""

    def __init__(self) -> None:
        self.on_host = jax.default_backend() == "cpu"
        self.dtype = jnp.float32 if self.on_host else jnp.bfloat16
        self.config: ModelConfig | None = None
        self.weights: nnx.State | None = None
        self.facts = {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "platform": jax.default_backend(),
            "dtype": jnp.dtype(self.dtype).name,
            "memory": (jax.devices()[0].memory_stats() or {}).get("bytes_limit"),
            "backends": {op: chosen_backend(op)[0] for op in ("paged_decode", "select_pages", "append_kv")},
        }

    def make(self, point: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
        gc.collect()
        settings = Settings(**point["settings"])
        config = shape(point["model"], point["layers"])
        policy = settings.policy(point["runner"], config)
        tokens = point["batch"] * (point["context"] + settings.steps + settings.page_size)
        self._check(config, tokens * kv_bytes_per_token(config, policy, kv_bytes=settings.itemsize))
        if config != self.config:
            self.config = self.weights = None
            self.weights = random_weights(config, self.dtype)
            self.config = config
        assert self.weights is not None
        decode = RandomDecode(
            config,
            self.weights,
            batch=point["batch"],
            context=point["context"],
            policy=policy,
            steps=settings.steps,
            dtype=self.dtype,
        )
        about = {name: getattr(decode, name) for name in ("temp_bytes", "cache_bytes", "weight_bytes")}
        return decode.seconds_per_step, about

    def _check(self, config: ModelConfig, cache_bytes: float) -> None:
        """Raises MemoryError if weights and cache cannot fit, before anything is drawn or compiled."""
        itemsize = jnp.dtype(self.dtype).itemsize
        weights = 0 if config == self.config else itemsize * total_parameters(config)
        if self.on_host:
            return check_host_memory(weights + cache_bytes)
        memory = self.facts["memory"]
        if memory is not None and itemsize * total_parameters(config) + cache_bytes > memory:
            raise MemoryError(f"weights and cache are larger than the {memory / 1e9:.1f} GB that may be used")
        return None

    def out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)

    def bandwidth(self) -> float:
        return read_bandwidth(256) if self.on_host else bandwidths(2 << 30)["read_best"]


if __name__ == "__main__":
    serve(Engine())
