"""What the Mosaic GPU kernels share: the rows of a product, and how they refuse a call."""

from __future__ import annotations

import jax

from kinetics_kernels import devices
from kinetics_kernels.ops import limits

WARPGROUP_ROWS = 64  # of a wgmma: the least rows of a product


def refuse_unless(op: str, *needs: tuple[bool, str]) -> None:
    """`limits.refuse_unless` of this backend, which also needs jax 0.11 or newer."""
    new_enough = jax.__version_info__ >= (0, 11), f"jax 0.11 or newer, not {jax.__version__}"
    limits.refuse_unless("mosaic_gpu", op, new_enough, *needs)


def refuse_unless_hopper(op: str) -> None:
    """Raises NotImplementedError on a GPU that has no wgmma, which is Hopper's alone.

    A device of unknown capability, as that of an interpreter, passes.
    """
    capability = devices.target().capability
    hopper = capability is None or capability[0] == devices.HOPPER
    refuse_unless(op, (hopper, f"Hopper GPUs, whose wgmma it multiplies by, not compute capability {capability}"))
