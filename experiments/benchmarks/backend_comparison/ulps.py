"""Differences of floating-point arrays in units in the last place (ulps)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike


def ordered(values: np.ndarray) -> np.ndarray:
    """Floats as int64 of the same order: neighbours differ by one, both zeros are 0. `values` of 16 or 32 bits."""
    bits = values.view({2: np.int16, 4: np.int32}[values.dtype.itemsize]).astype(np.int64)
    return np.where(bits < 0, -(bits + (1 << (8 * values.dtype.itemsize - 1))), bits)


def ulp_distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Floats of the dtype between `a` and `b`, element by element, float64.

    Two NaN, or two equal infinities, are 0 apart; NaN or an infinity and anything else are infinitely far.
    """
    distance = np.abs(ordered(a) - ordered(b)).astype(np.float64)
    special = ~(np.isfinite(a) & np.isfinite(b))
    same = (np.isnan(a) & np.isnan(b)) | (ordered(a) == ordered(b))
    return np.where(special, np.where(same, 0.0, np.inf), distance)


def ulp_size(magnitude: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """Spacing of a dtype at finite magnitudes, float64: 2 ** -23 for float32 in [1, 2)."""
    info = jnp.finfo(dtype)
    exponent = np.where(magnitude == 0, info.minexp, np.frexp(magnitude)[1] - 1)
    return np.ldexp(1.0, np.maximum(exponent, info.minexp) - info.nmant)


def row_ulps(a: np.ndarray, b: np.ndarray, dtype: DTypeLike) -> np.ndarray:
    """The largest difference in each row `[..., size]`, in ulps that the row's largest element has in `dtype`.

    An element near zero has tiny ulps of its own, which sums that cancel cannot keep; the row's are those that matter.
    Places where both are NaN, or the same infinity, do not differ; where one alone is, they differ infinitely.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    same = (np.isnan(a) & np.isnan(b)) | (a == b)
    a_kept, b_kept = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
    largest = np.maximum(np.abs(a_kept), np.abs(b_kept)).max(axis=-1, initial=0.0)
    difference = np.where(finite, np.abs(a_kept - b_kept), np.where(same, 0.0, np.inf)).max(axis=-1, initial=0.0)
    return difference / ulp_size(largest, dtype)


def same_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether elements are equal to the bit; every NaN equals every other."""
    whole = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[a.dtype.itemsize]
    equal = a.view(whole) == b.view(whole)
    return equal if np.issubdtype(a.dtype, np.integer) else equal | (np.isnan(a) & np.isnan(b))
