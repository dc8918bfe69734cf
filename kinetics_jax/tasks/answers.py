r"""Where a text states its answer, what that answer is in plain LaTeX, and exact comparison of plain numbers. No jax.

The answer stands in the last box of what follows the last `</think>` (of the whole text when it has no such tag). Where
nothing follows the reasoning, because it was cut short, the last box of the reasoning counts. Empty boxes never count.
"""

from __future__ import annotations

import re
from fractions import Fraction

from kinetics_jax.tasks.grading import integer, last_boxed

THINK, END_OF_THINKING = "<think>", "</think>"
BRACED_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
BARE_BOX = re.compile(r"\\(?:boxed|fbox)\s+([+-]?[0-9](?:[0-9.,/]*[0-9])?|[A-Za-z])(?![\w{])")

THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]*)?")
DECIMAL = re.compile(r"([+-]?)([0-9]*)\.?([0-9]*)(?:\\overline\{([0-9]+)\})?")
RATIO = re.compile(r"([+-]?)(?:\\[dt]?frac\s*\{([+-]?[0-9]+)\}\s*\{([+-]?[0-9]+)\}|([0-9]+)/([0-9]+))")
BASED = re.compile(r"([+-]?[0-9]+)_(?:([0-9]+)|\{([0-9]+)\})")
MAX_NUMBER = 1000  # characters; Python refuses to convert much more, and does it slowly
ROUNDED_DIGITS = 6  # as many significant digits may stand for a number that has no finite decimal

BOLD = re.compile(r"\\(?:bm|boldsymbol|mathbf)\s*\{(.*)\}", re.DOTALL)

# Spellings that math-verify misreads, each with one that it reads. Applied to the known and the given answer alike.
SPELLINGS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(?<=[0-9])(?:\\[,!;: ]|~|\{,\})+(?=[0-9]{3}(?![0-9]))", ""),  # 1\,000
        (r"~|(?<!\\)\\ ", " "),  # 5~\text{cm}; a row of a matrix may end in `\\ `
        (r"^\s*([+-]?[0-9]+(?:\.[0-9]+)?)[eE]([+-]?[0-9]{1,3})\s*$", r"\1\\times 10^{\2}"),  # 1e3, as programs write
        (r"\\(?:text|mbox|textrm|mathrm)\{\s*\\?\$\s*\}", ""),  # \text{\$}36
        (r"\\(?:mathrm|text|textrm|mathit)\{\s*i\s*\}|\\imath(?![A-Za-z])", " i"),
        (r"(?<=[0-9)}])i(?![A-Za-z])", " i"),  # 5i, where `i` is only seen as a word of its own
        (r"\\log_(?:e|\{e\})(?![A-Za-z])", r"\\ln"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\\left\s*\\langle(?![A-Za-z])|\\langle(?![A-Za-z])", "("),
        (r"\\right\s*\\rangle(?![A-Za-z])|\\rangle(?![A-Za-z])", ")"),
        ("°", r"^\\circ"),
        ("∞", r"\\infty "),
        (r"√([0-9]+)", r"\\sqrt{\1}"),
    )
]


def split_reasoning(text: str) -> tuple[str, str]:
    """(reasoning, final answer): cut at the last `</think>`. Reasoning that never ends leaves no final answer."""
    reasoning, closed, final = text.rpartition(END_OF_THINKING)
    if closed:
        return reasoning, final
    return (text, "") if THINK in text else ("", text)


def completed(prompt: str, text: str) -> str:
    """What a model wrote, with `<think>` in front where the prompt ends with that tag.

    Some chat templates open the reasoning themselves. A text cut short then shows no sign of being reasoning, and would
    be graded by its last number. A `<think>` earlier in the prompt, in the question for one, opens nothing.
    """
    return THINK + text if prompt.rstrip().endswith(THINK) else text


def last_answer_box(text: str) -> str | None:
    r"""What the last box holds: as `last_boxed`, with `\fbox{…}`, `\boxed {…}` and `\boxed 5` read too."""
    text = BRACED_BOX.sub(r"\\boxed{", text)
    return last_boxed(BARE_BOX.sub(r"\\boxed{\1}", text))


def undecorated(answer: str) -> str:
    r"""An answer without spaces around it, a full stop, comma or semicolon at its end, `**…**`, `$…$` and bold."""
    answer = _without_ending(answer)
    if len(answer) > 4 and answer[:2] == answer[-2:] == "**" and "**" not in answer[2:-2]:
        answer = _without_ending(answer[2:-2])
    if len(answer) > 2 and answer[0] == answer[-1] == "$" and "$" not in answer[1:-1]:
        answer = _without_ending(answer[1:-1])
    if (match := BOLD.fullmatch(answer)) and _balanced(match[1]):
        answer = _without_ending(match[1])
    return answer


def _without_ending(text: str) -> str:
    text = text.strip()
    kept = text.rstrip(" \t\r\n\\~.,;")
    return text if text.endswith("..") or kept.endswith(("\\right", "\\left")) else kept  # an ellipsis, a delimiter


def _balanced(text: str) -> bool:
    """Whether every brace in the text is closed in it."""
    depth = 0
    for character in text:
        depth += (character == "{") - (character == "}")
        if depth < 0:
            return False
    return depth == 0


def thousands(text: str) -> str:
    """The text without its commas, if it is one number with its thousands grouped: 1,000 and not 3,4."""
    return text.replace(",", "") if THOUSANDS.fullmatch(text) else text


def respell(latex: str) -> str:
    """The same formula in spellings that math-verify reads."""
    for pattern, replacement in SPELLINGS:
        latex = pattern.sub(replacement, latex)
    return latex


def compare_numbers(given: str, known: str) -> bool | None:
    r"""Exact comparison of two plain numbers, None where either is something else.

    Plain are integers of any length, decimals, repeating ones (`0.\overline{3}`), a/b and `\frac{a}{b}` of integers,
    decorated or not, thousands grouped or not; and two integers that both name their base (52_8). A decimal of six
    significant digits or more equals the number without a finite decimal that it rounds or truncates: 0.333333 is 1/3.
    """
    given, known = thousands(undecorated(given)), thousands(undecorated(known))
    left, right = integer(given), integer(known)
    if left is not None and right is not None:
        return left == right
    if max(len(given), len(known)) > MAX_NUMBER:
        return None
    left, right = _rational(given), _rational(known)
    if left is None or right is None:
        left, right = _based(given), _based(known)
        return None if left is None or right is None else left == right
    return left == right or _rounds(given, right) or _rounds(known, left)


def _rational(text: str) -> Fraction | None:
    if match := DECIMAL.fullmatch(text):
        sign, whole, places, repeated = match.groups()
        if not whole + places + (repeated or "") or (repeated and "." not in text):
            return None
        value = Fraction(int(whole + places or "0"), 10 ** len(places))
        if repeated:
            value += Fraction(int(repeated), (10 ** len(repeated) - 1) * 10 ** len(places))
    elif match := RATIO.fullmatch(text):
        sign, a, b, c, d = match.groups()
        if int(b or d) == 0:
            return None
        value = Fraction(int(a or c), int(b or d))
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


def _based(text: str) -> int | None:
    match = BASED.fullmatch(text)
    if match is None:
        return None
    digits, base = match[1], int(match[2] or match[3])
    if not 2 <= base <= 10 or int(max(digits.lstrip("+-"))) >= base:
        return None
    return int(digits, base)
