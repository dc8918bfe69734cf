"""Paged attention with block-top-k selection for GQA decoding. See the README beside this package for the contracts."""

from kinetics_kernels.reference import append_kv, block_topk_decode, merge_partials, paged_decode, select_pages

__all__ = ["append_kv", "block_topk_decode", "merge_partials", "paged_decode", "select_pages"]
