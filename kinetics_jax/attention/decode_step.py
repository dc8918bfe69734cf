"""What an attention policy is given of one decode step in one layer, and the ops it can call."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import kinetics_kernels as kernels
from jaxtyping import Array, Bool, Float, Int, Key
from kinetics_kernels.backends import Backend


@dataclasses.dataclass(frozen=True)
class DecodeOps:
    """The kernels of a decode step, jitted: traced and lowered once for all layers, not once for each."""

    append_kv: Callable[..., Any]
    select_pages: Callable[..., Any]
    paged_decode: Callable[..., Any]

    @classmethod
    def on(cls, backend: Backend | None) -> DecodeOps:
        """The ops of a backend; None: what suits the device."""

        def jitted(op: Callable[..., Any], *static: str) -> Callable[..., Any]:
            return jax.jit(functools.partial(op, backend=backend), static_argnames=static)

        choice = ("page_size", "pages", "sink_pages", "recent_pages", "summary")
        return cls(
            append_kv=jitted(kernels.append_kv, "summary"),
            select_pages=jitted(kernels.select_pages, *choice),
            paged_decode=jitted(kernels.paged_decode),
        )


PageTables = Int[Array, "batch kv_heads pages"]  # physical ids in logical order, -1 unused
Covered = Int[Array, "batch kv_heads"]  # tokens that a table's pages hold


@dataclasses.dataclass(frozen=True)
class DecodeStep:
    """One decode step of a batch in one sparse layer, after the step's K and V were appended.

    On a mesh all of it is one device's part. `queries` are those of its heads; `group_queries` those of all heads that
    share its KV heads, by which pages are chosen: more, where several devices hold copies of one KV head (its own begin
    at `first_in_group`). `keys` are the rows' random keys for this token, None unless the policy `needs_keys`;
    `carried` is what the policy carries, arrays `[kv_heads, batch, …]` by name.
    """

    layer: int
    queries: Float[Array, "batch heads head_dim"]
    group_queries: Float[Array, "batch group_heads head_dim"]
    k_pages: Float[Array, "kv_heads num_pages page_size head_dim"]
    v_pages: Float[Array, "kv_heads num_pages page_size head_dim"]
    summaries: jax.Array | None  # [kv_heads, num_pages, head_dim], or [kv_heads, num_pages, vectors, head_dim]
    summary: str  # the kind of `summaries`
    page_table: Int[Array, "batch max_pages"]  # physical ids, -1 unused
    lengths: Int[Array, " batch"]  # tokens, the step's own included; 0: an idle row
    keys: Key[Array, " batch"] | None
    carried: dict[str, jax.Array]
    first_kv_head: jax.Array | int
    first_in_group: jax.Array | int
    ops: DecodeOps

    @property
    def batch(self) -> int:
        """Rows, idle ones included."""
        return self.page_table.shape[0]

    @property
    def kv_heads(self) -> int:
        """KV heads of this device."""
        return self.k_pages.shape[0]

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self.k_pages.shape[2]

    @property
    def max_pages(self) -> int:
        """The page table's width: pages that a sequence can have."""
        return self.page_table.shape[1]

    def attend_all(self) -> Float[Array, "batch heads head_dim"]:
        """Attention to every token of every row."""
        return self.ops.paged_decode(self.queries, self.k_pages, self.v_pages, self.page_table, self.lengths)[0]

    def attend_pages(self, tables: PageTables, lengths: Covered) -> Float[Array, "batch heads head_dim"]:
        """Attention to the pages of a table for every KV head, as `select_pages` and `choose_pages` return them."""
        return self.ops.paged_decode(self.queries, self.k_pages, self.v_pages, tables, lengths)[0]

    def attend_tokens(
        self, logits: Float[Array, "batch group_heads time"], mask: Bool[Array, "batch group_heads time"]
    ) -> Float[Array, "batch heads head_dim"]:
        """Attention to single tokens, true in `mask`; `logits` are those of `token_logits`. On the reference path."""
        heads = self.queries.shape[1]
        logits, mask = (jax.lax.dynamic_slice_in_dim(x, self.first_in_group, heads, axis=1) for x in (logits, mask))
        out = kernels.masked_decode(logits, mask, self.v_pages, self.page_table, self.lengths)[0]
        return out.astype(self.queries.dtype)

    def select_pages(
        self, *, pages: int, sink_pages: int, recent_pages: int, summary: str
    ) -> tuple[PageTables, Covered]:
        """The forced pages and those whose `summary` scores best for each KV head, with the tokens that they cover.

        Raises ValueError if the cache keeps no summaries of this kind in this layer.
        """
        if self.summaries is None or summary != self.summary:
            raise ValueError(
                f"layer {self.layer} of the cache has no {summary} summaries; make it with empty_cache(policy, …)"
            )
        return self.ops.select_pages(
            self.group_queries,
            self.summaries,
            self.page_table,
            self.lengths,
            page_size=self.page_size,
            pages=pages,
            sink_pages=sink_pages,
            recent_pages=recent_pages,
            summary=summary,
        )

    def choose_pages(
        self, scores: Float[Array, "batch kv_heads max_pages"], *, pages: int, sink_pages: int, recent_pages: int
    ) -> tuple[PageTables, Covered]:
        """The forced pages and those with the largest of any `scores`, with the tokens that they cover."""
        return kernels.choose_pages(
            scores,
            self.page_table,
            self.lengths,
            page_size=self.page_size,
            pages=pages,
            sink_pages=sink_pages,
            recent_pages=recent_pages,
        )

    def token_logits(self) -> Float[Array, "batch group_heads time"]:
        """Every logit of every query that shares the KV heads, float32, as `kinetics_kernels.token_logits`."""
        return kernels.token_logits(self.group_queries, self.k_pages, self.page_table, self.lengths)
