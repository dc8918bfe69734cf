"""What the kernel measurements share: byte floors, states, checks, timing, peers. On jax, numpy, kinetics_kernels."""
