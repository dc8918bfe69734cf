"""Block top-k."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from kinetics_jax.attention.policies.base import PolicyError
from kinetics_jax.attention.policies.blocks import BlockPolicy

SUMMARY_VECTORS = {"mean": 1, "min_max": 2, "mean_std": 2}  # kinds of page summary, and their vectors of head_dim


@dataclasses.dataclass(frozen=True)
class BlockTopK(BlockPolicy):
    """The forced pages, and those whose summary scores best for the step's query (paper, section 4.1).

    The query is the mean over the GQA group. `summary` names what stands for a page: the `mean` of its keys, scored by
    its dot product with the query; `min_max`, the bounds of its keys in every dimension, scored by the largest dot
    product that a key within them could have (Quest, arXiv 2406.10774); `mean_std`, mean and standard deviation, scored
    by the logarithm of the page's mean exp(logit) if its keys were independent Gaussians.
    """

    summary: str = "mean"

    kind: ClassVar[str] = "block_topk"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.summary not in SUMMARY_VECTORS:
            raise PolicyError(
                f"{self.kind}: summary {self.summary!r} is not known (known: {', '.join(SUMMARY_VECTORS)})"
            )
