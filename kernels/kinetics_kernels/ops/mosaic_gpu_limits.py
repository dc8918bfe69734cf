"""What no Mosaic GPU kernel here takes is refused in one manner."""

from __future__ import annotations

import jax

WARPGROUP_ROWS = 64  # of a wgmma: the least rows of a product


def refuse_unless(op: str, *needs: tuple[bool, str]) -> None:
    """Raises NotImplementedError naming the first of `needs` (met or not, and what is needed) that is not met."""
    for met, needed in ((jax.__version_info__ >= (0, 11), f"jax 0.11 or newer, not {jax.__version__}"), *needs):
        if not met:
            raise NotImplementedError(f"{op}: the mosaic_gpu backend takes {needed}; backend='xla' takes any")
