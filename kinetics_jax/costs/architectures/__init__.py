"""Architectures that are priced and not run: hybrids, latent attention, windows, models that select by design."""
