"""What the figures' scripts share: flags and files, frontiers, and the drawings that two figures have in common."""
