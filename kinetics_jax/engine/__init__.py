"""Batched decoding: checks, schedule, pages, jitted programs, sampling."""
