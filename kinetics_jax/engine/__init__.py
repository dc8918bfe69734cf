"""Batched decoding: schedule, pages, jitted programs, sampling."""
