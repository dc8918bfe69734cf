"""A sliding window."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from kinetics_jax.attention.policies.base import AttentionPolicy, PolicyError, check_settings


@dataclasses.dataclass(frozen=True)
class SlidingWindow(AttentionPolicy):
    """Every decode step attends to the first `sink_tokens` tokens and the last `budget - sink_tokens`."""

    budget: int = 0
    sink_tokens: int = 4
    dense_layers: tuple[int, ...] = (0,)

    kind: ClassVar[str] = "sliding_window"
    spelled: ClassVar[tuple[str, ...]] = ("budget",)

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise PolicyError(f"{self.kind}: give budget= (tokens), at least 1, got {self.budget}")
        if self.sink_tokens < 0:
            raise PolicyError(f"{self.kind}: sink_tokens must not be negative, got {self.sink_tokens}")
        if self.budget <= self.sink_tokens:
            raise PolicyError(
                f"{self.kind}: budget {self.budget} leaves no window beside {self.sink_tokens} sink tokens; the least "
                f"is budget={self.sink_tokens + 1}"
            )
        check_settings(self)
