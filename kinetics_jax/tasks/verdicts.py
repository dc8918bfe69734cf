"""Whether two readings say the same: True, False, or None where that cannot be told from what they say."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from kinetics_jax.tasks.exact import based, compare_numbers, digits_of_based, rational
from kinetics_jax.tasks.formulas import Reading
from kinetics_jax.tasks.latex_forms import modulus
from kinetics_jax.tasks.units import DEGREE, PERCENT, conversions, worths
from kinetics_jax.tasks.vocabulary import MONTHS, NUMBERS, ORDINALS, SCALES, SYNONYMS, WEEKDAYS

# Compares two formulas: given, known. None where it cannot read or decide them.
Symbolic = Callable[[str, str], bool | None]
COUNTS = ORDINALS | NUMBERS.keys() | SCALES.keys() | MONTHS.keys() | WEEKDAYS  # words that may stand for a number
NOTHING = frozenset({r"\emptyset", r"\{\}", "0"})


def compare(given: Reading, known: Reading, symbolic: Symbolic) -> bool | None:
    """The verdict on two readings. `symbolic` is asked about formulas that are no plain numbers."""
    if given.choice or known.choice:
        return _choices(given, known, symbolic)
    if given.text == known.text and given.kind == known.kind:
        return True
    if "unread" in (given.kind, known.kind):
        return None
    if given.kind != known.kind:
        return _kinds(given, known, symbolic)
    if given.kind == "words":
        return _words(given.text, known.text)
    if given.kind in ("time", "date"):
        return _moments(given, known)
    if given.kind == "list":
        return _lists(given.parts, known.parts, symbolic)
    return _amounts(given, known, symbolic)


def _choices(given: Reading, known: Reading, symbolic: Symbolic) -> bool | None:
    """Letters of a multiple choice, with or without what they stand for."""
    if "unread" in (given.kind, known.kind):
        return True if given.text == known.text and given.choice == known.choice else None
    bare_given, bare_known = given.text == given.choice, known.text == known.choice
    if given.choice and known.choice:
        same = given.choice == known.choice
        if bare_given or bare_known:
            return same
        content = compare(_content(given), _content(known), symbolic)
        return content if content is same else None
    if bare_known and re.fullmatch(r"[A-Ja-j]", given.core):
        return given.core.upper() == known.choice
    if bare_given or bare_known:
        return None  # a letter against what it may stand for
    return compare(_content(given), _content(known), symbolic)


def _content(reading: Reading) -> Reading:
    return dataclasses.replace(reading, choice=None)


def _kinds(given: Reading, known: Reading, symbolic: Symbolic) -> bool | None:
    """Answers of two kinds: words for a number, a date for one of its numbers, one amount for several."""
    by_kind = {given.kind: given, known.kind: known}
    formula = by_kind.get("formula")
    if "words" in by_kind:
        words = by_kind["words"].text
        if formula is None:
            return None if re.search("[0-9]", by_kind[next(k for k in by_kind if k != "words")].text) is None else False
        if words in SYNONYMS[0] | SYNONYMS[1]:
            return (
                True if formula.core in (r"\emptyset", r"\{\}") and words in SYNONYMS[0] else _unless(formula, NOTHING)
            )
        if words in SYNONYMS[2]:
            return None if "infty" in formula.core else False
        if words in SYNONYMS[5]:
            return None if "infty" in formula.core or "mathbb" in formula.core else False
        if (
            set(words.split()) & COUNTS
            or re.fullmatch("[ivxlcdm]+", words)
            or any(character.isdigit() for character in words)
        ):
            return None
        return _letters_apart(words, formula.core)
    if formula is not None and ("time" in by_kind or "date" in by_kind):
        moment = by_kind.get("time") or by_kind["date"]
        value = rational(formula.core)
        if value is None or formula.unit is not None:
            return None
        if moment.kind == "time":
            numbers = [number for number in moment.moment[1:] if number is not None]
            if value in numbers or (len(numbers) == 2 and numbers[1] and value == Fraction(numbers[0], numbers[1])):
                return None
        elif value in moment.moment:
            return None
        return False
    if "list" in by_kind and formula is not None:
        parts = by_kind["list"].parts
        if "," in formula.core:
            if re.search(r"[(\[{]", formula.core):
                return None
            several = tuple(
                dataclasses.replace(formula, text=core, core=core.strip()) for core in formula.core.split(",")
            )
            return _lists(*((parts, several) if given.kind == "list" else (several, parts)), symbolic)
        verdicts = [compare(part, formula, symbolic) for part in parts]
        if all(verdicts):
            return True  # 3/4, or 75 %
        return None if None in verdicts else False
    return False


def _unless(formula: Reading, forms: frozenset[str]) -> bool | None:
    return None if formula.core in forms else False


def _letters_apart(words: str, core: str) -> bool | None:
    """False for words against a formula, None where the formula may be those words run together."""
    letters = sorted(character for character in words.lower() if character.isalpha())
    return None if sorted(character for character in core.lower() if character.isalpha()) == letters else False


def _words(given: str, known: str) -> bool | None:
    """Other words are another answer, unless they mean the same, contain each other, or look like a slip of the pen."""
    if any(given in same and known in same for same in SYNONYMS):
        return None if "yes" in (given, known) or "no" in (given, known) else True
    left, right = ([word.removesuffix("s") for word in re.split(r"[\s-]+", text)] for text in (given, known))
    if set(left) <= set(right) or set(right) <= set(left):
        return None
    if len(left) == len(right) and all(_alike(*pair) for pair in zip(left, right, strict=True)):
        return None
    if len(left) > 3 or len(right) > 3:
        return None if set(left) & set(right) else False
    return False


def _alike(one: str, other: str) -> bool:
    """One letter added, left out or changed in a word of five or more, or one the beginning of the other."""
    short, long = sorted((one, other), key=len)
    if one == other or (len(short) >= 3 and long.startswith(short)):
        return True
    if len(short) < 5 or len(long) - len(short) > 1:
        return False
    same = next((i for i, pair in enumerate(zip(short, long, strict=False)) if pair[0] != pair[1]), len(short))
    return short[same + (len(short) == len(long)) :] == long[same + 1 :]


def _moments(given: Reading, known: Reading) -> bool | None:
    """Field by field; where one side leaves a field out, that decides nothing."""
    if given.kind == "date":
        pairs = list(zip(given.moment, known.moment, strict=True))
        if any(None not in pair and pair[0] != pair[1] for pair in pairs):
            return False
        return True if all(left == right for left, right in pairs) else None
    (half, *left), (other, *right) = given.moment, known.moment
    clock = [_clock(half or 0, left), _clock(other or 0, right)]
    if clock[0] == clock[1]:
        return True if (half and other) or half == other or (left[0] or 0) > 12 or (right[0] or 0) > 12 else None
    numbers = [[number or 0 for number in side] for side in (left, right)]
    if not half and not other:
        same = _proportional(*numbers)
        return None if same else False
    if not (half and other) and numbers[0][1:] == numbers[1][1:] and (numbers[0][0] - numbers[1][0]) % 12 == 0:
        return None
    return False


def _clock(half: int, fields: Sequence[int | None]) -> tuple[int, int, int]:
    hours, minutes, seconds = (field or 0 for field in fields)
    if half and hours <= 12:
        hours = hours % 12 + (12 if half == 2 else 0)
    return hours, minutes, seconds


def _proportional(left: Sequence[int], right: Sequence[int]) -> bool:
    one, other = math.gcd(*left) or 1, math.gcd(*right) or 1
    return [number // one for number in left] == [number // other for number in right]


def _lists(given: Sequence[Reading], known: Sequence[Reading], symbolic: Symbolic) -> bool | None:
    """Several answers in any order. None as soon as one pair cannot be told."""
    left = list(known)
    unsure = False
    for part in given:
        verdicts = [compare(part, each, symbolic) for each in left]
        if True in verdicts:
            left.pop(verdicts.index(True))
        elif None in verdicts:
            unsure = True
        else:
            return False
    return None if unsure else not left


def _amounts(given: Reading, known: Reading, symbolic: Symbolic) -> bool | None:
    """Two formulas with their units and scales."""
    one, other = given.unit, known.unit
    if one == other:
        return _cores(_times(given, given.scale), _times(known, known.scale), symbolic)
    if one is not None and other is not None:
        if one.kinds == other.kinds:
            return _cores(_times(given, given.scale * one.worth), _times(known, known.scale * other.worth), symbolic)
        if {one.kinds, other.kinds} == {DEGREE.kinds, (("radians", 1),)}:
            degrees, radians = (given, known) if one.kinds == DEGREE.kinds else (known, given)
            return _cores(_radians(degrees), radians.core, symbolic)
        same = _cores(_times(given, given.scale), _times(known, known.scale), symbolic)
        return False if same is False else None
    with_unit, bare = (given, known) if one is not None else (known, given)
    unit = one or other
    assert unit is not None
    swapped = with_unit is known
    ask: Symbolic = (lambda a, b: symbolic(b, a)) if swapped else symbolic
    amount, number = _times(with_unit, with_unit.scale), _times(bare, bare.scale)
    if with_unit.summed:  # hours and minutes against a number: in which of them?
        return _convertible(with_unit, amount, number)
    same = _cores(amount, number, ask)
    if unit.kinds == PERCENT.kinds:
        whole = _cores(_product(amount, Fraction(1, 100)), number, ask)
        if whole is True:
            return True
        if same is True:
            value = rational(number)
            return True if value is not None and abs(value) > 1 else None
        return False if same is False and whole is False else None
    if unit.kinds == DEGREE.kinds and same is not True:
        turned = _cores(_radians(with_unit), number, ask) if "pi" in number else False
        return True if turned else (False if same is False and turned is False else None)
    if same is False and _convertible(with_unit, amount, number) is None:
        return None
    return same


def _convertible(reading: Reading, amount: str, number: str) -> bool | None:
    """None if the number may be the amount in another unit of its kind, else False."""
    unit = reading.unit
    assert unit is not None
    value, bare = rational(amount), rational(number)
    if unit.counts_things or (value is None) is not (bare is None):
        return False
    if value is None or bare is None:
        return None if conversions(unit.kinds) else False
    ratios = {1 / worth for worth in worths(unit.kinds)} if reading.summed else conversions(unit.kinds)
    return None if any(value * ratio == bare for ratio in ratios) else False


def _times(reading: Reading, factor: Fraction) -> str:
    return _product(reading.core, factor)


def _product(core: str, factor: Fraction) -> str:
    """The LaTeX of a formula times a number."""
    if factor == 1:
        return core
    value = rational(core)
    if value is not None:
        value *= factor
        if value.denominator == 1:
            return str(value.numerator)
        return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    return f"\\frac{{{factor.numerator}}}{{{factor.denominator}}}\\cdot ({core})"


def _radians(reading: Reading) -> str:
    return f"\\frac{{\\pi}}{{180}}\\cdot ({reading.core})"


SHAPES = {("(", ")"): "tuple", ("\\{", "\\}"): "set"}


def _shape(core: str) -> str | None:
    """tuple or set, of a formula that is one as a whole."""
    for (begin, end), shape in SHAPES.items():
        if core.startswith(begin) and core.endswith(end) and "," in core:
            inner = core[len(begin) : -len(end)]
            if not re.search(
                r"[(){}\[\]]", re.sub(r"\\(?:frac|sqrt)|[{}]", "", inner.replace("\\{", "(").replace("\\}", ")"))
            ):
                return shape
    return None


def _cores(given: str, known: str, symbolic: Symbolic) -> bool | None:
    """Two formulas without units: exact numbers, residues, bases and ellipses here, all others by `symbolic`."""
    if given == known:
        return True
    verdict = compare_numbers(given, known)
    if verdict is not None:
        return verdict
    if any(re.fullmatch(r"[+-]?[0-9]+,\s*[0-9]+", core) for core in (given, known)) and compare_numbers(
        given.replace(",", "."), known.replace(",", ".")
    ):
        return None  # a decimal comma, or two numbers
    if "\\ldots" in given or "\\ldots" in known:
        return None
    if "_" in given or "_" in known:
        named = _bases(given, known)
        if named is not None:
            return named[0]
    if "mod" in given or "mod" in known:
        return _residues(given, known, symbolic)
    if given.lower() == known.lower():
        return None  # R and r
    if (runs := [re.fullmatch("[A-Za-z]{2,}", core) for core in (given, known)]) and all(runs):
        product = given.islower() and "".join(sorted(given)) in "abcdefghijklmnopqrstuvwxyz"
        return (True if product else None) if sorted(given) == sorted(known) else False
    shapes = _shape(given), _shape(known)
    if None not in shapes and shapes[0] != shapes[1]:
        inner = [re.sub(r"^\(|\)$|^\\\{|\\\}$", "", core) for core in (given, known)]
        same = symbolic(f"\\{{{inner[0]}\\}}", f"\\{{{inner[1]}\\}}")
        return False if same is False else None
    verdict = symbolic(given, known)
    if verdict is False and _other_notation(given, known, symbolic):
        return None
    if verdict is False and (shapes[0] is None) != (shapes[1] is None) and "," in given and "," in known:
        bare = [
            core if shape is None else re.sub(r"^\(|\)$", "", core)
            for core, shape in zip((given, known), shapes, strict=True)
        ]
        if symbolic(f"\\{{{bare[0]}\\}}", f"\\{{{bare[1]}\\}}"):
            return None  # in another order than the pair's
    return verdict


def _other_notation(given: str, known: str, symbolic: Symbolic) -> bool:
    """Whether two formulas that differ are the same in another notation: ln as log, a column in a row, 1.5k."""
    if re.search(r"\\log(?!_)", given + known) and "\\ln" in given + known:
        one, other = (re.sub(r"\\log(?!\s*_|[a-z])", r"\\ln", core) for core in (given, known))
        return bool(symbolic(one, other))
    if ("\\ne" in given) != ("\\ne" in known):
        return "\\cup" in given + known or "\\setminus" in given + known
    if ("matrix" in given) != ("matrix" in known):
        one, other = (
            re.findall("[0-9a-z]+", re.sub(r"\\(?:begin|end)\{[a-z]+\}", "", core)) for core in (given, known)
        )
        return one == other
    for one, other in ((given, known), (known, given)):
        if (match := re.fullmatch(r"([0-9.]+) ?([kKMB])", one)) and (value := rational(match[1])) is not None:
            return rational(other) == value * {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9}[match[2]]
    return False


def _bases(given: str, known: str) -> tuple[bool | None] | None:
    """The verdict on a number that names its base against one that names none; None where there is no such pair."""
    left, right = based(given), based(known)
    if (left is None) == (right is None):
        return None
    with_base, plain = (given, known) if left is not None else (known, given)
    value, digits = (left if left is not None else right), digits_of_based(with_base)
    number = rational(plain)
    if number is None and not re.fullmatch(r"[0-9A-Za-z]+", plain):
        return None
    ten = with_base is given and with_base.endswith(("_10", "_{10}"))
    if plain.lower() == (digits or "").lower():
        return (True if ten or with_base is known else None,)  # the base that was asked for may be left out
    if number is not None and number == value:
        return (True if ten else None,)
    return (False,)


def _residues(given: str, known: str, symbolic: Symbolic) -> bool | None:
    """Numbers modulo another: 5 (mod 7) is 12 (mod 7), and 5."""
    left, right = modulus(given), modulus(known)
    if left is None and right is None:
        return None
    one, other = (left or (given, 0)), (right or (known, 0))
    if left and right and left[1] != right[1]:
        return None
    mine, theirs = rational(one[0].split("=")[-1].strip()), rational(other[0].split("=")[-1].strip())
    if mine is None or theirs is None:
        return True if symbolic(one[0], other[0]) else None
    if not (left and right) and not 0 <= (mine if left else theirs) < (one[1] or other[1]):
        return None  # 36 mod 5 may be 1
    if mine == theirs:
        return True
    congruent = (mine - theirs) % (one[1] or other[1]) == 0
    return (True if left and right else None) if congruent else False
