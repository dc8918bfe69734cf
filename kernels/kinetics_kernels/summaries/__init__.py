"""What stands for a page when pages are chosen: one file and one object for each kind of summary. Loads no jax."""
