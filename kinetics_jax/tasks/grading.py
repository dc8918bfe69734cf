"""From a model's text to right or wrong. No jax."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, Protocol

BOXED = "\\boxed{"
BRACE = re.compile(r"\\boxed\{|[{}]")
INTEGER = re.compile(r"([+-]?)([0-9]+)")


@dataclasses.dataclass(frozen=True)
class Grade:
    """`correct` is None when grading itself failed; `answer` is what was extracted, None when the text has none;
    `grader` says how grading went: ok, timeout or error. `score` is a verifier's, None without one; `why`, what went
    wrong, None where nothing did.
    """

    correct: bool | None
    answer: str | None
    grader: str = "ok"
    score: float | None = None
    why: str | None = dataclasses.field(default=None, compare=False)


class Grader(Protocol):
    """What every grader is: a generated text, the known answer and the problem's fields in, a Grade out. Never raises
    for any text.
    """

    def __call__(self, text: str, answer: str, problem: Mapping[str, Any] = ...) -> Grade: ...


def last_boxed(text: str) -> str | None:
    r"""What the last closed `\boxed{…}` holds, braces balanced; None when there is none. One pass over the text.

    A box that holds nothing but space and braces is none: models repeat the `\boxed{}` of their instruction.
    """
    opened: list[int | None] = []  # for every open brace: where its box begins, None for other braces
    filled: list[bool] = []  # for every open brace: whether anything stands in it so far
    found: tuple[int, int] | None = None
    end = 0
    for match in BRACE.finditer(text):
        if opened and not filled[-1]:
            filled[-1] = bool(text[end : match.start()].strip())
        end = match.end()
        if match[0] != "}":
            opened.append(end if match[0] == BOXED else None)
            filled.append(False)
        elif opened:
            begin, full = opened.pop(), filled.pop()
            if opened:
                filled[-1] |= full
            if full and begin is not None and (found is None or begin > found[0]):
                found = begin, match.start()
    return None if found is None else text[found[0] : found[1]]


def grade_integer(text: str, answer: str) -> Grade:
    r"""Exact comparison of integers: the last `\boxed{…}` against the answer. Signs and leading zeros are read, any
    other text in the box is a wrong answer. Raises ValueError when the known answer is no integer.
    """
    want = integer(answer)
    if want is None:
        raise ValueError(f"the known answer {answer!r} is not an integer")
    boxed = last_boxed(text)
    return Grade(correct=boxed is not None and integer(boxed) == want, answer=boxed)


def integer(text: str) -> str | None:
    """Canonical digits of an integer, None for other text. Text, since a model may write more digits than Python likes
    to convert.
    """
    match = INTEGER.fullmatch(text.strip())
    if match is None:
        return None
    sign, digits = match[1], match[2].lstrip("0") or "0"
    return f"-{digits}" if sign == "-" and digits != "0" else digits
