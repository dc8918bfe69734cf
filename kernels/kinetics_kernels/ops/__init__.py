"""The kernels: one folder per op, in it one module per backend with a function of the op's name and signature."""
