"""Best-of-N runs and their folders."""
