"""What a kind of page summary is."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
RESERVED = ("none",)  # how tuning tables spell pools without summaries


@dataclasses.dataclass(frozen=True)
class KernelCode:
    """What the kernels of one backend run of a kind: `make` in append_kv, `score` in select_pages.

    A kernel refuses a kind whose code for it is None. What each backend calls them with stands in kernels/README.md.
    """

    make: Callable[..., Any] | None = None
    score: Callable[..., Any] | None = None


@dataclasses.dataclass(frozen=True)
class SummaryKind:
    """A kind of page summary: `vectors` vectors of head_dim numbers for each page and KV head.

    `make(keys)` is called with whole pages of stored keys `[..., page_size, head_dim]` float32 and returns a tuple of
    `vectors` arrays `[..., head_dim]`. They are rounded once, to the dtype of the pool.

    `score(query, vectors, scale, dot)` returns the score of every page, the larger the better. `query` is the mean
    query of a group, `vectors` a tuple of what was stored, `scale` that of the logits. `dot(of_query, of_vectors)`
    multiplies and sums over head_dim, in float32, and gives one number a page: its first argument is made of `query`
    alone, its second of `vectors` alone, number by number, for how the two lie in memory is each code path's own.

    Both are written in jax.numpy and are all that the reference needs. `kernels` holds the code of backends that have
    kernels for the kind. Raises ValueError for a name that is no word of letters, digits and _, or is `none`, for less
    than one vector, and for code that cannot be called.
    """

    name: str
    vectors: int
    make: Callable[..., Any]
    score: Callable[..., Any]
    kernels: Mapping[str, KernelCode] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        where = f"summary {self.name!r:.60}"
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name) or self.name in RESERVED:
            raise ValueError(f"{where}: a name is a word of letters, digits and _, other than {', '.join(RESERVED)}")
        if not isinstance(self.vectors, int) or isinstance(self.vectors, bool) or self.vectors < 1:
            raise ValueError(f"{where}: vectors is a whole number of at least 1, not {self.vectors!r:.60}")
        for field, code in (("make", self.make), ("score", self.score)):
            if not callable(code):
                raise ValueError(f"{where}: {field} is a function, not {code!r:.60}")
        for backend, code in self.kernels.items():
            if not isinstance(code, KernelCode):
                raise ValueError(f"{where}: kernels[{backend!r}] is a KernelCode, not {code!r:.60}")

    @property
    def axis(self) -> tuple[int, ...]:
        """The axis of a pool `[kv_heads, num_pages, *axis, head_dim]` that holds the vectors: none for one of them."""
        return () if self.vectors == 1 else (self.vectors,)
