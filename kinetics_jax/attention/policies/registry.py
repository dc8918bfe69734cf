"""All attention policies by name, and the one parser of their spellings.

Every module of this folder that defines a policy is found by itself: a new file needs no entry here.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from typing import Any

from kinetics_jax.attention import policies
from kinetics_jax.attention.policies.base import AttentionPolicy, PolicyError


def _policies() -> dict[str, type[AttentionPolicy]]:
    by_kind: dict[str, type[AttentionPolicy]] = {}
    for name in sorted(module.name for module in pkgutil.iter_modules(policies.__path__)):
        if name == "registry":
            continue
        module = importlib.import_module(f"{policies.__name__}.{name}")
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__ and "kind" in vars(value):
                if value.kind in by_kind:
                    raise ValueError(f"two attention policies are called {value.kind}: {by_kind[value.kind]}, {value}")
                by_kind[value.kind] = value
    return {policy.kind: policy for policy in sorted(by_kind.values(), key=lambda policy: (policy.place, policy.kind))}


POLICIES: dict[str, type[AttentionPolicy]] = _policies()


def parse_policy(text: str) -> AttentionPolicy:
    """Reads `dense`, `block_topk:budget=1024,page_size=16`, `block_topk:pages=64,dense_layers=none` …

    `dense_layers` is spelled `none`, `0` or `0+1+2`. Raises PolicyError naming the part that it cannot read.
    """
    kind, _, rest = text.strip().partition(":")
    if kind not in POLICIES:
        raise PolicyError(f"attention {text!r}: {kind!r} is not known (known: {', '.join(POLICIES)})")
    policy = POLICIES[kind]
    known = {field.name: field for field in dataclasses.fields(policy)}  # pyright: ignore[reportArgumentType]
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if name not in known:
            options = f"takes {', '.join(known)}" if known else "takes no options"
            raise PolicyError(f"attention {text!r}: {name!r} is not an option; {kind} {options}")
        if not equals or not value:
            raise PolicyError(f"attention {text!r}: {name} needs a value, as in {name}=…")
        if name in values:
            raise PolicyError(f"attention {text!r}: {name} is given twice")
        values[name] = _read(text, name, value, known[name].type)
    return policy(**values)


def as_policy(attention: Any) -> AttentionPolicy:
    """A policy, or what a spelling names. Raises PolicyError for anything else."""
    if isinstance(attention, str):
        return parse_policy(attention)
    if not isinstance(attention, AttentionPolicy):
        raise PolicyError(f"attention must be a policy or its spelling, as in 'dense', got {attention!r:.60}")
    return attention


def slug(policy: AttentionPolicy) -> str:
    """The spelling as a file name: `block_topk-budget32-page_size2`."""
    return re.sub(r"[:,]", "-", str(policy)).replace("=", "").replace("+", "_")


def _read(text: str, name: str, value: str, kind: Any) -> Any:
    if kind == "str":
        return value
    try:
        if kind == "tuple[int, ...]":
            return () if value == "none" else tuple(int(layer) for layer in value.split("+"))
        return int(value)
    except ValueError as error:
        raise PolicyError(f"attention {text!r}: {name} = {value!r} is not a whole number") from error
