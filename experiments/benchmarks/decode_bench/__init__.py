"""Whole-model decoding timed in worker processes: the engine's programs, and `transformers` beside them.

A worker answers JSON lines (`serving`), so that torch and jax need not share an interpreter, a crash costs one point,
and on an accelerator one of them at a time holds the memory.
"""

import pathlib
import sys

# The package and the kernels of this checkout, whatever is installed; so that a clone will do.
sys.path[:0] = [str(pathlib.Path(__file__).parents[3] / folder) for folder in ("", "kernels")]
