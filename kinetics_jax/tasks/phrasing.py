"""Around an answer: the letter of a choice, `The answer is`, `x =`; and what `and` and `or` separate."""

from __future__ import annotations

import itertools

from kinetics_jax.tasks.tokens import Token
from kinetics_jax.tasks.vocabulary import FILLER, each_of

LETTERS = "ABCDEFGHIJ"
MAX_PARTS = 64  # answers in one
REFUSALS = frozenset(each_of("not never neither nor if when unless otherwise else where without except cannot"))
COPULAS = frozenset(each_of("is are equals equal was be"))


def stripped(tokens: list[Token]) -> list[Token]:
    """The tokens without spaces and punctuation around them; the `!` of a factorial stays."""
    begin, end = 0, len(tokens)
    while begin < end and (tokens[begin].kind == "space" or tokens[begin].text in (",", ";", ":")):
        begin += 1
    while end > begin and (
        tokens[end - 1].kind == "space"
        or (
            tokens[end - 1].text in (".", ",", ";", "!")
            and not (tokens[end - 1].text == "!" and _value_before(tokens, end - 1))
        )
    ):
        end -= 1
    return tokens[begin:end]


def _value_before(tokens: list[Token], index: int) -> bool:
    """Whether a `!` after this token is a factorial."""
    return index > 0 and (tokens[index - 1].kind in ("number", "letter") or tokens[index - 1].text in (")", "}", "!"))


def canonical(tokens: list[Token]) -> str:
    """Words in lower case, no spaces but between two words or two numbers."""
    out: list[str] = []
    for token in tokens:
        if token.kind == "space":
            continue
        text = token.plain
        if out and text[:1].isalnum() and (out[-1][-1:].isalnum() or out[-1][-1:] == "."):
            out.append(" ")
        out.append(text)
    return "".join(out)


def choice(tokens: list[Token]) -> tuple[str | None, list[Token]]:
    """(letter, what follows) of `(B) 46`, `B`, `C: 12`, `B. 46`, `option B`; (None, …) of anything else."""
    solid = [token for token in tokens if token.kind != "space"]
    while solid and solid[0].plain in ("option", "choice"):
        solid = solid[1:]
    if len(solid) > 2 and solid[0].text == "(" and solid[2].text == ")" and _is_letter(solid[1]):
        rest = tokens[tokens.index(solid[2]) + 1 :]
        follows = solid[3] if len(solid) > 3 else None
        spaced = bool(rest) and rest[0].kind == "space"
        if follows is not None and (
            follows.plain in ("and", "or", ",", ";")  # (A) or (B)
            or (not spaced and solid[1].kind != "word")  # (A)B
            or (not spaced and follows.kind == "sign" and follows.text != "\\$")  # (A)^2
        ):
            return None, tokens
        return solid[1].text.upper(), rest if follows is not None else []
    if solid and _is_letter(solid[0]) and (solid[0].kind == "word" or solid[0].text in LETTERS):
        if len(solid) == 1:
            return solid[0].text.upper(), []
        if solid[1].text in (":", ")", ".") and len(solid) > 2:
            return solid[0].text.upper(), tokens[tokens.index(solid[1]) + 1 :]
        if solid[1].text in (")", ".") and len(solid) == 2:
            return solid[0].text.upper(), []
    return None, tokens


def _is_letter(token: Token) -> bool:
    return token.kind in ("word", "letter") and len(token.text) == 1 and token.text.upper() in LETTERS


def statement(tokens: list[Token]) -> tuple[list[Token], bool]:
    """The tokens after `The answer is`, `Answer:`, `V_{\text{max}} =`; and whether what stands before denies them."""
    cut = 0
    for index, token in enumerate(tokens):
        if token.depth or not (
            token.text in (":", "=", r"\approx") or (token.kind == "word" and token.plain in COPULAS)
        ):
            continue
        before = tokens[cut:index]
        if any(each.plain in ("and", "or", ",", ";") for each in before if each.depth == 0):
            continue
        if token.text == "=" and sum_done(before, tokens[index + 1 :]):
            cut = index + 1
        worded = any(each.kind == "word" for each in before)
        if (
            (
                token.kind == "word"
                and token.plain in COPULAS
                and all(each.text not in [r"\le", r"\ge", r"<", r">"] for each in before)
            )
            or (token.text == ":" and worded and not any(each.kind == "number" for each in before))
            or (
                token.text in ("=", r"\approx")
                and (worded or any(each.text in (r"\angle", r"\triangle") for each in before))
            )
        ):
            cut = index + 1
    before, after = tokens[:cut], tokens[cut:]
    if not any(token.kind != "space" for token in after):
        return tokens, False
    after = stripped(after)
    if has_value(before) and not has_value(after):
        if all(token.kind == "word" and token.plain in FILLER for token in after if token.kind != "space"):
            return stripped(before[:-1]), any(token.plain in REFUSALS for token in before)  # 42 is the answer
        return tokens, True  # 17 is prime
    if after and after[0].text == r"\approx":
        after = after[1:]
    return after, any(token.plain in REFUSALS for token in before if token.kind == "word")


def has_value(tokens: list[Token]) -> bool:
    """Whether there is a number or a command among them."""
    return any(token.kind in ("number", "command") for token in tokens)


def sum_done(before: list[Token], after: list[Token]) -> bool:
    """Whether an equals sign stands between a calculation and its value: 9 * 2 = 18."""
    if any(token.kind in ("letter", "word") for token in [*before, *(each for each in after if each.kind == "letter")]):
        return False
    return any(token.kind == "number" for token in after) and any(
        token.text in ("+", "-", "*", "/", r"\cdot", r"\times", "^", r"\div") for token in before
    )


def parts(tokens: list[Token]) -> list[list[Token]] | None:
    """What `and`, `or`, `;` and, between words, commas separate; None where there is nothing to separate."""
    breaks = [
        index
        for index, token in enumerate(tokens)
        if token.depth == 0
        and ((token.kind == "word" and token.plain in ("and", "or")) or token.text == ";" or token.text == ",")
    ]
    if not breaks or len(breaks) >= MAX_PARTS:
        return None
    edges = [-1, *breaks, len(tokens)]
    parts = [stripped(tokens[left + 1 : right]) for left, right in itertools.pairwise(edges)]
    parts = [part for part in parts if part]
    if len(parts) < 2 or not all(
        any(token.kind != "word" for token in part if token.kind != "space") for part in parts
    ):
        return None
    return parts
