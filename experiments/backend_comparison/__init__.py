"""Recordings of the ops and of a checkpoint's decoding on one backend, and what differs between two of them."""
