"""What kernels do not take is refused in one manner."""

from __future__ import annotations


def refuse_unless(backend: str, op: str, *needs: tuple[bool, str]) -> None:
    """Raises NotImplementedError naming the first of `needs` (met or not, and what is needed) that is not met."""
    for met, needed in needs:
        if not met:
            raise NotImplementedError(f"{op}: the {backend} backend takes {needed}; backend='xla' takes any")
