"""Paged attention with block-top-k selection for GQA decoding, and the grouped product of a mixture of experts.

See the README beside this package for the contracts.
"""

from kinetics_kernels.api import append_kv, block_topk_decode, grouped_matmul, paged_decode, select_pages
from kinetics_kernels.masked import litesys_mask, masked_decode, sliding_window_mask, token_logits, token_topk_mask
from kinetics_kernels.reference import choose_pages, merge_partials, score_pages

__all__ = [
    "append_kv",
    "block_topk_decode",
    "choose_pages",
    "grouped_matmul",
    "litesys_mask",
    "masked_decode",
    "merge_partials",
    "paged_decode",
    "score_pages",
    "select_pages",
    "sliding_window_mask",
    "token_logits",
    "token_topk_mask",
]
