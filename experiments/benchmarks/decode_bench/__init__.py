"""Whole-model decoding timed in worker processes: the engine's programs, and `transformers` beside them.

A worker answers JSON lines (`serving`), so that torch and jax need not share an interpreter, a crash loses one point,
and on an accelerator only one of them holds memory at a time.
"""

import pathlib
import sys

# The package and the kernels of this checkout, so that a clone will do; an installed copy is not used.
sys.path[:0] = [str(pathlib.Path(__file__).parents[3] / folder) for folder in ("", "kernels")]
