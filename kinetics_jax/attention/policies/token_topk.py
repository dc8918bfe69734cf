"""Token top-k, the oracle."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from kinetics_jax.attention.policies.base import AttentionPolicy, PolicyError, check_settings


@dataclasses.dataclass(frozen=True)
class TokenTopK(AttentionPolicy):
    """The oracle: every decode step attends, per KV head, to the `budget` tokens with the largest logits.

    Logits are averaged over the GQA group, in float32; the current token is always among the tokens, and counted. All
    logits are computed to find the largest: this says how well a budget could be spent, not what it saves.
    """

    budget: int = 0
    dense_layers: tuple[int, ...] = (0,)

    kind: ClassVar[str] = "token_topk"
    spelled: ClassVar[tuple[str, ...]] = ("budget",)

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise PolicyError(f"{self.kind}: give budget= (tokens), at least 1, got {self.budget}")
        check_settings(self)
