"""How a choice of backends is spelled: `triton` for all ops, `append_kv=xla,paged_decode=triton` for some of them.

A kernel's own options follow it: `paged_decode=triton:splits=4`. An op that a spelling does not name runs on what suits
the device, or, where one entry names no op, on that: `triton,append_kv=xla`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from kinetics_kernels.kernel_files import KERNEL_OPS

Backend = str  # a spelling, as above
WORDS = {"true": True, "false": False, "none": None}


@dataclasses.dataclass(frozen=True)
class Choice:
    """A backend by name, and the options that its kernel is called with."""

    backend: str
    options: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        named = {value: word for word, value in WORDS.items()}
        words = (f":{name}={named[value] if value is None or value is True or value is False else value}"
                 for name, value in self.options)  # fmt: skip
        return self.backend + "".join(words)


def choice_for(op: str, spelling: Backend | None) -> Choice | None:
    """What a spelling chooses for an op; None: what suits the device. Raises ValueError for what is no spelling."""
    if spelling is None:
        return None
    chosen = parsed(spelling)
    return chosen.get(op, chosen.get(""))


def parsed(spelling: Backend) -> Mapping[str, Choice]:
    """The choices of a spelling by op, that for all others by "". Raises ValueError for what is no spelling."""
    if not isinstance(spelling, str):
        raise ValueError(
            f"backend {spelling!r:.100} is not a text, as in 'triton' or 'append_kv=xla,paged_decode=triton'"
        )
    return _parsed(spelling)


@functools.cache
def _parsed(spelling: str) -> Mapping[str, Choice]:
    where, chosen = f"backend {spelling!r:.100}", {}
    for entry in spelling.split(","):
        first, *options = entry.strip().split(":")
        op, equals, backend = (part.strip() for part in first.rpartition("="))
        if not backend or (equals and not op):
            raise ValueError(f"{where}: {entry.strip()!r:.60} is not NAME or OP=NAME, as in paged_decode=triton")
        if op and op not in KERNEL_OPS:
            raise ValueError(f"{where}: {op!r:.60} is no op with a choice of backends ({', '.join(KERNEL_OPS)})")
        if op in chosen:
            raise ValueError(f"{where}: {op or 'a backend for all ops'} is given twice")
        chosen[op] = Choice(backend, tuple(option(each, where) for each in options))
    return chosen


def option(text: str, where: str) -> tuple[str, Any]:
    """`splits=4` as a name and a value: a number, true, false, none or text. Raises ValueError for others."""
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name.isidentifier() and equals and value):
        raise ValueError(f"{where}: option {text!r:.60} is not NAME=VALUE, as in splits=4")
    if value in WORDS:
        return name, WORDS[value]
    for number in (int, float):
        try:
            return name, number(value)
        except ValueError:
            continue
    return name, value
