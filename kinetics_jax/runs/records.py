"""What the files of a run folder may hold, field by field, and their lines read one at a time.

A schema is a mapping from a field's name to its kind: the types and the range that a value may have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kinetics_jax.errors import UserError, spelled
from kinetics_jax.files import open_regular, parse_json

NONFINITE = "nonfinite"  # how a sample ends whose logits are not finite
MAX_LINE = 256 << 20  # bytes of a record: a million tokens and their text take a tenth
MAX_TOKENS = 1 << 31  # of a prompt or a sample; ids of tokens are below it too
MAX_SAMPLES = 10**9  # numbers of samples
MAX_READ = 1 << 62  # tokens that a sample attends to in all


class TraceError(UserError):
    """A run folder that cannot be read or continued; the message names the file and the cure."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of value: what it is in words, and whether a value is one."""

    words: str
    holds: Callable[[Any], bool]

    def or_null(self) -> Kind:
        """The same, or null."""
        return Kind(f"{self.words}, or null", lambda value: value is None or self.holds(value))


def whole(low: int, high: int) -> Kind:
    """A whole number in `low` … `high`; true and false are none."""
    return Kind(f"a whole number in {low} … {high}", lambda value: type(value) is int and low <= value <= high)


def number(low: float, high: float) -> Kind:
    """A finite number in `low` … `high`."""
    return Kind(
        f"a number in {low:g} … {high:g}",
        lambda value: type(value) in (int, float) and math.isfinite(float_of(value)) and low <= value <= high,
    )


def float_of(value: float) -> float:
    """A number as a float, infinite where it is a whole one beyond all floats."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _token_ids(value: Any) -> bool:
    """A list of token ids; three passes in C, since there are tens of thousands of them in every record."""
    if type(value) is not list or not set(map(type, value)) <= {int}:
        return False
    return not value or (min(value) >= 0 and max(value) < MAX_TOKENS)


TEXT = Kind("text", lambda value: isinstance(value, str))
NAME = Kind("text that is not empty", lambda value: isinstance(value, str) and value != "")
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
TOKEN_IDS = Kind("a list of token ids", _token_ids)

RECORD: dict[str, Kind] = {
    "problem": NAME,
    "sample": whole(0, MAX_SAMPLES),
    "seed": whole(0, 2**32 - 1),
    "prompt_tokens": whole(0, MAX_TOKENS),
    "output_tokens": TOKEN_IDS,
    "text": TEXT.or_null(),
    "finish_reason": NAME,
    "correct": FLAG.or_null(),
    "answer": TEXT.or_null(),
    "grader": NAME,
    "seconds": number(0, 1e12),
    # What the sample's decode steps read, over layers and KV heads, as the device counted it.
    "attended_tokens": whole(0, MAX_READ).or_null(),
    "summary_vectors": whole(0, MAX_READ).or_null(),
}
# Of a record, where it is there: what not every run has.
OPTIONAL: dict[str, Kind] = {
    "score": number(-1e300, 1e300).or_null(),
    "why": TEXT.or_null(),
    **dict.fromkeys(("agreement", "speculation"), OBJECT.or_null()),
}
LATER_RECORD = ("attended_tokens", "summary_vectors")  # which earlier versions did not write
PROBLEM: dict[str, Kind] = {"id": NAME, "question": TEXT, "answer": TEXT, "prompt": TEXT}
OPTIONAL_PROBLEM: dict[str, Kind] = {
    "choices": Kind("a list of texts", lambda value: isinstance(value, list) and all(map(TEXT.holds, value))),
    "fields": OBJECT,
}
FUNCTION = Kind(
    "an object with a function's name and fingerprint",
    lambda value: (
        isinstance(value, dict) and all(isinstance(each, str) for each in value.values()) and "function" in value
    ),
)
# Of run.json. Earlier versions, and runs made by hand, lack some: a field is judged where it is there.
HEADER: dict[str, Kind] = {
    "model": NAME,
    "config": OBJECT,
    **dict.fromkeys(("weights", "digest", "prompt_ids"), TEXT.or_null()),
    **dict.fromkeys(("dtype", "kv_dtype", "weight_dtype"), TEXT.or_null()),
    "policy": NAME,
    "sampling": OBJECT,
    "task": TEXT.or_null(),
    "n": whole(0, MAX_SAMPLES),
    "slots": whole(1, MAX_SAMPLES),
    "chunk": whole(1, MAX_SAMPLES),
    "prefill_chunk": whole(1, MAX_TOKENS),
    "shared_prefix": FLAG,
    **dict.fromkeys(("grader", "score"), FUNCTION.or_null()),
    **dict.fromkeys(("template", "instruction", "system"), TEXT.or_null()),
    **dict.fromkeys(("prompt_template", "recommended"), OBJECT.or_null()),
    "shuffled_choices": whole(0, 2**63).or_null(),
    "speculate": OBJECT.or_null(),
    "command": TEXT.or_null(),
}
SAMPLING: dict[str, Kind] = {
    "temperature": number(0, 1e6),
    "top_p": number(0, 1),
    "top_k": whole(0, MAX_TOKENS),
    "min_p": number(0, 1),
    "max_tokens": whole(1, MAX_TOKENS),
    "seed": whole(0, 2**32 - 1),
    "repetition_window": whole(0, MAX_TOKENS),
    "known_ids_only": FLAG,
}


def misfits(fields: Mapping[str, Any], schema: Mapping[str, Kind], *, all_needed: bool = True) -> str:
    """What is wrong with an object in one clause, its first fault; empty for nothing. Other fields are not judged."""
    if all_needed and (missing := [name for name in schema if name not in fields and name not in LATER_RECORD]):
        return f"missing {', '.join(missing)}"
    for name, kind in schema.items():
        if name in fields and not kind.holds(fields[name]):
            return f"{name} cannot be {spelled(fields[name])}; it is {kind.words}"
    return ""


def lines_of(path: Path, *, error: type[UserError] = TraceError) -> Iterator[tuple[int, bytes]]:
    """The lines of a regular file with their numbers from 1, each with its line feed; nothing else ends a line.

    Raises `error` for what is no regular file, and for a line beyond MAX_LINE bytes; FileNotFoundError for no file.
    """
    with open_regular(path, error=error) as file:
        number = 0
        while line := file.readline(MAX_LINE):
            number += 1
            if len(line) == MAX_LINE:
                raise error(f"{path}, line {number}: is longer than {MAX_LINE:,} bytes, which no record is")
            yield number, line


def parse_line(path: Path, number: int, line: bytes, *, error: type[UserError] = TraceError) -> dict[str, Any]:
    """The record in a line. Raises `error`, naming the line, for what is none."""
    where = f"{path}, line {number}"
    if b"\r" in line.strip():
        raise error(
            f"{where}: holds a carriage return, where records end in line feeds; put the line feeds back (every record "
            "after a wrong line end would be lost)"
        )
    try:
        return parse_json(line, where, error=error)
    except error as why:
        raise error(f"{why}; mend or remove that line") from why
