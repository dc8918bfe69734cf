"""Exact comparison of plain numbers: integers of any length, decimals, fractions, mixed numbers, other bases."""

from __future__ import annotations

import re
from fractions import Fraction

from kinetics_jax.tasks.grading import integer

THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")
DECIMAL = re.compile(r"([+-]?)([0-9]*)\.?([0-9]*)(?:\\overline\{([0-9]+)\})?")
RATIO = re.compile(
    r"([+-]?)(?:([0-9]+) *)?(?:\\[dt]?frac\s*\{([+-]?[0-9]+)\}\s*\{([+-]?[0-9]+)\}|(?<![0-9])([0-9]+)/([0-9]+))"
)
BASED = re.compile(r"([+-]?)([0-9A-Za-z]+)_(?:([0-9]+)|\{([0-9]+)\})")
MAX_NUMBER = 1000  # characters; Python refuses to convert much more, and does it slowly
ROUNDED_DIGITS = 6  # as many significant digits may stand for a number that has no finite decimal


def thousands(text: str) -> str:
    """The text without its commas, if it is one number with its thousands grouped: 1,000 and not 3,4."""
    return text.replace(",", "") if THOUSANDS.fullmatch(text) else text


def compare_numbers(given: str, known: str) -> bool | None:
    r"""Exact comparison of two plain numbers, None where either is something else or a base stands on one side alone.

    A decimal of six significant digits or more equals the number without a finite decimal that it rounds or truncates:
    0.333333 is 1/3.
    """
    left, right = integer(given), integer(known)
    if left is not None and right is not None:
        return left == right
    if max(len(given), len(known)) > MAX_NUMBER:
        return None
    one, other = rational(given), rational(known)
    if one is None or other is None:
        one, other = based(given), based(known)
        return None if one is None or other is None else one == other
    return one == other or _rounds(given, other) or _rounds(known, one)


def rational(text: str) -> Fraction | None:
    """The value of a plain number, None of any other text."""
    text = thousands(text.strip())
    if len(text) > MAX_NUMBER:
        return None
    if match := DECIMAL.fullmatch(text):
        sign, whole, places, repeated = match.groups()
        if not whole + places + (repeated or "") or (repeated and "." not in text):
            return None
        value = Fraction(int(whole + places or "0"), 10 ** len(places))
        if repeated:
            value += Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(places))
    elif match := RATIO.fullmatch(text):
        sign, whole, a, b, c, d = match.groups()
        above, below = int(a or c), int(b or d)
        if below == 0 or (whole and (above < 0 or below < 0)):
            return None
        value = Fraction(above, below) + int(whole or 0)
    else:
        return None
    return -value if sign == "-" else value


def _rounds(decimal: str, value: Fraction) -> bool:
    """Whether the text is a decimal that rounds or truncates a value which has no finite one."""
    match = DECIMAL.fullmatch(decimal)
    if match is None or match[4]:
        return False
    sign, whole, places, _ = match.groups()
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    if denominator == 1 or len((whole + places).lstrip("0")) < ROUNDED_DIGITS:
        return False
    last_place = Fraction(1, 10 ** len(places))
    return abs(int(sign + whole + places) * last_place - value) < last_place


def based(text: str) -> int | None:
    """The value of an integer that names its base (52_8, 1A_{16}); None of any other text."""
    match = BASED.fullmatch(text)
    if match is None or len(text) > MAX_NUMBER:
        return None
    base = int(match[3] or match[4])
    if not 2 <= base <= 36 or (not match[2][0].isdigit() and base <= 10):
        return None
    try:
        value = int(match[2], base)
    except ValueError:  # a digit that the base does not have
        return None
    return -value if match[1] == "-" else value


def digits_of_based(text: str) -> str | None:
    """The digits of a number that names its base, without the base."""
    match = BASED.fullmatch(text)
    return None if match is None or based(text) is None else match[1] + match[2]
