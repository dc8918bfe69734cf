"""What an attention policy is given of one decode step in one layer, and the ops it can call."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import kinetics_kernels as kernels
from jaxtyping import Array, Bool, Float, Int, Key
from kinetics_kernels.backends import Backend
from kinetics_kernels.summaries.registry import summary_kind

from kinetics_jax.attention.policies.base import AttentionPolicy, PolicyError
from kinetics_jax.attention.reads import Tally, check_pages


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


class Pages(NamedTuple):
    """The pages that each KV head of each row attends to, and the tokens that they cover."""

    tables: PageTables
    covered: Covered


@dataclasses.dataclass(frozen=True)
class DecodeStep:
    """One decode step of a batch in one sparse layer, after the step's K and V were appended.

    On a mesh all of it is one device's part. `queries` are those of its heads; `group_queries` those of all heads that
    share its KV heads, by which pages are chosen: more, where several devices hold copies of one KV head (its own begin
    at `first_in_group`). `keys` are the rows' random keys for this token, None unless the policy `needs_keys`;
    `carried` is what the policy carries, arrays `[kv_heads, batch, …]` by name.

    What attends or reads summaries is counted (`tally`), for the record of every sample; `count` is for a policy that
    calls kernels itself. Ops are called where the step is traced, not inside `lax.cond`, `scan` or `vmap`.
    """

    policy: AttentionPolicy
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
    tally: Tally

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

    @property
    def pages_in_use(self) -> Int[Array, " batch"]:
        """Pages that hold a row's tokens; the last of them is the current one, which may be partial."""
        return -(-self.lengths // self.page_size)

    @property
    def mean_query(self) -> Float[Array, "batch kv_heads head_dim"]:
        """The mean over each GQA group of queries, float32."""
        grouped = self.group_queries.astype(jnp.float32).reshape(self.batch, self.kv_heads, -1, self.queries.shape[-1])
        return jnp.mean(grouped, axis=2)

    # Scores of pages, and choices by them.

    def score_pages(self) -> Float[Array, "batch kv_heads max_pages"]:
        """The scores of the policy's own page summaries for the group's mean query, float32, by logical page.

        Counted as a read of every full page's summary in rows beyond the policy's budget: others attend to everything.
        Only full pages have a summary; the current one is to be forced. Raises ValueError where the cache keeps none.
        """
        if self.policy.cache_summary is None:
            raise PolicyError(
                f"{self.policy}: in layer {self.layer} it scores page summaries, and its cache keeps none; say which: "
                'cache_summary = "mean", summary_vectors = 1'
            )
        scores = kernels.score_pages(
            self.group_queries, self._summaries(self.summary), self.page_table, summary=self.summary
        )
        self._count_search(self.policy.budget, self.summary)
        return scores

    def select_pages(self, *, pages: int, sink_pages: int, recent_pages: int, summary: str) -> Pages:
        """The forced pages and those whose `summary` scores best for each KV head, with the tokens that they cover:
        `score_pages` and `choose_pages` in one kernel.

        Raises PolicyError if the cache keeps no summaries of this kind in this layer, or if nothing is left to choose.
        """
        self._some_choice(pages, sink_pages, recent_pages)
        chosen = self.ops.select_pages(
            self.group_queries,
            self._summaries(summary),
            self.page_table,
            self.lengths,
            page_size=self.page_size,
            pages=pages,
            sink_pages=sink_pages,
            recent_pages=recent_pages,
            summary=summary,
        )
        self._count_search(pages * self.page_size, summary)
        return self._trusted(*chosen)

    def choose_pages(self, scores: Any, *, pages: int, sink_pages: int, recent_pages: int) -> Pages:
        """The forced pages and those with the largest of any `scores [batch, kv_heads, max_pages]`, by logical page,
        with the tokens that they cover.

        The largest win, ties go to the lower page. NaN for a page that could be chosen is the policy's fault. Raises
        PolicyError for scores of another shape, and if nothing is left to choose.
        """
        self._by_page("scores", scores, "f")
        self._some_choice(pages, sink_pages, recent_pages)
        count, logical = self.pages_in_use[:, None], jnp.arange(self.max_pages, dtype=jnp.int32)[None]
        free = (logical >= sink_pages) & (logical < count - recent_pages)
        self.tally.blame(1, jnp.any(jnp.isnan(scores) & free[:, None], axis=-1))
        chosen = kernels.choose_pages(
            scores,
            self.page_table,
            self.lengths,
            page_size=self.page_size,
            pages=pages,
            sink_pages=sink_pages,
            recent_pages=recent_pages,
        )
        return self._trusted(*chosen)

    def keep_pages(self, mask: Any, *, at_most: int) -> Pages:
        """The pages where `mask [batch, kv_heads, max_pages]` is true, by logical page, of those in use: any number of
        them up to `at_most`, which may differ between rows and KV heads. A mask of more pages is the policy's fault.
        Raises PolicyError for a mask of another shape.
        """
        self._by_page("a mask", mask, "b")
        if at_most < 1:
            raise PolicyError(f"{self.tally.where} keep_pages: at_most must be at least 1, got {at_most}")
        logical = jnp.arange(self.max_pages, dtype=jnp.int32)[None, None]
        mask = mask & (logical < self.pages_in_use[:, None, None])
        self.tally.blame(5, jnp.sum(mask, axis=-1, dtype=jnp.int32) > at_most)
        order = jnp.sort(jnp.where(mask, logical, self.max_pages), axis=-1)[..., : min(at_most, self.max_pages)]
        rows = jnp.arange(self.batch, dtype=jnp.int32)[:, None, None]
        ids = self.page_table[rows, jnp.minimum(order, self.max_pages - 1)]
        tables = jnp.where(order < self.max_pages, ids, -1)
        return self._trusted(tables, self.cover(tables))

    def reuse_pages(self, tables: PageTables, covered: Covered) -> Pages:
        """Pages that an op named in an earlier layer of the same step, for a policy that carries them: not checked."""
        return self._trusted(tables, covered)

    def cover(self, tables: PageTables) -> Covered:
        """The tokens that the pages of a table hold; those behind the current one hold none."""
        last = jnp.maximum(self.pages_in_use - 1, 0)
        current = jnp.take_along_axis(self.page_table, last[:, None], axis=1)[..., None]
        here = tables == current
        there = jnp.any(here, axis=-1)
        used = jnp.where(there, jnp.argmax(here, axis=-1) + 1, jnp.sum(tables >= 0, axis=-1)).astype(jnp.int32)
        empty = (last + 1) * self.page_size - self.lengths  # places of the current page without a token
        return used * self.page_size - jnp.where(there, empty[:, None], 0)

    # Attention, which is counted.

    def attend_all(self) -> Float[Array, "batch heads head_dim"]:
        """Attention to every token of every row."""
        self.tally.add(tokens=self.lengths[:, None])
        return self.ops.paged_decode(self.queries, self.k_pages, self.v_pages, self.page_table, self.lengths)[0]

    def paged_decode(
        self, tables: PageTables, covered: Covered
    ) -> tuple[Float[Array, "batch heads head_dim"], Float[Array, "batch heads"]]:
        """Attention to the pages of a table for every KV head, and its log-sum-exps, with which `merge_partials` of
        kinetics_kernels merges it with another.
        """
        if not self.tally.knows(tables, covered):
            check_pages(self.tally, tables, covered, self.page_table, self.lengths, self.page_size)
        self.tally.add(tokens=covered)
        return self.ops.paged_decode(self.queries, self.k_pages, self.v_pages, tables, covered)

    def paged_decode_each(
        self, tables: PageTables, covered: Covered
    ) -> tuple[Float[Array, "pages batch heads head_dim"], Float[Array, "pages batch heads"]]:
        """Attention to each page of a table alone, and its log-sum-exps, to be merged with weights (`merge_partials` of
        kinetics_kernels). All pages are full ones: a page is one more row of the batch. -1 names none: 0 and -inf.
        """
        if not self.tally.knows(tables, covered):
            check_pages(self.tally, tables, covered, self.page_table, self.lengths, self.page_size)
        self.tally.add(tokens=covered)
        many = tables.shape[2]
        rows = jnp.moveaxis(tables, 2, 0).reshape(many * self.batch, self.kv_heads)
        outs, lses = self.ops.paged_decode(
            jnp.tile(self.queries, (many, 1, 1)),
            self.k_pages,
            self.v_pages,
            rows[..., None],
            jnp.where(rows >= 0, jnp.int32(self.page_size), 0),
        )
        return outs.reshape(many, *self.queries.shape), lses.reshape(many, *self.queries.shape[:2])

    def attend_pages(self, tables: PageTables, covered: Covered) -> Float[Array, "batch heads head_dim"]:
        """Attention to the pages of a table for every KV head, as `select_pages` and `choose_pages` return them."""
        return self.paged_decode(tables, covered)[0]

    def attend_chosen(self, chosen: Any) -> Float[Array, "batch heads head_dim"]:
        """Attention to what a policy's `choose` returned. Raises PolicyError for what is no pages."""
        pair = isinstance(chosen, tuple) and len(chosen) == 2
        tables: Any = chosen[0] if pair else chosen
        covered: Any = chosen[1] if pair else None

        def fits(value: Any, ndim: int) -> bool:
            shaped = isinstance(value, jax.Array) and value.shape[:2] == (self.batch, self.kv_heads)
            return shaped and value.ndim == ndim and jnp.issubdtype(value.dtype, jnp.integer)

        if not (fits(tables, 3) and (covered is None or fits(covered, 2))):
            raise PolicyError(
                f"{self.policy}: in layer {self.layer} choose must return pages, as step.choose_pages does, or whole "
                f"numbers [{self.batch}, {self.kv_heads}, pages]; it returns {described(tables)}"
            )
        return self.attend_pages(tables, self.cover(tables) if covered is None else covered)

    def token_logits(self) -> Float[Array, "batch group_heads time"]:
        """Every logit of every query that shares the KV heads, float32, as `kinetics_kernels.token_logits`: an oracle's
        search, which is not counted.
        """
        return kernels.token_logits(self.group_queries, self.k_pages, self.page_table, self.lengths)

    def attend_tokens(
        self, logits: Float[Array, "batch group_heads time"], mask: Bool[Array, "batch group_heads time"]
    ) -> Float[Array, "batch heads head_dim"]:
        """Attention to single tokens, true in `mask`; `logits` are those of `token_logits`. On the reference path.

        A token counts for a KV head where any query of its group attends to it.
        """
        there = jnp.arange(mask.shape[-1], dtype=jnp.int32)[None] < self.lengths[:, None]
        of_group = jnp.any(mask.reshape(self.batch, self.kv_heads, -1, mask.shape[-1]), axis=2) & there[:, None]
        self.tally.add(tokens=jnp.sum(of_group, axis=-1, dtype=jnp.int32))
        heads = self.queries.shape[1]
        logits, mask = (jax.lax.dynamic_slice_in_dim(x, self.first_in_group, heads, axis=1) for x in (logits, mask))
        out = kernels.masked_decode(logits, mask, self.v_pages, self.page_table, self.lengths)[0]
        return out.astype(self.queries.dtype)

    def count(
        self, tokens: Int[Array, "batch kv_heads"] | None = None, vectors: Int[Array, "batch kv_heads"] | None = None
    ) -> None:
        """Counts what a policy reads without the step's own ops: tokens attended, summary vectors of head_dim."""
        self.tally.add(tokens, vectors)

    def own_summaries(self) -> jax.Array:
        """The summaries of the policy's own kind, for a policy that scores pages itself; it counts what it reads.

        Raises PolicyError where the cache keeps none.
        """
        return self._summaries(self.policy.cache_summary or "mean")

    def _summaries(self, summary: str) -> jax.Array:
        if self.summaries is None or summary != self.summary:
            keeps = "none" if self.summaries is None else f"those of kind {self.summary}"
            raise PolicyError(
                f"{self.tally.where} it reads {summary} summaries, and its cache keeps {keeps}; say which: "
                f'cache_summary = "{summary}"'
            )
        return self.summaries

    def _count_search(self, budget: int, summary: str) -> None:
        """Every full page's vectors, in rows of more than `budget` tokens."""
        read = jnp.where(self.lengths > budget, self.lengths // self.page_size, 0)
        self.tally.add(vectors=read[:, None] * summary_kind(summary).vectors)

    def _some_choice(self, pages: int, sink_pages: int, recent_pages: int) -> None:
        if recent_pages < 1 or sink_pages < 0 or pages <= sink_pages + recent_pages:
            raise PolicyError(
                f"{self.tally.where} it chooses with pages={pages}, sink_pages={sink_pages}, "
                f"recent_pages={recent_pages}; recent_pages must be at least 1, and pages more than both together"
            )

    def _by_page(self, what: str, value: object, kind: str) -> None:
        shape = (self.batch, self.kv_heads, self.max_pages)
        wanted = {"f": jnp.floating, "b": jnp.bool_}[kind]
        if not (isinstance(value, jax.Array) and value.shape == shape and jnp.issubdtype(value.dtype, wanted)):
            raise PolicyError(
                f"{self.policy}: in layer {self.layer} it gives {what} of {described(value)}; it must be "
                f"{'floats' if kind == 'f' else 'bools'} {list(shape)}: batch, KV heads, pages"
            )

    def _trusted(self, tables: PageTables, covered: Covered) -> Pages:
        self.tally.trust(tables, covered)
        return Pages(tables, covered)


def described(value: object) -> str:
    """`float32[4, 8, 16]`, or what a value is instead of an array."""
    if isinstance(value, jax.Array):
        return f"{value.dtype}{list(value.shape)}"
    return f"a {type(value).__name__}"
