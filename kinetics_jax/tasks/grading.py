"""From a model's text to right or wrong. No jax."""

from __future__ import annotations

import dataclasses
import re
from typing import Protocol

BOXED = "\\boxed{"
INTEGER = re.compile(r"([+-]?)0*(\d+)")


@dataclasses.dataclass(frozen=True)
class Grade:
    """`correct` is None when grading itself failed; `answer` is what was extracted, None when the text has none;
    `grader` says how grading went: ok, timeout or error.
    """

    correct: bool | None
    answer: str | None
    grader: str = "ok"


class Grader(Protocol):
    """What every grader is: a generated text and the known answer in, a Grade out. Never raises for any text."""

    def __call__(self, text: str, answer: str) -> Grade: ...


def last_boxed(text: str) -> str | None:
    r"""What the last closed `\boxed{…}` holds, braces balanced; None when there is none."""
    start = text.rfind(BOXED)
    while start >= 0:
        depth = 0
        for index in range(start + len(BOXED) - 1, len(text)):
            depth += {"{": 1, "}": -1}.get(text[index], 0)
            if not depth:
                return text[start + len(BOXED) : index]
        start = text.rfind(BOXED, 0, start)
    return None


def grade_integer(text: str, answer: str) -> Grade:
    r"""Exact comparison of integers: the last `\boxed{…}` against the answer. Signs and leading zeros are read, any
    other text in the box is a wrong answer. Raises ValueError when the known answer is no integer.
    """
    want = _integer(answer)
    if want is None:
        raise ValueError(f"the known answer {answer!r} is not an integer")
    boxed = last_boxed(text)
    return Grade(correct=boxed is not None and _integer(boxed) == want, answer=boxed)


def _integer(text: str) -> str | None:
    """Canonical digits; compared as text, since a model may write more digits than Python likes to convert."""
    match = INTEGER.fullmatch(text.strip())
    if match is None:
        return None
    sign, digits = match.groups()
    return f"-{digits}" if sign == "-" and digits != "0" else digits
