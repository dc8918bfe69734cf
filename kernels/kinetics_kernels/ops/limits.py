"""What kernels of several backends share: the size of a GPU, and one manner of refusing a call."""

from __future__ import annotations

GPU_PROGRAMS = 264  # that fill the chip: two for each of an H100's 132 multiprocessors


def refuse_unless(backend: str, op: str, *needs: tuple[bool, str]) -> None:
    """Raises NotImplementedError for the first of `needs` (is it met, what the kernel takes) that is not met."""
    for met, taken in needs:
        if not met:
            raise NotImplementedError(f"{op}: the {backend} backend takes {taken}; backend='xla' takes any")
