"""Policies of installed packages, by the entry points that they declare; none is imported before it is asked for.

[project.entry-points."kinetics_jax.policies"]
my_kind = "my_package.my_module:MyPolicy"
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

from kinetics_jax.attention.policies.options import PolicyError
from kinetics_jax.errors import shown

GROUP = "kinetics_jax.policies"


def declared() -> dict[str, str]:
    """The kinds that installed packages declare, and what each names, in words; nothing is imported."""
    entries = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value))
    found: dict[str, list[str]] = {}
    for entry in entries:
        found.setdefault(entry.name, []).append(f"{entry.value} of {_package(entry)}")
    return {name: " and ".join(dict.fromkeys(words)) for name, words in found.items()}


def load(kind: str, where: str) -> tuple[Any, str] | None:
    """What the entry point of a kind names, and the entry point in words; None where no package declares it.

    Raises PolicyError, beginning with `where`, where two packages declare different ones, or it cannot be imported.
    """
    entries = {entry.value: entry for entry in importlib.metadata.entry_points(group=GROUP, name=kind)}
    if not entries:
        return None
    if len(entries) > 1:
        who = " and ".join(f"{entry.value} of {_package(entry)}" for _, entry in sorted(entries.items()))
        raise PolicyError(f"{where}: two packages declare it ({shown(who, 200)}); uninstall one of them")
    entry = next(iter(entries.values()))
    words = f"the entry point {entry.name} = {shown(entry.value, 100)!r} of {_package(entry)}"
    try:
        return entry.load(), words
    except Exception as error:  # whatever a module does while it is imported
        why = f"{type(error).__name__}: {shown(str(error), 200)}"
        raise PolicyError(f"{where}: {words} cannot be loaded ({why}); mend or uninstall it") from error


def _package(entry: importlib.metadata.EntryPoint) -> str:
    return f"the package {entry.dist.name}" if entry.dist else "a package"
