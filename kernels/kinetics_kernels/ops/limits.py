"""What kernels of several backends share: the size of a GPU, and one manner of refusing a call."""

from __future__ import annotations

import jax

GPU_PROGRAMS = 264  # that fill the chip: two for each of an H100's 132 multiprocessors


def refuse_unless(backend: str, op: str, *needs: tuple[bool, str]) -> None:
    """Raises NotImplementedError for the first of `needs` (is it met, what the kernel takes) that is not met."""
    for met, taken in needs:
        if not met:
            raise NotImplementedError(f"{op}: the {backend} backend takes {taken}; backend='xla' takes any")


def own_scores(backend: str, summaries: jax.Array | None, scores: jax.Array | None) -> jax.Array:
    """The summaries that select_pages scores. Raises NotImplementedError for a call that brings scores instead."""
    refuse_unless(backend, "select_pages", (scores is None, "summaries, and no scores made elsewhere"))
    if summaries is None:
        raise ValueError("select_pages: give summaries, or scores of pages")
    return summaries
