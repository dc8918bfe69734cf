"""Device meshes: axes, and where each array lies."""
