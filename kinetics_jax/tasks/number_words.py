"""Numbers in words: forty-six, one hundred and twenty, one and a half, two-thirds, 2.5 million."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from kinetics_jax.tasks.vocabulary import NUMBERS, ORDINALS, PARTS, SCALES


def count_of(words: Sequence[str]) -> Fraction | None:
    """What the words say as a number, every one of them read; None if they say anything else."""
    parts = [part for word in words for part in word.lower().split("-")]
    sign = 1
    if parts and parts[0] in ("negative", "minus"):
        parts, sign = parts[1:], -1
    if not parts or not all(
        part in NUMBERS or part in PARTS or part in ("and", "a", "an") or SCALES.get(part) for part in parts
    ):
        return None
    whole: Fraction | None
    if parts[0] in ORDINALS and len(parts) == 1:
        return None  # the fifth, not a fifth
    if parts[-1] in PARTS:
        split = max((i for i, part in enumerate(parts) if part == "and"), default=-1)
        above = [part for part in parts[split + 1 : -1] if part not in ("a", "an")]
        over = _whole(above) if above else Fraction(1)
        whole = _whole(parts[:split]) if split > 0 else Fraction(0)
        if over is None or whole is None or over.denominator != 1:
            return None
        return sign * (whole + over / PARTS[parts[-1]])
    whole = _whole(parts)
    return None if whole is None else sign * whole


def _whole(parts: list[str]) -> Fraction | None:
    total, group, last = 0, 0, 10**30
    seen = False
    for index, part in enumerate(parts):
        if part == "and" and seen:
            continue
        if part in ("a", "an"):
            if index or len(parts) == 1:
                return None
            group, seen = 1, True
        elif part in NUMBERS:
            value = NUMBERS[part]
            if (group % 100 and not (value < 10 and group % 100 >= 20 and group % 10 == 0)) or (seen and not value):
                return None
            group, seen = group + value, True
        elif part == "hundred" and seen and 0 < group < 100:
            group *= 100
        elif (scale := SCALES.get(part)) and part != "hundred" and seen and group and scale < last:
            total, group, last = total + group * scale, 0, scale
        else:
            return None
    return Fraction(total + group) if seen else None
