"""An architecture as its price needs it: layers of a mixer and a feed-forward, and what stands outside of them."""

from __future__ import annotations

import collections
import dataclasses
from typing import Any

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.architectures.feed_forward import Experts, FeedForward
from kinetics_jax.costs.architectures.mixers import IndexedAttention, LinearAttention, Mixer


@dataclasses.dataclass(frozen=True)
class Layer:
    """A mixer with its `projections` (matrix parameters: q, k, v, gates, output, indexer, residual mixing) and `other`
    parameters (norms, biases, convolutions), and a feed-forward.
    """

    mixer: Mixer
    projections: int
    other: int
    feed_forward: FeedForward | Experts


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A decoder to price. `layers` from first to last; `tied` says that the head is the embedding table; `lookups` are
    parameters of tables of which a token reads single rows (n-gram embeddings, beside the token embeddings);
    `mixing` matrix parameters and `other` parameters outside the layers. `source`: where the shape is from.
    """

    name: str
    hidden_size: int
    vocab_size: int
    tied: bool
    layers: tuple[Layer, ...]
    mixing: int = 0
    other: int = 0
    lookups: int = 0
    max_position_embeddings: int = 0
    source: str = ""

    @property
    def num_layers(self) -> int:
        """Layers of the decoder."""
        return len(self.layers)

    @property
    def head(self) -> int:
        """Parameters of the output head."""
        return self.vocab_size * self.hidden_size

    @property
    def matmul_parameters(self) -> int:
        """Parameters that one token is multiplied with, output head included."""
        return self.head + self.mixing + sum(layer.projections + layer.feed_forward.matmul for layer in self.layers)

    @property
    def active_parameters(self) -> int:
        """Parameters that a token uses; of look-up tables none but the token embeddings, which count in full."""
        inside = sum(layer.projections + layer.other + layer.feed_forward.active for layer in self.layers)
        return inside + self.mixing + self.other + self.head * (1 if self.tied else 2)

    @property
    def total_parameters(self) -> int:
        """All parameters, those of look-up tables included."""
        inside = sum(layer.projections + layer.other + layer.feed_forward.total for layer in self.layers)
        return inside + self.mixing + self.other + self.lookups + self.head * (1 if self.tied else 2)

    def touched_parameters(self, tokens: Any) -> Any:
        """Matrix parameters read when `tokens` tokens are processed together."""
        return (
            self.head
            + self.mixing
            + sum(layer.projections + layer.feed_forward.touched(tokens) for layer in self.layers)
        )

    def mixers(self, policy: AttentionPolicy) -> dict[tuple[Mixer, bool, bool], int]:
        """How many layers there are of each mixer, apart by whether the policy leaves the layer alone, and by whether
        it searches there.
        """
        return collections.Counter(
            (layer.mixer, policy.is_dense(index) or not layer.mixer.follows(policy), policy.searches(index))
            for index, layer in enumerate(self.layers)
        )

    def largest_share(self, part: str, chips: int) -> float:
        """The fullest chip's part of a component's reads: of states, or of what grows and of windows; the larger where
        mixers differ.
        """
        states = part.endswith("state_reads")
        mixers = {layer.mixer for layer in self.layers if isinstance(layer.mixer, LinearAttention) == states}
        return max((mixer.largest_share(chips) for mixer in mixers), default=1 / chips)

    def follows(self, policy: AttentionPolicy) -> bool:
        """Whether a policy changes what some layer attends to."""
        return any(not alone for _, alone, _ in self.mixers(policy))

    @property
    def selects_by_design(self) -> bool:
        """Whether some layer has an indexer of its own."""
        return any(isinstance(layer.mixer, IndexedAttention) for layer in self.layers)

    def without_selection(self) -> Architecture:
        """The same weights and cache with every indexer switched off: its layers attend to everything."""
        layers = tuple(
            dataclasses.replace(layer, mixer=layer.mixer.inner) if isinstance(layer.mixer, IndexedAttention) else layer
            for layer in self.layers
        )
        return dataclasses.replace(self, layers=layers)


PricedModel = ModelConfig | Architecture  # what costs are counted for: a model that runs here, or one that is priced
