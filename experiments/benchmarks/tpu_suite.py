"""Measures the kernels on a TPU: device limits, correctness, times, peers, ablations, aims.

    python experiments/benchmarks/tpu_suite.py [--out FOLDER] [--seconds LIMIT] [--only SECTION ...]

Works like gpu_suite.py, by the same modules. Without a TPU it prints the byte model of three generations and ends.
"""

from kernel_bench.suite import main

if __name__ == "__main__":
    main("tpu_suite", "tpu", ("v5e", "v5p", "v6e"), __doc__ or "")
