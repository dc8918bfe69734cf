"""Measures the kernels on an NVIDIA GPU: device limits, correctness, times, peers, ablations, aims; then whole models
through end_to_end.py.

    python experiments/benchmarks/gpu_suite.py [--out FOLDER] [--seconds LIMIT] [--only SECTION ...]

Writes gpu_suite_<section>.json row by row, by default into results/<device> beside this script: a run that is cut off
loses one row at most, a kernel that crashes or hangs loses its own. Without a GPU it prints the byte model and ends;
`--tiny` rehearses every section at tiny shapes on any device. Needs jax and NumPy; the section end_to_end, which
`--only end_to_end` continues, needs flax, jaxtyping and tqdm too, and torch and transformers to compare with. It
measures the package and the kernels of this checkout, installed or not.
"""

from kernel_bench.suite import main

if __name__ == "__main__":
    main("gpu_suite", "gpu", ("h100", "h200"), __doc__ or "")
