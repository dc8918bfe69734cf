r"""Multiple choice: the letter that a text answers with, in the forms that models write. No jax.

What follows the reasoning counts, in this order: its last box or `<answer>` tag; the last sentence that says it (`the
answer is (C)`, `Answer: C`, `C is correct`, `I choose C`); a line that is a choice alone (`**C**`, `(C)`, `C) Paris`);
the text of one choice (`the answer is Paris`). Where there is none of these, as in a text cut short, the reasoning's
last box counts. A letter may stand with its choice's text, or the text for it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from kinetics_jax.tasks.answers import marked, split_reasoning, stated_answer
from kinetics_jax.tasks.exact import compare_numbers
from kinetics_jax.tasks.grading import Grade
from kinetics_jax.tasks.wrapping import TooDeep, plain

CHOICE = "choice"  # the grader's name
LETTERS = "ABCDEFGHIJ"
TAIL = 6000  # characters from the end that are searched for a sentence
MAX_LINE = 300  # characters of a line that is a choice alone
MAX_SAID = 2000  # characters of a box

# What surrounds a letter is taken off first, so that no pattern meets a long run of it: each stays linear in the text.
WRAPPED = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf|boldsymbol|textit|mathsf|bf|rm|boxed)\b\s{0,9}|[{}$*_`\"“”<>]|\\[ ,;!()\[\]]"
)
RUNS = ((re.compile(r"[^\S\n]+"), " "), (re.compile(r" ?\n[\n ]*"), "\n"), (re.compile(r"[(\[][(\[ ]+"), "("))

_OPEN = r"[\s(\[‘']{0,3}"
_KIND = r"(?i:(?:the )?(?:option|choice|letter|answer|alternative|statement|number)\b[\s:#]{0,3})?"
_WORDS = r"(?:(?:(?:most )?[a-z]{1,15}ly|therefore|thus|then|indeed|hence|to be)[, ]{1,2}){0,3}"
# A and I are words too: then nothing of a sentence may follow, but for a reason.
_GOES_ON = r"because|since|as\b|which|with|is\b|and\b|or\b|for\b|due\b|by\b|given\b"
_UPPER = rf"(?:[B-HJ]|[AI](?!['’])(?!\s(?!{_GOES_ON})[a-z]))(?![A-Za-z0-9])"
_LOWER = r"[a-j](?=[\s.)\]]{0,3}(?:$|\n)|\) )"
_LETTER = rf"(?P<letter>{_UPPER}|{_LOWER})"
_SAYS = r"(?:\bis\b|\bare\b|\bwas\b|\bbe\b|[:：=]| [-–—] |是|为|\n)"
SAID = (
    re.compile(
        r"(?:\b(?i:answer|antwort|r[ée]ponse|respuesta|risposta|resposta|ответ)|答案"
        r"|\b(?i:correct|right|best|final) (?:option|choice|one|response))"
        rf"[^.\n:：=]{{0,60}}?\s?{_SAYS}[\s:]{{0,3}}{_WORDS}{_KIND}{_OPEN}{_LETTER}"
    ),
    re.compile(
        rf"(?<![A-Za-z0-9]){_KIND}{_OPEN}(?P<letter>[A-J])(?![A-Za-z0-9])[)\]]?"
        r" (?:is|seems|must be|should be|would be) (?:therefore |thus |clearly )?"
        r"(?:the )?(?:(?:only|single|most) )?(?:correct|right|best|appropriate|true)\b"
    ),
    re.compile(
        r"\b[Ii](?:'ll|’ll| will| would|'d|’d)? (?:choose|select|pick|chose|go with|answer)\b\s?"
        rf"{_KIND}{_OPEN}{_LETTER}"
    ),
)
DENIED = re.compile(
    r"(?:wrong|incorrect|false|other|possible|no|not|n't|neither|eliminated?) (?:\w+ )?\Z", re.IGNORECASE
)
MORE = re.compile(
    r"[)\]]?\s?(?:,|/|&|\band\b|\bor\b)[\s,]{0,2}(?:and |or |either |both )?[(\[]?(?:option )?"
    r"(?P<more>[A-J])(?![A-Za-z0-9'’])(?![)\]]? [a-z])"
)
LINE = re.compile(r"[(\[]?(?i:(?:option|choice) )?(?P<letter>[A-Ja-j])(?:[)\].']{0,2}|[)\].:]\s?(?P<text>\S.*))")
SEVERAL = re.compile(r"\(?([A-J])\)?(?: ?(?:,|/|&|and|or|, ?and|, ?or) ?\(?([A-J])\)?)+")


def grade_choice(text: str, answer: str, problem: Mapping[str, Any] | None = None) -> Grade:
    """The letter that a text answers with against the known one; `problem["choices"]` are the choices' texts.

    A text that answers nothing, several choices, or a letter that no choice has, is wrong. A box that holds something
    else than a letter or a choice is undecided: it may spell a choice in a way that is not read.
    """
    choices = list((problem or {}).get("choices") or ())
    said = stated_choice(text, choices)
    if said is None:
        return Grade(correct=False, answer=None)
    letter, why = _letter(said, choices)
    if why is not None:
        return Grade(correct=None, answer=said, grader="error", why=why)
    return Grade(correct=letter == answer.strip(), answer=letter or said)


def stated_choice(text: str, choices: Sequence[str] = ()) -> str | None:
    """What a text answers with, as it is written: a letter, several, a choice's text; None where it answers nothing."""
    reasoning, final = split_reasoning(text)
    if (boxed := marked(final)) is not None:
        return boxed
    plain_text = _unwrapped(final[-TAIL:])
    if said := _sentence(plain_text) or _line(plain_text):
        return said
    said = stated_answer(final)  # `the answer is Paris`
    return said if said is not None and _named(said, choices) else marked(reasoning)


