"""Measures the kernels on an NVIDIA GPU: limits of the device, correctness, times, peers, ablations, aims; then whole
models through end_to_end.py.

    python experiments/benchmarks/gpu_suite.py [--out FOLDER] [--seconds LIMIT] [--only SECTION ...]

Writes gpu_suite_<section>.json, row by row, so that a run that is cut off loses one row at most; a kernel that crashes
or hangs costs its row. Without a GPU it prints the byte model and ends; `--tiny` rehearses every section at tiny shapes
on whatever there is. Needs jax and numpy; for the section end_to_end, which `--only end_to_end` continues, also flax,
jaxtyping and tqdm, and torch and transformers to compare with. The package and its kernels are those of this checkout.
"""

from kernel_bench.suite import main

if __name__ == "__main__":
    main("gpu_suite", "gpu", ("h100", "h200"), __doc__ or "")
