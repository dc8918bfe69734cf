"""What the engine pads prompts, page tables and its pool to, so that few programs are compiled, and what devices can
split. No jax: who prices or plans an engine that is not here asks too.
"""

from __future__ import annotations

TILE = 256  # queries and keys of one tile of causal attention: no [time, time] score matrix is ever held
PREFILL_CHUNK = 2048


def paged_tile(page_size: int) -> int:
    """Tokens of one tile of `attention.paged_causal_attention`: whole pages."""
    return -(-TILE // page_size) * page_size


def prefill_size(page_size: int, prefill_chunk: int = PREFILL_CHUNK) -> int:
    """The most tokens that are prefilled at a time: whole tiles."""
    tile = paged_tile(page_size)
    return -(-prefill_chunk // tile) * tile


def prompt_shape(length: int, page_size: int, prefill_chunk: int = PREFILL_CHUNK) -> tuple[int, int]:
    """Tokens that are computed at a time, and in all, for a prompt of `length` tokens: doubling lengths up to
    `prefill_size`, whole chunks of that beyond.
    """
    chunk = prefill_size(page_size, prefill_chunk)
    if length > chunk:
        return chunk, -(-length // chunk) * chunk
    bucket = page_size
    while bucket < length:
        bucket *= 2
    return bucket, bucket


def table_width(pages: int) -> int:
    """At most an eighth more (or 7), so that prompts of similar length share one compiled program."""
    step = max(8, 1 << max(0, pages.bit_length() - 4))
    return -(-pages // step) * step


def pool_pages(tokens: int, page_size: int, slots: int) -> tuple[int, int]:
    """The page table's width for sequences of up to `tokens`, and the pages of a pool for every slot's worst case."""
    width = table_width(-(-tokens // page_size))
    return width, whole_runs(slots * (width + 2))


def whole_runs(pages: int) -> int:
    """Rounded up to whole runs: some kernels take whole eights alone."""
    return -(-pages // RUN) * RUN


RUN = 16  # pages that a kernel can copy at once where they follow each other
