"""Dense attention."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from kinetics_jax.attention.policies.base import AttentionPolicy


@dataclasses.dataclass(frozen=True)
class Dense(AttentionPolicy):
    """Every decode step attends to every token."""

    kind: ClassVar[str] = "dense"
