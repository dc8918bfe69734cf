"""Measures the kernels on a TPU: limits of the device, correctness, times, peers, ablations, aims.

    python experiments/benchmarks/tpu_suite.py [--out FOLDER] [--seconds LIMIT] [--only SECTION ...]

As gpu_suite.py, which it shares its modules with. Without a TPU it prints the byte model of three generations and ends.
"""

from kernel_bench.suite import main

if __name__ == "__main__":
    main("tpu_suite", "tpu", ("v5e", "v5p", "v6e"), __doc__ or "")
