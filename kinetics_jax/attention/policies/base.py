"""What every attention policy is: frozen settings with one spelling, a decode rule, and counts of what it reads.

A policy says what the decode steps of a sequence attend to; prefill is dense under every policy. It is one file: no
other module asks which policy it has. docs/attention.md explains the terms, CONTRIBUTING.md how to add one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from kinetics_jax.attention.policies.counts import (
    Counts,
    PublishedCounts,
    StepCounts,
    dense_counts,
    filled,
    sum_steps,
)
from kinetics_jax.attention.policies.options import PolicyError as PolicyError
from kinetics_jax.attention.policies.options import check_settings as check_settings
from kinetics_jax.attention.policies.options import spell

if TYPE_CHECKING:
    import jax

    from kinetics_jax.attention.decode_step import DecodeStep, Pages

PAGE_SIZE = 16


class AttentionPolicy:
    """Base of all policies, those of this package and those of others (`kj.register_policy`).

    A policy is a frozen dataclass. Its settings are fields of whole numbers, floats, text, switches, or tuples of one
    of the first three (`options.py`).

    Settings every policy has: `page_size`, tokens of a page of the KV cache; `dense_layers`, which attend to
    everything; `budget`, the most tokens that a sparse layer attends to per KV head (0: not fixed).

    A policy must give `kind`, `choose` (or `attend`) and `step_counts` (or `sparse_counts`), or `price = "measured"`.
    The other members have defaults for a policy that keeps no summaries, draws nothing at random and has no formula in
    the `upstream` convention.
    """

    kind: ClassVar[str]  # the name in spellings
    place: ClassVar[int] = 1000  # in lists and figures; one that never changes, for a kind's dashes follow from it
    spelled: ClassVar[tuple[str, ...]] = ()  # options that the spelling always shows
    implied: ClassVar[tuple[str, ...]] = ()  # options that follow from those
    needs_keys: ClassVar[bool] = False  # a decode step needs its rows' random keys
    masks_logits: ClassVar[bool] = False  # computes every logit and masks: exact, and no faster than dense
    # "formula"; "upper bound": what it reads depends on the data, and the formula is the most; "measured": it has none,
    # and its runs are priced by what they counted
    price: ClassVar[str] = "formula"
    ops: ClassVar[
        tuple[str, ...]
    ] = ()  # of kinetics_kernels, which its decode rule calls: what `kinetics doctor` shows
    page_size: int = PAGE_SIZE
    dense_layers: tuple[int, ...] = ()
    budget: int = 0

    def __post_init__(self) -> None:
        check_settings(self)

    # What it needs of the cache.

    @property
    def cache_summary(self) -> str | None:
        """The kind of page summary that the cache keeps in sparse layers: `mean`, `min_max` or `mean_std`."""
        return None

    @property
    def summary_vectors(self) -> int:
        """Vectors of head_dim elements that an engine keeps for a page and KV head."""
        return 0

    # What it carries for each sequence over layers and steps.

    def carried(self, head_dim: int) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """Arrays by name: their shape for a sequence and KV head, and their dtype. All begin as zeros."""
        return {}

    # Its decode rule: what one decode step of a sparse layer attends to, from what `step` offers.

    def choose(self, step: DecodeStep) -> Pages | jax.Array:
        """The pages that each KV head attends to, as the step's `choose_pages`, `select_pages` and `keep_pages` return
        them, or a table `[batch, kv_heads, pages]` of physical ids in the order of the text, -1 behind the last. The
        step is then attended to and counted.
        """
        raise NotImplementedError(f"{self.kind} has no decode rule: write choose(step)")

    def choose_and_carry(self, step: DecodeStep) -> tuple[Pages | jax.Array, dict[str, jax.Array]]:
        """`choose`, and what `step.carried` becomes, of the same shapes: the next sparse layer is given it, after the
        last one the next step's first. A policy that carries something writes this instead.
        """
        return self.choose(step), step.carried

    def attend(self, step: DecodeStep) -> jax.Array:
        """Attention `[batch, heads, head_dim]`, for a policy that does more than choose pages."""
        return self.attend_and_carry(step)[0]

    def attend_and_carry(self, step: DecodeStep) -> tuple[jax.Array, dict[str, jax.Array]]:
        """`attend`, and what `step.carried` becomes, for such a policy that carries something."""
        if type(self).attend is not AttentionPolicy.attend:
            return self.attend(step), step.carried
        chosen, carried = self.choose_and_carry(step)
        return step.attend_chosen(chosen), carried

    # What it costs, in counts per KV head of one sparse layer.

    def step_counts(self, lengths: np.ndarray) -> StepCounts:
        """What one step attends to and reads at each of `lengths` (float64 whole numbers, own token included).

        A policy writes this or `sparse_counts`; each has the other as its default.
        """
        if type(self).sparse_counts is AttentionPolicy.sparse_counts:
            raise PolicyError(no_formula(self))
        counts = self.sparse_counts(lengths - 1, np.ones_like(lengths))
        return StepCounts(*(share.total for share in counts[1:]))

    def sparse_counts(self, prompt: np.ndarray, steps: np.ndarray) -> Counts:
        """`step_counts` summed over the decode steps of trials. Override it with a closed form for speed, or where
        trials of a prompt can share more than the KV of steps that attend to everything.
        """
        return sum_steps(self.step_counts, prompt, steps)

    def paper_counts(self, prompt: np.ndarray, output: np.ndarray) -> PublishedCounts:
        """Its own counts, in every layer. A policy for which equations (8) and (9) were published takes those
        (`budget_filled`).
        """
        counts = self.sparse_counts(prompt, output)
        attended = counts.dense.total + counts.forced.total + counts.chosen.total
        return PublishedCounts(attended, vectors=counts.vectors.total, vectors_read=counts.vectors.total)

    def budget_filled(self, prompt: np.ndarray, output: np.ndarray) -> PublishedCounts:
        """Equations (8) and (9), integral in length: the budget's tokens once they are there, before that all."""
        return PublishedCounts(filled(self.published_budget, prompt, output))

    def upstream_counts(self, prompt: np.ndarray, output: np.ndarray, trials: np.ndarray) -> PublishedCounts | None:
        """The formulas of the paper's published code, defects included; None where it has none."""
        return None

    @property
    def nominal_budget(self) -> int:
        """The budget that tables and figures show, in tokens; 0 for none."""
        return self.budget

    @property
    def published_budget(self) -> float:
        """B of the published equations, in tokens."""
        return float(self.nominal_budget)

    # The rest is the same for all.

    def is_dense(self, layer: int) -> bool:
        """Whether a layer attends to everything."""
        return layer in self.dense_layers

    def sparse_layers(self, num_layers: int) -> tuple[int, ...]:
        """The layers of a model that do not."""
        return tuple(layer for layer in range(num_layers) if not self.is_dense(layer))

    def searches(self, layer: int) -> bool:
        """Whether a layer reads page summaries or compares scores itself: every sparse one does."""
        return not self.is_dense(layer)

    def missing_layer(self, num_layers: int) -> int | None:
        """A layer in `dense_layers` that a model does not have, or None."""
        return next((layer for layer in self.dense_layers if layer >= num_layers), None)

    def counts(self, prompt: np.ndarray, steps: np.ndarray, num_layers: int) -> Counts:
        """Sums over the decode steps and layers of a model, per KV head.

        `prompt` and `steps` are float64 whole numbers or arrays of them that broadcast; so are the counts.
        """
        sparse, searching = len(self.sparse_layers(num_layers)), sum(map(self.searches, range(num_layers)))
        dense = dense_counts(prompt, steps).times(num_layers - sparse)
        if not sparse:
            return dense
        one = self.sparse_counts(prompt, steps)
        every = dense.plus(one.times(sparse))
        return every._replace(scores=one.scores.times(searching), vectors=one.vectors.times(searching))

    def with_page_size(self, page_size: int) -> AttentionPolicy:
        """The policy on pages of another size; a budget counted in tokens stays.

        Raises PolicyError if its pages are always of one size, or if the size does not divide the budget.
        """
        if page_size == self.page_size:
            return self
        settings: Any = self
        if "page_size" not in {field.name for field in dataclasses.fields(settings)}:
            raise PolicyError(f"{self}: its pages hold {self.page_size} tokens; leave --page-size out")
        return dataclasses.replace(settings, page_size=page_size)

    def __str__(self) -> str:
        """The canonical spelling: `spelled` options, and others that differ from their default.

        `registry.parse_policy` reads it back to an equal policy.
        """
        settings: Any = self
        shown = {name: getattr(self, name) for name in self.spelled}
        for field in dataclasses.fields(settings):
            value = getattr(self, field.name)
            if field.name not in (*self.spelled, *self.implied) and value != field.default:
                shown[field.name] = value
        options = ",".join(f"{name}={spell(value)}" for name, value in shown.items())
        return f"{self.kind}:{options}" if options else self.kind


def no_formula(policy: AttentionPolicy) -> str:
    """Why a policy that is priced as measured has no cost before it was sampled."""
    return (
        f"{policy} has no formula of its cost ({policy.kind} is priced as measured): sample it first (kinetics "
        "sample), then price its run folders, which hold what was counted (kinetics frontier, kinetics plan)"
    )
