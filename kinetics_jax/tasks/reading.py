r"""What an answer says: a formula with its unit and scale, words, a time of day, a date, several answers, or unread.

Every word is read or the whole answer is `unread`; none is dropped because it is not understood.
"""

from __future__ import annotations

import dataclasses
import functools
import re

from kinetics_jax.tasks.amounts import CURRENCIES, in_words, quantity, summed
from kinetics_jax.tasks.formulas import Reading, formula, fraction_latex
from kinetics_jax.tasks.latex_forms import interval
from kinetics_jax.tasks.moments import read_date, read_time
from kinetics_jax.tasks.number_words import count_of
from kinetics_jax.tasks.phrasing import canonical, choice, parts, statement, stripped
from kinetics_jax.tasks.tokens import Token, latex, tokenize
from kinetics_jax.tasks.wrapping import TooDeep, plain

MAX_TOKENS = 800  # of an answer that is read
ORDINAL = re.compile(
    r"\^\s*\{?\s*(?:\\text\{(?:st|nd|rd|th)\}|(?:st|nd|rd|th)(?![a-z]))\s*\}?\s*$"
    r"|(?<=[0-9])\s*\\text\{(?:st|nd|rd|th)\}\s*$|(?<=[0-9])(?:st|nd|rd|th)\s*$"
)
DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z])|\{\s*o\s*\}|o(?![A-Za-z]))|\\circ(?![A-Za-z])\s*$")
BASE = re.compile(
    r"_\s*\{?\s*(?:\\text\{base\}\s*)?\\text\{([a-z]+)\}\s*\}?(?=\s*$)"
    r"|(?<=[0-9])\s*[_(]?\s*[{(]?\s*(?:\\text\{)?(?:in )?base\}?\s*(?:\\text\{)?([0-9]+|[a-z]+)\}?\s*[)}]?\s*$"
)
MODULO = re.compile(r"\(?\s*\\text\{mod(?:ulo)?\}\s*([0-9]+)\s*\)?\s*$")
SIGNED = CURRENCIES | {"\\%", "%", ";", r"\circ"}  # formulas with one of these are amounts, or several answers
RELATION = re.compile(r"<|>|\\(?:le|ge|ne)(?![a-z])")


def says_nothing(answer: str) -> bool:
    """Whether an answer holds neither a letter, a digit nor a command: an empty box, dots, a question mark."""
    return not re.search(
        r"[^\W_]|\\\{|\\emptyset|[∅∞√]", re.sub(r"\\(?:quad|qquad|ldots|dots|cdots|square|Box)", "", answer)
    )


@functools.lru_cache(maxsize=4096)
def read(answer: str) -> Reading:
    """What an answer says."""
    try:
        text = plain(answer)
    except TooDeep as error:
        return Reading("unread", answer.strip(), why=str(error))
    text = MODULO.sub(r"\\pmod{\1}", BASE.sub(_base, ORDINAL.sub("", text)))
    tokens = tokenize(DEGREES.sub(r"^\\circ ", text))
    if len(tokens) > MAX_TOKENS:
        return Reading("unread", answer.strip(), why=f"{len(tokens)} signs are more than an answer has")
    return _read(tokens)


def final_form(answer: str) -> str | None:
    """What an answer in a sentence says the answer is: `42` of `The answer is 42.`; None of one that is no sentence."""
    tokens = stripped(tokenize(plain(answer)))
    if choice(tokens)[0] is not None:
        return None
    after, _ = statement(tokens)
    cut = tokens[: len(tokens) - len(after)]
    said = [token for token in cut if token.kind == "word" and token.depth == 0]
    signs = [token.text for token in cut if token.depth == 0]
    return latex(after) if said and "=" not in signs and r"\approx" not in signs and len(after) < len(tokens) else None


def _base(match: re.Match[str]) -> str:
    r"""The base after a number as a subscript: `_{\text{eight}}`, `(base 8)`."""
    base = match[1] or match[2]
    value = count_of([base])
    return f"_{{{base if value is None else value}}}"