def _unwrapped(text: str) -> str:
    text = WRAPPED.sub(" ", text)
    for run, sign in RUNS:
        text = run.sub(sign, text)
    return text


def _sentence(text: str) -> str | None:
    """The letter in the last sentence that says which is right, with those that stand beside it."""
    found: list[tuple[int, str]] = []
    for pattern in SAID:
        for match in pattern.finditer(text):
            if DENIED.search(text[max(0, match.start() - 30) : match.start()]):
                continue
            letters = match["letter"].upper()
            end = match.end("letter")
            while more := MORE.match(text, end):
                letters, end = f"{letters}, {more['more']}", more.end()
            found.append((match.start("letter"), letters))
    return max(found)[1] if found else None


def _line(text: str) -> str | None:
    """The only choice that has a line of its own, or the last line's where it is a letter alone."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    matches = [match for line in lines if len(line) <= MAX_LINE and (match := LINE.fullmatch(line))]
    if not matches:
        return None
    last = LINE.fullmatch(lines[-1][:MAX_LINE])
    if last and last["text"] is None:
        return last["letter"].upper()
    named = {match["letter"].upper() for match in matches}
    return matches[-1][0] if len(named) == 1 else None


def _letter(said: str, choices: Sequence[str]) -> tuple[str | None, str | None]:
    """(letter, None) of what is said; (None, None) for several or none of the choices; (None, why) where nobody can
    tell.
    """
    if len(said) > MAX_SAID:
        return None, f"a box of {len(said)} characters is not read"
    bare = " ".join(WRAPPED.sub(" ", said).split()).strip(" .,:;\"'")
    if re.fullmatch(r"\(?[A-Ja-j]\)?\.?", bare):
        return bare.strip("().").upper(), None
    if SEVERAL.fullmatch(bare):
        return None, None
    by_text = _named(said, choices)
    prefixed = re.match(
        r"(?i:(?:the\s+)?(?:option|choice|answer)(?:\s+is)?[\s:]*)?\(?([A-J])(?:\)|[.:,]|\s|$)\s*(.*)", bare
    )
    if prefixed and not by_text:
        letter, rest = prefixed[1], prefixed[2].strip(" -–—=:")
        others = [LETTERS[index] for index, choice in enumerate(choices) if rest and _same(rest, choice)]
        if others and letter not in others:
            return None, f"names choice {letter} and has the text of {others[0]}"
        spaced = not re.match(r".*?\(?[A-J][).:,]|.*[A-J]$", bare)
        if not (spaced and rest and not others and choices):
            return letter, None
    if len(by_text) == 1:
        return by_text[0], None
    if not choices:
        return None, f"{said[:60]!r} is no letter of a choice"
    return None, f"{said[:60]!r} is " + ("the text of several choices" if by_text else "no letter and no choice")


def _named(said: str, choices: Sequence[str]) -> list[str]:
    """The letters of the choices whose text is said."""
    if len(said) > MAX_SAID:
        return []
    bare = " ".join(WRAPPED.sub(" ", said).split()).strip(" .,:;\"'")
    return [LETTERS[index] for index, choice in enumerate(choices) if _same(bare, choice) or _same(said, choice)]


def _same(said: str, choice: str) -> bool:
    """Whether what is said is a choice's text, but for case, wrapping and full stops, or the same number."""
    if compare_numbers(said.strip(), choice.strip()):
        return True
    return _spelling(said) == _spelling(choice)


def _spelling(text: str) -> str:
    with contextlib.suppress(TooDeep):  # then as it stands
        text = plain(text)
    return " ".join(WRAPPED.sub(" ", text).split()).strip(" .,:;\"'").casefold()
