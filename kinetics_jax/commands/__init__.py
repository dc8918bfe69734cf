"""The commands of `kinetics` that have a module of their own."""