def _read(tokens: list[Token], nested: bool = False) -> Reading:
    """What tokens say; `nested` for one of several answers."""
    tokens = stripped(tokens)
    letter, rest = choice(tokens)
    if letter is not None:
        if not rest:
            return Reading("formula", letter, core=letter, choice=letter)
        return dataclasses.replace(_read(rest, nested), choice=letter)
    said, refused = statement(tokens)
    if refused:
        return Reading("unread", canonical(tokens), why="it says what the answer is not, or on what it depends")
    if len(said) < len(tokens):
        return _read(said, nested)
    text = canonical(tokens)
    if not tokens:
        return Reading("unread", text, why="nothing is left of it")
    if (time := read_time(tokens)) is not None:
        return Reading("time", text, moment=time)
    if (date := read_date(tokens)) is not None:
        return Reading("date", text, moment=date)
    words = [token.plain for token in tokens if token.kind == "word"]
    if not words and not any(token.text in SIGNED for token in tokens):
        return formula(tokens, text)
    if all(token.kind in ("word", "space") or token.text in ("'", "-", ",", ".", "!") for token in tokens):
        return _words(tokens, words, text)
    if not nested and (several := parts(tokens)) is not None:
        return _several(tokens, several, text)
    return quantity(tokens, text, functools.partial(_read, nested=True))


def _words(tokens: list[Token], words: list[str], text: str) -> Reading:
    if (value := count_of(words)) is not None:
        return Reading("formula", text, core=fraction_latex(value))
    if (amount := in_words(tokens)) is not None:
        return dataclasses.replace(amount, text=text)
    if words[-1] == "infinity" and set(words[:-1]) <= {"negative", "minus", "positive", "plus"} and len(words) < 3:
        return Reading("formula", text, core=r"-\infty" if words[0] in ("negative", "minus") else r"\infty")
    groups: list[list[str]] = [[]]
    for token in tokens:
        if token.plain in ("and", "or", ","):
            groups.append([])
        elif token.kind == "word" and token.plain not in ("a", "an", "the"):
            groups[-1].append(token.plain)
    if len(said_of := [" ".join(group) for group in groups if group]) > 1:
        return Reading("words", ", ".join(sorted(said_of)))
    said = [word for word in words if word not in ("a", "an", "the")]
    return Reading("words", " ".join(said or words))


def _several(tokens: list[Token], several: list[list[Token]], text: str) -> Reading:
    """`1 and 2`, `x = 1 or x = -2`, `3 cm, 5 cm`; amounts of one kind are one: 3 hours and 20 minutes."""
    if any(part[0].plain in ("so", "thus", "hence", "therefore", "which", "since", "because") for part in several[1:]):
        return Reading("unread", text, why="it goes on after the answer")
    readings = tuple(_read(part, nested=True) for part in several)
    unread = next((reading for reading in readings if reading.kind == "unread"), None)
    if unread is not None:
        return Reading("unread", text, why=unread.why)
    joined = {token.plain for token in tokens if token.depth == 0 and token.kind == "word"} & {"and", "or"}
    if joined != {"or"} and (total := summed(readings, text)) is not None:
        return total
    if not all(reading.kind == "formula" and reading.unit is None and reading.scale == 1 for reading in readings):
        return Reading("list", text, parts=readings)
    cores = [reading.core for reading in readings]
    if any(RELATION.search(core) for core in cores):
        intervals = [interval(core) for core in cores]
        if joined != {"or"} or None in intervals:
            return Reading("unread", text, why="conditions that are joined are not read")
        return Reading("formula", text, core=r" \cup ".join(str(each) for each in intervals))
    if (
        joined == {"or"}
        and all(re.fullmatch(r"[(\[].*,.*[)\]]", core) for core in cores)
        and r"\infty" in "".join(cores)
    ):
        return Reading("formula", text, core=r" \cup ".join(cores))
    return Reading("formula", text, core=", ".join(cores))
