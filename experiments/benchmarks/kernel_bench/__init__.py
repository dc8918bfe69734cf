"""What the kernel measurements share: byte floors, states, checks, timing, peers. On jax, numpy, kinetics_kernels."""

import pathlib
import sys

# The kernels of this checkout, whatever is installed; so that a clone will do.
sys.path.insert(0, str(pathlib.Path(__file__).parents[3] / "kernels"))
