"""What the kernel measurements share: byte floors, states, checks, timing, peers. Needs jax, numpy, kinetics_kernels."""
