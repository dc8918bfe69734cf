"""`python -m kinetics_jax` is the `kinetics` command."""

from kinetics_jax.cli.main import main

main()
