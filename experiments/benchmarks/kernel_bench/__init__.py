"""What the kernel measurements share: byte floors, states, checks, timing, peers. Needs jax and NumPy."""

import pathlib
import sys

# The kernels of this checkout, so that a clone will do where nothing is installed; an installed copy is not used.
sys.path.insert(0, str(pathlib.Path(__file__).parents[3] / "kernels"))
