"""Amounts: a number or formula with the words, currency, percent or degree signs beside it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from fractions import Fraction

from kinetics_jax.tasks.exact import rational
from kinetics_jax.tasks.formulas import Reading, formula, fraction_latex
from kinetics_jax.tasks.number_words import count_of
from kinetics_jax.tasks.phrasing import stripped
from kinetics_jax.tasks.tokens import Token, latex, tokenize
from kinetics_jax.tasks.units import DEGREE, PERCENT, Unit, fraction_unit, read_unit
from kinetics_jax.tasks.vocabulary import CHANGERS, FILLER, MONEY, SCALES, UNITS
from kinetics_jax.tasks.wrapping import trimmed

MAX_AMOUNTS = 4  # that make up one: days, hours, minutes, seconds
CURRENCIES = frozenset(("\\$", "$", "£", "€", "¥", "₹", "¢"))
# Reads what follows the first of several amounts.
ReadOn = Callable[[list[Token]], Reading]


def quantity(tokens: list[Token], text: str, read_on: ReadOn) -> Reading:
    """A formula with words, currency, percent or degrees beside it."""
    tokens, sign, unit = _prefix(tokens)
    end = next((i for i, token in enumerate(tokens) if token.depth == 0 and _begins_unit(tokens, i)), len(tokens))
    core, tail = stripped(tokens[:end]), stripped(tokens[end:])
    if not core:
        return in_words(tail) or Reading("unread", text, why="words that are not read")
    if inside := next((token for token in core if token.kind == "word"), None):
        return Reading("unread", text, why=f"{inside.text!r} inside a formula is not read")
    factor, added, tail = _scale(tail)
    if tail:
        if (total := _second(core, tail, text, read_on)) is not None:
            return total
        found = _unit_of(tail)
        if found is not None and unit is not None and all(power < 0 for _, power in found.kinds):
            unit, found = Unit(unit.kinds + found.kinds, unit.worth * found.worth), unit  # $5 per hour
        elif found is None or (unit is not None and found.kinds != unit.kinds and not found.counts_things):
            return Reading("unread", text, why=f"{latex(tail)[:40]!r} beside the number is not read")
        unit = unit or found
    plain = formula(core, text)
    if plain.kind == "unread":
        return plain
    number = rational(plain.core)
    if added and number is None:
        return Reading("unread", text, why="a fraction in words beside a formula is not read")
    value = plain.core
    if number is not None and (added or factor != 1 or sign < 0):
        value, factor = fraction_latex(sign * (number + added) * factor), Fraction(1)
    elif sign < 0:
        value = f"-({value})"
    return Reading("formula", text, core=value, scale=factor, unit=unit if unit and unit.kinds else None)


def _prefix(tokens: list[Token]) -> tuple[list[Token], int, Unit | None]:
    """(the rest, -1 or 1, currency) of what stands before a number: filler, a sign in words, a currency."""
    begin, sign = 0, 1
    unit: Unit | None = None
    for begin, token in enumerate(tokens):
        currency = token.kind == "word" and UNITS.get(token.plain, ("",))[0] in MONEY and begin + 1 < len(tokens)
        if token.kind == "space" or (token.kind == "word" and token.plain in FILLER) or (token.text == "." and unit):
            continue
        if token.kind == "word" and token.plain in ("negative", "minus") and sign > 0:
            sign = -1
        elif unit is None and (token.text in CURRENCIES or currency):
            unit = Unit(*UNITS[token.plain.lstrip("\\")])
        elif token.text in ("-", "+") and any(each.text in CURRENCIES for each in tokens[begin + 1 : begin + 3]):
            sign = -1 if token.text == "-" else 1
        else:
            return tokens[begin:], sign, unit
    return [], sign, unit


def _begins_unit(tokens: list[Token], index: int) -> bool:
    """Whether what follows the number begins here: a word, a currency, a percent or degree sign."""
    token = tokens[index]
    if token.kind == "word" or token.text in CURRENCIES or token.text in ("\\%", "%"):
        return True
    following = [each for each in tokens[index + 1 : index + 4] if each.kind != "space"]
    if token.text == "^" and following and following[0].text == r"\circ":
        return not any(each.text in (r"\sin", r"\cos", r"\tan", r"\cot", r"\sec", r"\csc") for each in tokens[:index])
    if token.text in ("/", r"\cdot", r"\frac") or token.text == "(":
        return bool(following) and (
            following[0].kind == "word"
            or (len(following) > 1 and following[0].text == "{" and following[1].kind == "word")
        )
    return False


def _scale(tail: list[Token]) -> tuple[Fraction, Fraction, list[Token]]:
    """(factor, added, what is left) of the scale words and the fraction in words that a tail begins with."""
    factor, added = Fraction(1), Fraction(0)
    index = 0
    solid = [token for token in tail if token.kind != "space"]
    while index < len(solid) and solid[index].kind == "word" and (value := SCALES.get(solid[index].plain)):
        factor *= value
        index += 1
    if index + 1 < len(solid) and solid[index].kind == "word" and solid[index].plain == "and":
        end = next((i for i in range(index + 1, len(solid)) if solid[i].kind != "word"), len(solid))
        for stop in range(end, index + 1, -1):
            part = count_of([token.plain for token in solid[index + 1 : stop]])
            if part is not None and 0 < part < 1:
                return factor, part, solid[stop:]
    return factor, added, solid[index:]


def _second(core: list[Token], tail: list[Token], text: str, read_on: ReadOn) -> Reading | None:
    """`5 feet 6 inches`: the tail goes on with another number and its unit. None where it does not."""
    begins = [
        i for i, token in enumerate(tail) if i and token.kind == "number" and tail[i - 1].kind in ("word", "space")
    ]
    at = begins[0] if begins and len(begins) <= MAX_AMOUNTS else None
    if at is None:
        return None
    first, second = quantity([*core, *tail[:at]], text, read_on), read_on(tail[at:])
    if first.kind == "unread" or second.kind == "unread":
        return None
    return summed((first, *second.parts) if second.kind == "list" else (first, second), text)


def _unit_of(tail: list[Token]) -> Unit | None:
    if tail[0].text in ("\\%", "%"):
        return PERCENT if all(token.plain in FILLER or token.kind == "space" for token in tail[1:]) else None
    if tail[0].text == "^" and len(tail) > 1 and tail[1].text == r"\circ":
        rest = [token for token in tail[2:] if token.kind != "space"]
        if not rest:
            return DEGREE
        scale = {"c": "C", "f": "F", "celsius": "C", "fahrenheit": "F"}.get(rest[0].text.lower())
        return Unit(((f"temperature {scale}", 1),)) if scale and len(rest) == 1 else None
    if tail[0].text in CURRENCIES and len(tail) == 1:
        return Unit(*UNITS[tail[0].text.lstrip("\\")])
    if tail[0].text == r"\frac":
        groups = trimmed(latex(tail[1:]))
        match = re.fullmatch(r"\{((?:[^{}]|\\text\{[^{}]*\})*)\}\s*\{((?:[^{}]|\\text\{[^{}]*\})*)\}", groups)
        return fraction_unit(tokenize(match[1]), tokenize(match[2])) if match else None
    if tail[0].plain in ("/", "per", "a", "an", "every") and len(tail) > 1:
        return _per(tail)
    if tail[0].text == "(" and tail[-1].text == ")":
        return read_unit(tail[1:-1])
    return read_unit(tail)


def _per(tail: list[Token]) -> Unit | None:
    """`/day` alone: so many a day."""
    below = read_unit(tail[1:])
    return None if below is None else Unit(tuple((kind, -count) for kind, count in below.kinds), 1 / below.worth)


def in_words(tail: list[Token]) -> Reading | None:
    """An amount in words with its unit: `forty-six apples`, `half a mile`."""
    words = [token.plain for token in tail if token.kind != "space"]
    if not all(token.kind in ("word", "space") or token.text == "-" for token in tail):
        return None
    words = [word for word in words if word != "-"]
    for stop in range(len(words), 0, -1):
        if (value := count_of(words[:stop])) is not None:
            rest = [Token("word", word, 0) for word in words[stop:]]
            unit = read_unit(rest) if rest else None
            if (rest and unit is None) or any(word in CHANGERS for word in words[stop:]):
                return None
            return Reading("formula", " ".join(words), core=fraction_latex(value), unit=unit)
    return None


def summed(parts: tuple[Reading, ...], text: str) -> Reading | None:
    """Amounts in falling units of one kind as one amount: 5 feet 6 inches. None where they are anything else."""
    values = [rational(part.core) if part.kind == "formula" else None for part in parts]
    units = [part.unit for part in parts]
    if len(parts) < 2 or any(value is None for value in values) or any(unit is None for unit in units):
        return None
    known = [unit for unit in units if unit is not None]
    if len({unit.kinds for unit in known}) > 1 or known[0].counts_things:
        return None
    if any(left.worth <= right.worth for left, right in itertools.pairwise(known)):
        return None
    total = sum((value or 0) * part.scale * unit.worth for value, part, unit in zip(values, parts, known, strict=True))
    return Reading("formula", text, core=fraction_latex(Fraction(total)), unit=Unit(known[0].kinds), summed=True)
