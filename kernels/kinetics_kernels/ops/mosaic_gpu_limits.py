"""What the Mosaic GPU kernels share: the rows of a product, and what they refuse."""

from __future__ import annotations

import jax

from kinetics_kernels.ops import limits

WARPGROUP_ROWS = 64  # of a wgmma: the least rows of a product


def refuse_unless(op: str, *needs: tuple[bool, str]) -> None:
    """`limits.refuse_unless`, an old jax first."""
    jax_does = jax.__version_info__ >= (0, 11), f"jax 0.11 or newer, not {jax.__version__}"
    limits.refuse_unless("mosaic_gpu", op, jax_does, *needs)
