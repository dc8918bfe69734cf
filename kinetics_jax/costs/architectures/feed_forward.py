"""The feed-forward of a layer: parameters that a token uses, all there are, and those that a batch reads."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class FeedForward:
    """One for all tokens: `matmul` parameters, of which each is used, and `other` ones (biases)."""

    matmul: int
    other: int = 0

    @property
    def total(self) -> int:
        """Everything stored, in parameters."""
        return self.matmul + self.other

    @property
    def active(self) -> int:
        """What one token uses."""
        return self.total

    def touched(self, tokens: Any) -> Any:
        """Matrix parameters read when `tokens` tokens are processed together."""
        return self.matmul


@dataclasses.dataclass(frozen=True)
class Experts:
    """A mixture: `count` experts of `expert` matrix parameters and `bias` others each, `per_token` of them for a token;
    `shared` matrix parameters that every token uses (router, shared experts), and `other` small ones.
    """

    count: int
    per_token: int
    expert: int
    shared: int
    bias: int = 0
    other: int = 0

    @property
    def matmul(self) -> int:
        """Matrix parameters that a token is multiplied with."""
        return self.shared + self.per_token * self.expert

    @property
    def total(self) -> int:
        """Everything stored, in parameters."""
        return self.shared + self.other + self.count * (self.expert + self.bias)

    @property
    def active(self) -> int:
        """What one token uses."""
        return self.matmul + self.other + self.per_token * self.bias

    def touched(self, tokens: Any) -> Any:
        """Matrix parameters read by `tokens` tokens together; experts are taken to be used evenly and independently."""
        used = 1 - (1 - self.per_token / self.count) ** tokens
        return self.shared + self.count * self.expert * used
