"""What the engine pads prompts, page tables and its pool to, so that few programs are compiled.

The cost model and memory plans, which price an engine that does not run here, pad alike.
"""

from __future__ import annotations

TILE = 256  # queries and keys of one tile of causal attention: no [time, time] score matrix is ever held
PREFILL_CHUNK = 2048
RUN = 16  # pages that a kernel can copy at once where they follow each other


def pages_for(tokens: int, page_size: int) -> int:
    """Pages that hold so many tokens."""
    return -(-tokens // page_size)


def paged_tile(page_size: int) -> int:
    """Tokens of one tile of causal attention over pages (`attention.causal`): whole pages."""
    return pages_for(TILE, page_size) * page_size


def prefill_size(page_size: int, prefill_chunk: int = PREFILL_CHUNK) -> int:
    """The most tokens that are prefilled at a time: whole tiles."""
    tile = paged_tile(page_size)
    return -(-prefill_chunk // tile) * tile


def prompt_shape(length: int, page_size: int, prefill_chunk: int = PREFILL_CHUNK) -> tuple[int, int]:
    """Tokens computed at a time, and in all, for a prompt of `length` tokens, padding included: a page doubled as often
    as needed up to `prefill_size`, whole chunks of that beyond.
    """
    chunk = prefill_size(page_size, prefill_chunk)
    if length > chunk:
        return chunk, -(-length // chunk) * chunk
    bucket = page_size
    while bucket < length:
        bucket *= 2
    return bucket, bucket


def table_width(pages: int) -> int:
    """The width of a page table for so many pages: at most an eighth more (or 7), so that prompts of similar length
    share one compiled program.
    """
    step = max(8, 1 << max(0, pages.bit_length() - 4))
    return -(-pages // step) * step


def pool_pages(tokens: int, page_size: int, slots: int) -> tuple[int, int]:
    """The page table's width for sequences of up to `tokens`, and the pages of a pool for every slot's worst case."""
    width = table_width(pages_for(tokens, page_size))
    return width, whole_runs(slots * (width + 2))


def whole_runs(pages: int) -> int:
    """Pages rounded up to whole runs; some kernels take only multiples of eight."""
    return -(-pages // RUN) * RUN
