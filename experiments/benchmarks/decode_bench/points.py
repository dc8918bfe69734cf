"""What is measured: models by name, points (batch and context), and the bytes that a step at a point must read."""

from __future__ import annotations

import dataclasses

import numpy as np

from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.step_time import step_amounts

# Small enough to compile and decode in seconds.
TINY = ModelConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    tie_word_embeddings=True,
    name="tiny",
)
ENGINE = ("dense", "sparse")  # runners of this package; the others are transformers'
PEERS = ("transformers", "transformers compiled")


@dataclasses.dataclass(frozen=True)
class Point:
    """One measurement: decode steps of `batch` sequences that hold `context` tokens, by a runner."""

    model: str
    layers: int
    runner: str
    batch: int
    context: int

    @property
    def place(self) -> tuple[str, int, int]:
        """Where runners are compared."""
        return self.model, self.batch, self.context

    def __str__(self) -> str:
        return f"{self.model} ({self.layers} layers), batch {self.batch}, context {self.context}: {self.runner}"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What all points of a file share: page size, tokens attended when sparse, steps per turn, bytes per number."""

    page_size: int = 64
    budget: int = 1024
    steps: int = 8
    itemsize: int = 4

    def policy(self, runner: str, config: ModelConfig) -> BlockTopK:
        """The policy of `dense` or `sparse`. Dense is block top-k with every layer exempt: pages of the same size."""
        exempt = range(config.num_layers) if runner == "dense" else (0,)
        return BlockTopK(budget=self.budget, page_size=self.page_size, dense_layers=tuple(exempt))

    def step_bytes(self, point: Point) -> float:
        """Bytes that the middle step of a chunk has to read: the weights, K and V attended to, summaries searched."""
        config = shape(point.model, point.layers)
        contexts = np.full(point.batch, point.context + (self.steps + 1) // 2)
        policy = self.policy(point.runner, config)
        amounts = step_amounts(config, policy, contexts=contexts, kv_bytes=self.itemsize, weight_bytes=self.itemsize)
        return float(sum(amount for name, amount in amounts.items() if name.endswith("_reads")))


def shape(model: str, layers: int = 0) -> ModelConfig:
    """A published shape by name, or `tiny`; only its first `layers` unless that is 0."""
    config = TINY if model == TINY.name else ModelConfig.named(model)
    return dataclasses.replace(config, num_layers=layers) if layers else config
