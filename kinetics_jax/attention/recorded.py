"""A policy that notes which pages each sparse layer attends to, and how much of dense attention's weight they hold."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from kinetics_jax.attention.decode_step import Covered, DecodeStep, PageTables
from kinetics_jax.attention.policies.base import AttentionPolicy, PolicyError

PAGES, MASS = "recorded_pages", "recorded_mass"  # of a layer, behind which its number stands


@dataclasses.dataclass(frozen=True)
class RecordedStep(DecodeStep):
    """A decode step that notes, while it is traced, the tokens that its ops attend to: `seen`, masks `[batch,
    group_heads, time]`.
    """

    seen: list[jax.Array] = dataclasses.field(default_factory=list)

    def attend_all(self) -> jax.Array:
        """As `DecodeStep.attend_all`."""
        heads = self.group_queries.shape[1]
        self.seen.append(jnp.ones((self.batch, heads, self.max_pages * self.page_size), bool))
        return super().attend_all()

    def paged_decode(self, tables: PageTables, covered: Covered) -> tuple[jax.Array, jax.Array]:
        """As `DecodeStep.paged_decode`."""
        self._note(tables)
        return super().paged_decode(tables, covered)

    def paged_decode_each(self, tables: PageTables, covered: Covered) -> tuple[jax.Array, jax.Array]:
        """As `DecodeStep.paged_decode_each`."""
        self._note(tables)
        return super().paged_decode_each(tables, covered)

    def _note(self, tables: PageTables) -> None:
        own = self.page_table[:, None, :, None]
        chosen = jnp.any((own == tables[:, :, None]) & (own >= 0), axis=-1)  # [batch, kv_heads, max_pages]
        of_heads = jnp.repeat(chosen, self.group_queries.shape[1] // self.kv_heads, axis=1)
        self.seen.append(jnp.repeat(of_heads, self.page_size, axis=2))

    def attend_tokens(self, logits: jax.Array, mask: jax.Array) -> jax.Array:
        """As `DecodeStep.attend_tokens`."""
        self.seen.append(mask)
        return super().attend_tokens(logits, mask)

    def recorded(self) -> tuple[Bool[Array, "kv_heads batch max_pages"], Float[Array, "kv_heads batch"]]:
        """The pages with a token that was attended to, by logical page, and the mass of the tokens attended to.

        The mass is the weight of these tokens in a softmax over all tokens of the row, by the step's own queries and
        keys, in the mean over the query heads of a KV head.
        """
        logits = self.token_logits()
        mask = self.seen[0] & (logits > -jnp.inf)
        for other in self.seen[1:]:
            mask |= other & (logits > -jnp.inf)
        weights = jnp.where(mask, jnp.exp(logits - jax.nn.logsumexp(logits, axis=-1, keepdims=True)), 0)
        mass = jnp.sum(weights, axis=-1).reshape(self.batch, self.kv_heads, -1).mean(axis=-1)
        pages = jnp.any(mask.reshape(self.batch, self.kv_heads, -1, self.max_pages, self.page_size), axis=(2, 4))
        idle = self.lengths == 0
        return jnp.swapaxes(pages, 0, 1), jnp.where(idle[:, None], 0, mass).T


@dataclasses.dataclass(frozen=True)
class Recorded(AttentionPolicy):
    """`policy`, with a record of its last step in what it carries: for every sparse layer of `num_layers` its pages,
    `[kv_heads, rows, max_pages]`, and their mass, `[kv_heads, rows]` (`RecordedStep.recorded`).
    """

    policy: AttentionPolicy
    num_layers: int
    max_pages: int

    kind: ClassVar[str] = "recorded"

    def __post_init__(self) -> None:
        for name in ("page_size", "dense_layers", "budget"):  # settings that the engine reads off a policy
            object.__setattr__(self, name, getattr(self.policy, name))

    @property
    def needs_keys(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The policy's."""
        return self.policy.needs_keys

    @property
    def cache_summary(self) -> str | None:
        """The policy's."""
        return self.policy.cache_summary

    def is_dense(self, layer: int) -> bool:
        """The policy's."""
        return self.policy.is_dense(layer)

    def carried(self, head_dim: int) -> Mapping[str, tuple[tuple[int, ...], str]]:
        """The policy's, and the record."""
        record: dict[str, tuple[tuple[int, ...], str]] = {}
        for layer in self.sparse_layers(self.num_layers):
            record |= {f"{PAGES} {layer}": ((self.max_pages,), "bool"), f"{MASS} {layer}": ((), "float32")}
        return {**self.policy.carried(head_dim), **record}

    def attend_and_carry(self, step: DecodeStep) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The policy's, and the record of this layer. Raises PolicyError for a policy whose reads nobody sees."""
        own = self.policy.carried(step.queries.shape[-1])
        fields: dict[str, Any] = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
        fields |= {"policy": self.policy, "carried": {name: step.carried[name] for name in own}}
        watched = RecordedStep(**fields)
        out, carried = self.policy.attend_and_carry(watched)
        if not watched.seen:
            raise PolicyError(
                f"{self.policy}: which pages it attends to is not known, since it calls kernels itself; call the "
                "step's ops (step.paged_decode, step.attend_tokens) instead"
            )
        pages, mass = watched.recorded()
        record = {f"{PAGES} {step.layer}": pages, f"{MASS} {step.layer}": mass}
        return out, {**step.carried, **carried, **record}

    def __str__(self) -> str:
        return str(self.policy)
