"""Bytes of an element of the KV cache and of the weights: what a run says of them, or what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kinetics_jax.config import DTYPE_BYTES
from kinetics_jax.costs.conventions import CostError
from kinetics_jax.errors import spelled

# The last two are priced, though nothing is stored in them here.
TYPE_BYTES = {**DTYPE_BYTES, "float8": 1, "int8": 1}


class Widths(NamedTuple):
    """Bytes of an element."""

    kv: float
    weights: float


def widths(settings: Mapping[str, Any], *, kv_bytes: float | None = None, weight_bytes: float | None = None) -> Widths:
    """The widths of a run: as asked for, else of its settings `kv_dtype` and `weight_dtype`, else of its `dtype`, in
    which it stored both, else 2.

    Raises CostError for a type that is not known and not overridden.
    """
    return Widths(_bytes(settings, "kv_dtype", kv_bytes), _bytes(settings, "weight_dtype", weight_bytes))


def _bytes(settings: Mapping[str, Any], name: str, asked: float | None) -> float:
    if asked is not None:
        return asked
    dtype = settings.get(name) or settings.get("dtype")
    if dtype is None:
        return 2
    if dtype not in TYPE_BYTES:
        raise CostError(
            f"the run's {name if settings.get(name) else 'dtype'} {spelled(dtype)} is not one of "
            f"{', '.join(TYPE_BYTES)}, so the bytes of an element are not known; give --{name.replace('_', '-')}"
        )
    return TYPE_BYTES[dtype]
