r"""Units beside a number: `\text{cm}^2`, `km/h`, `\frac{\text{km}}{\text{h}}`, `square feet`, `eggs per day`."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from fractions import Fraction

from kinetics_jax.tasks.tokens import Token
from kinetics_jax.tasks.vocabulary import CHANGERS, FILLER, IRREGULAR_PLURALS, NEUTRAL, SCALES, SYMBOLS, UNITS, Kinds

POWERS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cu": 3, "cubed": 3}
PART = re.compile(r"(?:fif|six|seven|eigh|nin|ten|eleven|twelf|[a-z]+teen|[a-z]+tie|hundred|thousand|million)ths?")
MAX_NOUN = 4  # words of a thing that is counted


@dataclasses.dataclass(frozen=True)
class Unit:
    """A product of kinds of quantity with their powers, and what one of it is worth in their first units."""

    kinds: Kinds
    worth: Fraction = Fraction(1)

    @property
    def counts_things(self) -> bool:
        """Whether part of it is a thing that no table knows: apples, students."""
        return any(kind.startswith("things:") for kind, _ in self.kinds)


PERCENT = Unit((("percent", 1),))
DEGREE = Unit((("angle", 1),))


def known_unit(word: str) -> tuple[Kinds, Fraction] | None:
    """Kinds and worth of a unit by its name, singular or plural, or its symbol."""
    if word in UNITS:
        return UNITS[word]
    for ending in ("es", "s"):
        stem = word.removesuffix(ending)
        if stem != word and stem in UNITS and (stem not in SYMBOLS or (len(stem) > 1 and ending == "s")):
            return UNITS[stem]
    return None


def read_unit(tokens: list[Token]) -> Unit | None:
    """The unit that tokens spell, nothing left over; None where they say anything else."""
    tokens = [token for token in tokens if token.kind != "space" and token.text not in ("{", "}", r"\cdot", "*")]
    if tokens and tokens[0].text == r"\frac":
        return None  # its groups are gone; fraction_unit reads it before
    kinds: Counter[str] = Counter()
    worth, sign, power, nouns = Fraction(1), 1, 1, list[str]()
    last: tuple[Kinds, Fraction] | None = None
    index = 0

    def multiply(unit: tuple[Kinds, Fraction], times: int) -> None:
        nonlocal worth
        for kind, count in unit[0]:
            kinds[kind] += times * count
        worth *= unit[1] ** times

    def settle() -> bool:
        """Puts the things that were counted so far among the kinds; False if they are no things."""
        if not nouns:
            return True
        last_noun = nouns[-1]
        plural = (last_noun.endswith("s") and len(last_noun) > 3) or last_noun in IRREGULAR_PLURALS or sign < 0
        if len(nouns) > MAX_NOUN or not plural or PART.fullmatch(last_noun):
            return False
        kinds["things:" + " ".join(noun.removesuffix("s") for noun in nouns)] += sign
        nouns.clear()
        return True

    while index < len(tokens):
        token, word = tokens[index], tokens[index].plain
        index += 1
        if word == "in" and index < len(tokens) and tokens[index].plain in NEUTRAL:
            continue  # in total: no inches
        if token.text in ("/", "per") or word == "per":
            if not settle() or not kinds:
                return None
            sign, last = -1, None
        elif token.text == "^" or (token.kind == "number" and last and token.text in ("2", "3")):
            at = index if token.text == "^" else index - 1
            exponent = "".join(each.text for each in tokens[at : at + 2])
            length = 2 if exponent[:1] == "-" else 1
            if last is None or not exponent[:length].removeprefix("-").isdigit() or len(exponent) > 3:
                return None
            multiply(last, sign * (int(exponent[:length]) - 1))
            index = at + length
        elif word in POWERS and token.kind == "word":
            if word in ("squared", "cubed"):
                if last is None:
                    return None
                multiply(last, sign * (POWERS[word] - 1))
            else:
                power = POWERS[word]
        elif len(token.text) == 1 and token.text.isupper() and token.text not in "LVWJNCF":
            return None  # 5M is five million
        elif token.kind == "word" and (unit := known_unit(word)) and not nouns:
            last = unit
            multiply(unit, sign * power)
            power = 1
        elif token.kind == "word" and (word in NEUTRAL or word in FILLER):
            if nouns and index < len(tokens):
                nouns.append(word)
        elif token.kind == "word" and not {word, word.removesuffix("s")} & (CHANGERS | SCALES.keys()) and power == 1:
            nouns.append(word)
        else:
            return None
    if power != 1 or not settle():
        return None
    kinds.pop("nothing", None)  # square units
    if "percent" in kinds and len(kinds) > 1:
        return None  # percentage points
    return Unit(tuple(sorted((kind, count) for kind, count in kinds.items() if count)), worth)


def fraction_unit(above: list[Token], below: list[Token]) -> Unit | None:
    r"""The unit of `\frac{\text{km}}{\text{h}}`."""
    top, bottom = read_unit(above), read_unit(below)
    if top is None or bottom is None or not bottom.kinds:
        return None
    kinds = Counter(dict(top.kinds))
    for kind, count in bottom.kinds:
        kinds[kind] -= count
    return Unit(tuple(sorted((kind, count) for kind, count in kinds.items() if count)), top.worth / bottom.worth)


def conversions(kinds: Kinds) -> set[Fraction]:
    """What units of one kind are worth in each other, or powers of such units."""
    if len(kinds) != 1:
        return {worth for names, worth in UNITS.values() if names == kinds}
    (kind, power), *_ = kinds
    worths = {worth**power for names, worth in UNITS.values() if names == ((kind, 1),)}
    worths |= {worth for names, worth in UNITS.values() if names == kinds}
    return {one / other for one in worths for other in worths if one != other}


def worths(kinds: Kinds) -> set[Fraction]:
    """What the units of a kind are worth."""
    return {worth for names, worth in UNITS.values() if names == kinds}
