"""Recordings of the ops and of a checkpoint's decoding on one backend, and what differs between two of them."""

import pathlib
import sys

# The kernels of this checkout, so that a clone will do where nothing is installed; an installed copy is not used.
sys.path.insert(0, str(pathlib.Path(__file__).parents[3] / "kernels"))
