"""Block top-k as the published code does it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from kinetics_jax.attention.policies.base import PAGE_SIZE, AttentionPolicy, PolicyError, check_settings


@dataclasses.dataclass(frozen=True)
class LiteSysBlockTopK(AttentionPolicy):
    """Block top-k by the rule of the paper's own code (LiteSys), for comparison with published results.

    Blocks of `page_size` tokens begin after the 4 sink tokens. Every decode step attends to the sinks, to the `pages`
    blocks with the largest mean logit, and to the last `local` tokens with what no whole block covers before them;
    nothing forced counts among `pages`. In force once a sequence holds more than 4 + local + pages * page_size tokens,
    rounded up to whole blocks. With `local = 0` the current token can end a block that is not chosen.
    """

    pages: int = 0
    page_size: int = PAGE_SIZE
    local: int = 0
    dense_layers: tuple[int, ...] = (0,)

    kind: ClassVar[str] = "litesys_block_topk"
    spelled: ClassVar[tuple[str, ...]] = ("pages", "page_size")
    sink_tokens: ClassVar[int] = 4

    def __post_init__(self) -> None:
        for name, least in (("pages", 1), ("page_size", 1), ("local", 0)):
            if getattr(self, name) < least:
                raise PolicyError(f"{self.kind}: {name} must be at least {least}, got {getattr(self, name)}")
        check_settings(self)
