"""Paged attention with block-top-k selection for GQA decoding, and the grouped product of a mixture of experts.

See the README beside this package for the contracts. Names are imported when they are first used, so that kinds of
summary are known without jax.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinetics_kernels.api import append_kv as append_kv
    from kinetics_kernels.api import block_topk_decode as block_topk_decode
    from kinetics_kernels.api import grouped_matmul as grouped_matmul
    from kinetics_kernels.api import paged_decode as paged_decode
    from kinetics_kernels.api import select_pages as select_pages
    from kinetics_kernels.masked import litesys_mask as litesys_mask
    from kinetics_kernels.masked import masked_decode as masked_decode
    from kinetics_kernels.masked import sliding_window_mask as sliding_window_mask
    from kinetics_kernels.masked import token_logits as token_logits
    from kinetics_kernels.masked import token_topk_mask as token_topk_mask
    from kinetics_kernels.reference import choose_pages as choose_pages
    from kinetics_kernels.reference import merge_partials as merge_partials
    from kinetics_kernels.reference import score_pages as score_pages
    from kinetics_kernels.summaries.kind import KernelCode as KernelCode
    from kinetics_kernels.summaries.kind import SummaryKind as SummaryKind
    from kinetics_kernels.summaries.registry import register_summary as register_summary

_HOMES = {
    "KernelCode": "summaries.kind",
    "SummaryKind": "summaries.kind",
    "append_kv": "api",
    "block_topk_decode": "api",
    "choose_pages": "reference",
    "grouped_matmul": "api",
    "litesys_mask": "masked",
    "masked_decode": "masked",
    "merge_partials": "reference",
    "paged_decode": "api",
    "register_summary": "summaries.registry",
    "score_pages": "reference",
    "select_pages": "api",
    "sliding_window_mask": "masked",
    "token_logits": "masked",
    "token_topk_mask": "masked",
}
__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
