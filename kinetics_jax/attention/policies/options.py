"""Options of a policy: the fields of its dataclass, what they may hold, how they are spelled and read back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from kinetics_jax.errors import UserError, spelled
from kinetics_jax.settings import MAX_TOKENS, real_number, switch, whole_number


class PolicyError(UserError):
    """An attention policy that makes no sense; the message names the option, its value and the cure."""


NONE = "none"  # how an empty tuple is spelled
TUPLES = {"tuple[int, ...]": "int", "tuple[float, ...]": "float", "tuple[str, ...]": "str"}
TYPES = ("int", "float", "bool", "str", *TUPLES)
WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def type_of(field: dataclasses.Field[Any]) -> str:
    """A field's type by name, whether its module postpones annotations or not."""
    return field.type.__name__ if type(field.type) is type else str(field.type)


def check_settings(policy: Any) -> None:
    """Makes a policy's values Python's own and sorts its `dense_layers`, which are a set.

    Raises PolicyError for a value of another type than its field's, a number beyond any context or that is not finite,
    text that a spelling could not hold, and a class without a kind.
    """
    if not isinstance(getattr(policy, "kind", None), str):
        raise PolicyError(f"{type(policy).__qualname__} needs its name in spellings: kind = 'a_name'")
    for field in dataclasses.fields(policy):
        where = f"{policy.kind}: {field.name}"
        kind = type_of(field)
        value: Any = getattr(policy, field.name)
        if kind in TUPLES:
            value = _tuple(value, where, TUPLES[kind])
            if field.name == "dense_layers":
                if min(value, default=0) < 0:
                    raise PolicyError(f"{where} counts from 0, got {min(value)}")
                value = tuple(sorted(set(value)))
        elif kind == "str" and value == "" == field.default and field.name not in policy.spelled:
            pass  # not given: such a one is never spelled
        elif kind in CHECKS:
            value = CHECKS[kind](value, where)
        else:
            raise PolicyError(f"{where} is of type {kind:.60}; options may be {', '.join(TYPES)}")
        if field.name == "page_size" and value < 1:
            raise PolicyError(f"{where} must be at least 1, got {value}")
        if field.name == "budget" and value < 0:
            raise PolicyError(f"{where} must not be negative, got {value}")
        object.__setattr__(policy, field.name, value)
    if (value := _whole(policy.page_size, f"{policy.kind}: page_size")) < 1:  # of the class, where it is no field
        raise PolicyError(f"{policy.kind}: page_size must be at least 1, got {value}")


def _whole(value: Any, where: str) -> int:
    value = whole_number(value, where, PolicyError)
    if value > MAX_TOKENS:
        raise PolicyError(f"{where} must be at most {MAX_TOKENS}, got {spelled(value)}")
    return value


def _number(value: Any, where: str) -> float:
    value = real_number(value, where, PolicyError)
    try:
        value = float(value)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise PolicyError(f"{where} must be a finite number, got {value}")
    return value + 0.0  # -0.0 is 0.0, which is spelled so


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise PolicyError(f"{where} must be text, got {spelled(value, 40)}")
    if not value or value != value.strip() or not value.isprintable() or "," in value:
        raise PolicyError(
            f"{where} must be printable text that is not empty, without a comma and without spaces around it, got "
            f"{spelled(value, 40)}"
        )
    return value


def _switch(value: Any, where: str) -> bool:
    return switch(value, where, PolicyError)


CHECKS: dict[str, Callable[[Any, str], Any]] = {"int": _whole, "float": _number, "str": _text, "bool": _switch}


def _tuple(value: Any, where: str, item: str) -> tuple[Any, ...]:
    if isinstance(value, str) or not hasattr(value, "__iter__"):
        example = "(0, 1)" if item == "int" else "(0.5, 1.0)" if item == "float" else "('a', 'b')"
        raise PolicyError(f"{where} must be a tuple, as in {example}, got {spelled(value, 40)}")
    values = tuple(CHECKS[item](each, f"{where}: an entry") for each in value)
    if odd := [each for each in values if item == "str" and (each == NONE or "+" in each)]:
        raise PolicyError(f"{where}: an entry must not be {NONE!r}, nor hold a plus sign, got {spelled(odd[0], 40)}")
    return values


def spell(value: Any) -> str:
    """A value as a spelling holds it; `read` gives it back."""
    if isinstance(value, tuple):
        return "+".join(map(spell, value)) or NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).replace("e+", "e").removesuffix(".0")  # a plus sign stands between a tuple's entries
    return str(value)


def read(text: str, kind: str, where: str) -> Any:
    """The value that a text spells, for a field of type `kind`. Raises PolicyError, beginning with `where`."""
    if kind in TUPLES:
        return () if text == NONE else tuple(read(part, TUPLES[kind], where) for part in text.split("+"))
    if kind == "bool":
        if text.lower() not in ("true", "false"):
            raise PolicyError(f"{where} is not true or false")
        return text.lower() == "true"
    try:
        return {"int": int, "float": float, "str": str}[kind](text)
    except ValueError as error:
        raise PolicyError(f"{where} is not {WORDS[kind]}") from error
