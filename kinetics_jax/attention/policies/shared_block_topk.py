"""Block top-k whose selection is shared over layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from kinetics_jax.attention.policies.base import PolicyError
from kinetics_jax.attention.policies.block_topk import BlockTopK

if TYPE_CHECKING:
    import jax

    from kinetics_jax.attention.decode_step import DecodeStep, Pages


@dataclasses.dataclass(frozen=True)
class SharedBlockTopK(BlockTopK):
    """Block top-k in every `select_every`-th sparse layer, from the first on; the layers between reuse its pages.

    Each KV head reuses those of the same head. TidalDecode (arXiv 2410.05076) selects in two layers and LessIsMore
    (arXiv 2508.07101) shares tokens over heads too.
    """

    select_every: int = 2

    kind: ClassVar[str] = "shared_block_topk"
    place: ClassVar[int] = 8
    spelled: ClassVar[tuple[str, ...]] = ("budget", "page_size", "select_every")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.select_every < 1:
            raise PolicyError(f"{self.kind}: select_every must be at least 1, got {self.select_every}")

    def searches(self, layer: int) -> bool:
        """Whether a layer selects pages itself."""
        before = layer - sum(dense < layer for dense in self.dense_layers)
        return not self.is_dense(layer) and before % self.select_every == 0

    def carried(self, head_dim: int) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """The pages chosen last and the tokens that they cover."""
        return {"tables": ((self.pages,), "int32"), "covered": ((), "int32")}

    def choose_and_carry(self, step: DecodeStep) -> tuple[Pages, dict[str, jax.Array]]:
        """The first sparse layer of a step always selects: no choice is ever carried into the next step."""
        import jax.numpy as jnp

        if not self.searches(step.layer):
            tables, covered = step.carried["tables"], step.carried["covered"]
            return step.reuse_pages(jnp.swapaxes(tables, 0, 1), covered.T), step.carried
        pages = step.select_pages(summary=self.summary, **{**self.choice(step), "pages": self.pages})
        return pages, {"tables": jnp.swapaxes(pages.tables, 0, 1), "covered": pages.covered.T}
