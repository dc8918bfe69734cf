r"""Known answers that no final answer of a model can match: prose, LaTeX that lost its backslashes, noise of floats."""

from __future__ import annotations

import re
import struct

from kinetics_jax.tasks.exact import DECIMAL
from kinetics_jax.tasks.formulas import Reading
from kinetics_jax.tasks.reading import final_form, read

MAX_ANSWER = 4000  # characters; more is no answer, and math-verify's time grows faster than its input
MAX_WORDS = 8  # words of an answer in words; more is prose, which no model writes letter by letter

# What JSON makes of \frac, \theta, \beta, \neq and \right with a single backslash: one control character and the rest.
ESCAPES = {"\f": "f", "\t": "t", "\b": "b", "\n": "n", "\r": "r", "\v": "v"}
LOST = re.compile(
    r"\f(?:rac|box|orall|loor)|\t(?:heta|ext[a-z]*|imes|frac|an|au|o|riangle|herefore|ilde|op)(?![a-z])"
    r"|\x08(?:eta|egin|inom|ar|oxed|ig|oldsymbol|mod|m)(?![a-z])|\n(?:eq|e|u|abla|ot|otin|mid)(?![a-z])"
    r"|\r(?:ight|angle|ho|brace|floor|ceil|m)(?![a-z])|\v(?:ec|arphi|arnothing|ee|dots)(?![a-z])"
)
STRIPPED = re.compile(
    r"(?<![A-Za-z\\])(?:(rac)\s*\{|(heta|imes|ightarrow|arnothing|arphi)(?![a-z])|(ext|oxed|egin|inom)\s*\{)"
)
SHEET_DATE = re.compile(
    r"[0-9]{1,2}-(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)(?:-[0-9]{2,4})?"
    r"|(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)-[0-9]{2,4}"
)


def keep_lost(text: str) -> str:
    """The text without space around it, but with a control character that a command of LaTeX has become."""
    begin = len(text) - len(text.lstrip())
    if begin and LOST.match(text, begin - 1):
        return text[begin - 1 :].rstrip()
    return text.strip()


def fault(answer: str) -> str | None:
    """Why no final answer can match a known one, as far as its text tells; None where one may."""
    if len(answer) > MAX_ANSWER:
        return f"{len(answer)} characters, at most {MAX_ANSWER} are read"
    if match := LOST.search(answer):
        return f"a backslash was lost: \\{ESCAPES[match[0][0]]}{match[0][1:]} became a control character"
    if match := STRIPPED.search(answer):
        return f"a backslash was lost before {match[0]!r}"
    if SHEET_DATE.fullmatch(answer.strip()):
        return "a date, as spreadsheets make of a fraction"
    if exact := without_noise(answer.strip()):
        return f"rounding noise of a float: write {exact}"
    reading = read(answer)
    if reading.kind == "unread":
        return f"cannot be read: {reading.why}"
    form = final_form(answer)
    if form is not None:
        return f"a sentence: give the final answer alone, {form[:40]!r}"
    if reading.kind == "words" and len(reading.text.split()) > MAX_WORDS:
        return f"prose of {len(reading.text.split())} words"
    return None


def without_noise(text: str) -> str | None:
    """The short decimal that a float was made from, where the text is that float's many digits; None elsewhere."""
    match = DECIMAL.fullmatch(text)
    if match is None or match[4] or "." not in text or len(text) > 40:
        return None
    digits, value = len((match[2] + match[3]).strip("0")), float(text)
    if digits >= 16 and len(_digits(short := f"{value:.15g}")) <= 12:
        return short
    try:
        single = struct.unpack("f", struct.pack("f", value))[0]
    except OverflowError:
        return None
    if single != value:
        return None
    for places in range(1, 8):
        short = f"{value:.{places}g}"
        if struct.unpack("f", struct.pack("f", float(short)))[0] == value:
            return short if digits >= places + 5 else None
    return None


def _digits(number: str) -> str:
    return re.sub(r"e.*|[^0-9]", "", number).strip("0")


def formulas(reading: Reading) -> list[str]:
    """The formulas of a reading, which math-verify must be able to read."""
    if reading.kind == "list":
        return [core for part in reading.parts for core in formulas(part)]
    return [reading.core] if reading.kind == "formula" else []
