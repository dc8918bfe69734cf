"""What every attention policy is: frozen settings with one spelling.

A policy says what the decode steps of a sequence attend to. Prefill is dense under every policy.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from kinetics_jax.errors import UserError
from kinetics_jax.settings import MAX_TOKENS

PAGE_SIZE = 16


class PolicyError(UserError):
    """An attention policy that makes no sense; the message names the option, its value and the cure."""


class AttentionPolicy:
    """Base of all policies. Subclasses are frozen dataclasses of whole numbers, text and `dense_layers`.

    `kind` is the policy's name in spellings; `spelled` names the options that its spelling always shows. `page_size` is
    the tokens of a page of the KV cache, a setting or the default. Layers in `dense_layers` attend to everything.
    """

    kind: ClassVar[str]
    spelled: ClassVar[tuple[str, ...]] = ()
    implied: ClassVar[tuple[str, ...]] = ()  # options that follow from those in `spelled`
    page_size: int = PAGE_SIZE
    dense_layers: tuple[int, ...] = ()

    def __str__(self) -> str:
        """The canonical spelling: `spelled` options, and others that differ from their default.

        `registry.parse_policy` reads it back to an equal policy.
        """
        shown = {name: getattr(self, name) for name in self.spelled}
        for field in dataclasses.fields(self):  # pyright: ignore[reportArgumentType]
            value = getattr(self, field.name)
            if field.name not in (*self.spelled, *self.implied) and value != field.default:
                shown[field.name] = value
        options = ",".join(f"{name}={_spell(value)}" for name, value in shown.items())
        return f"{self.kind}:{options}" if options else self.kind


def check_settings(policy: Any) -> None:
    """Sorts a policy's `dense_layers`, which are a set. Raises PolicyError for a number beyond any context."""
    for field in dataclasses.fields(policy):
        value = getattr(policy, field.name)
        if isinstance(value, int) and value > MAX_TOKENS:
            raise PolicyError(f"{policy.kind}: {field.name} must be at most {MAX_TOKENS}, got {value}")
    if any(layer < 0 for layer in policy.dense_layers):
        raise PolicyError(f"{policy.kind}: dense_layers counts from 0, got {policy.dense_layers}")
    object.__setattr__(policy, "dense_layers", tuple(sorted(set(policy.dense_layers))))


def _spell(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(map(str, value)) or "none"
    return str(value)
