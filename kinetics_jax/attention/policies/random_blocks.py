"""Random blocks."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from kinetics_jax.attention.policies.blocks import BlockPolicy


@dataclasses.dataclass(frozen=True)
class RandomBlocks(BlockPolicy):
    """The forced pages, and distinct others drawn uniformly anew in every step, layer and KV head: the floor that a
    selection has to beat.
    """

    kind: ClassVar[str] = "random_blocks"
