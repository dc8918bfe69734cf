"""`python -m kinetics_jax` is the `kinetics` command."""

from kinetics_jax.cli.start import main

main()
