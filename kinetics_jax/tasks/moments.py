"""Times of day and dates: `3:45 p.m.`, `8 a.m.`, `20 June`, `June 20, 2024`, `2024-01-05`; and ratios as 3:2."""

from __future__ import annotations

import re

from kinetics_jax.tasks.tokens import Token
from kinetics_jax.tasks.vocabulary import MONTHS, WEEKDAYS

TIME = re.compile(r"(?:at )?(\d{1,4})(?: ?: ?(\d{1,4}))?(?: ?: ?(\d{1,4}))? ?(am|pm|noon|midnight|o ?'? ?clock|hours)?")
ISO = re.compile(r"(\d{4}) ?- ?(0\d|1[0-2]) ?- ?([0-2]\d|3[01])")
FILLER = frozenset(("of", "on", "the", "in", "st", "nd", "rd", "th"))
HALVES = {"am": 0, "pm": 12, "noon": 12, "midnight": 0}


def read_time(tokens: list[Token]) -> tuple[int | None, ...] | None:
    """(0 as written, 1 before noon, 2 after, hours, minutes, seconds …) of a time; a ratio a:b is read the same way."""
    if not any(token.text == ":" or token.kind == "word" for token in tokens) or len(tokens) > 12:
        return None
    flat = _flat(tokens)
    if flat in ("noon", "midnight"):
        return 2 if flat == "noon" else 1, 12, None, None
    match = TIME.fullmatch(flat)
    if match is None or (match[2] is None and match[4] in (None, "hours")):
        return None
    half = 0 if match[4] not in HALVES else 1 if HALVES[match[4]] == 0 else 2
    return (half, *(int(group) if group is not None else None for group in match.groups()[:3]))


def read_date(tokens: list[Token]) -> tuple[int | None, ...] | None:
    """(year, month, day) of a date, each None where it is not said; None for any other answer."""
    if len(tokens) > 16:
        return None
    flat = _flat(tokens)
    if match := ISO.fullmatch(flat):
        return int(match[1]), int(match[2]), int(match[3])
    words = [token.plain for token in tokens if token.kind == "word"]
    months = [MONTHS[word] for word in words if word in MONTHS]
    numbers = [int(token.text) for token in tokens if token.kind == "number" and token.text.isdigit()]
    rest = [word for word in words if word not in MONTHS and word not in WEEKDAYS and word not in FILLER]
    signs = {token.text for token in tokens if token.kind not in ("word", "number", "space")}
    if len(months) != 1 or rest or not signs <= {",", ".", "-", "/"} or not 1 <= len(numbers) <= 2:
        return None
    years = [number for number in numbers if number > 31]
    days = [number for number in numbers if 1 <= number <= 31]
    if len(years) > 1 or len(days) > 1 or len(years) + len(days) != len(numbers):
        return None
    return (years[0] if years else None), months[0], (days[0] if days else None)


def _flat(tokens: list[Token]) -> str:
    return "".join(token.plain for token in tokens).strip()
