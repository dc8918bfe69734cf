"""Multiple-choice problems as data sets store them: their choices and the letter of the right one. No jax.

Choices stand in a column that holds a list (MMLU, MMLU-Pro), an object of labels and texts (ARC, MedQA), or a column
each (`A`, `B`, …; `opa`, `opb`, …; GPQA's `Correct Answer`, `Incorrect Answer 1`, …). The right one is named by letter,
label, text or number. A column is read in the one way that fits all its values; two ways that fit and differ, or
columns that contradict each other, are refused.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kinetics_jax.errors import shown, spelled
from kinetics_jax.tasks.choice_grading import LETTERS
from kinetics_jax.tasks.problems import Problem, Record, TaskError, own_ids, problems_of, read_problem_records

LISTS = ("options", "choices", "candidates", "answer_choices", "endings")
RIGHT = [
    "answer",
    "answerkey",
    "answer_key",
    "label",
    "gold",
    "target",
    "correct",
    "correct_answer",
    "correct_option",
    "cop",
    "answer_index",
    "answer_idx",
    "answer_letter",
    "correct_index",
]
LETTERED = re.compile(r"(?:(?:option|choice|answer|opt|op)[ _]?)?([a-j]|[1-9]|10)", re.IGNORECASE)
CORRECT = re.compile(r"correct[ _]?answer|best[ _]?answer", re.IGNORECASE)
INCORRECT = re.compile(r"(?:incorrect[ _]?answer|distractor)[ _]?[0-9]+", re.IGNORECASE)
PLACED = re.compile(
    r"\b(?:all|none|both|neither|any|some) of (?:the )?(?:above|below|others?|these|preceding|following)\b"
    r"|\b(?:both|neither|either|only|all of) (?:\(?[A-J1-9]\)?,?\s*)+(?:and|or|nor)\s+\(?[A-J1-9]\)?(?![\w])"
    r"|^\(?[A-J]\)? (?:and|or) \(?[A-J]\)?(?:\s+only)?$",
    re.IGNORECASE,
)
LETTER = "the letter of the right choice"  # a column of its own, beside those of a file


class ChoiceError(TaskError):
    """Choices, or right ones, that cannot be read; the message names where."""


@dataclasses.dataclass(frozen=True)
class Choices:
    """Where the choices of a file stand: `columns`, one that holds them all or one for each; none: found by their
    names. `shuffle` is the seed by which each problem's choices are put in another order; None: as they stand.
    """

    columns: tuple[str, ...] = ()
    shuffle: int | None = None


AS_THEY_STAND = Choices()


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The choices of a problem in the order that a model reads them, and the letter of the right one."""

    texts: tuple[str, ...]
    answer: str


def load_choice_file(
    path: str | Path,
    how: Choices = AS_THEY_STAND,
    *,
    question_column: str | None = None,
    answer_column: str | None = None,
    task: str | None = None,
    limit: int | None = None,
) -> list[Problem]:
    """The first `limit` multiple-choice problems of a file, as `load_problem_file` reads it: the answer of each is a
    letter. Raises TaskError and ChoiceError naming file and line.
    """
    path = Path(path)
    task = task or path.stem
    records, columns, question_column = read_problem_records(path, question_column, limit)
    if answer_column is not None and answer_column not in columns:
        raise ChoiceError(f"{path}: no column {answer_column!r} (columns: {', '.join(columns)[:300]})")
    names = own_ids([record for _, record in records]) or [f"{task}-{index}" for index in range(len(records))]
    chosen, used = read_choices(str(path), records, names, how, answer_column)
    lettered = [(at, {**record, LETTER: each.answer}) for (at, record), each in zip(records, chosen, strict=True)]
    problems = problems_of(lettered, question_column, LETTER, task, used)
    return [dataclasses.replace(problem, choices=each.texts) for problem, each in zip(problems, chosen, strict=True)][
        :limit
    ]


def read_choices(
    path: str, records: Sequence[Record], names: Sequence[str], how: Choices, answer_column: str | None
) -> tuple[list[Chosen], set[str]]:
    """The choices of every record, and the columns that they and the right ones stand in.

    `names` are the problems' ids, which take part in the shuffle. Raises ChoiceError naming file and line.
    """
    columns = list(dict.fromkeys(name for _, record in records for name in record))
    found, right = _columns(path, columns, how.columns)
    held = [_texts(where, record, found) for where, record in records]
    texts = [each for each, _ in held]
    if right is not None and answer_column is None:
        places, used = [found.index(right)] * len(records), {right}
        if how.shuffle is None:
            raise ChoiceError(
                f"{path}: the right choice has a column of its own ({right}), so that it would stand at the same place "
                "in every problem; shuffle the choices (--shuffle-choices SEED)"
            )
    else:
        named = (
            [answer_column] if answer_column else [c for c in columns if c.strip().lower() in RIGHT and c not in found]
        )
        if not named:
            raise ChoiceError(f"{path}: no column says which choice is right; name one with --answer-column")
        places, used = _places(path, records, held, named), set(named)
    _tell(path, records, texts, how)
    chosen = []
    for name, each, place in zip(names, texts, places, strict=True):
        order = list(range(len(each)))
        if how.shuffle is not None:
            order.sort(key=lambda index: _rank(how.shuffle, name, index))
        chosen.append(Chosen(tuple(each[index] for index in order), LETTERS[order.index(place)]))
    return chosen, {*found, *used}


def _rank(seed: int | None, name: str, index: int) -> bytes:
    """Where a choice goes: the same everywhere for a seed, a problem and a choice."""
    return hashlib.blake2b(f"{seed}\n{name}\n{index}".encode(), digest_size=16).digest()


def _columns(path: str, columns: Sequence[str], given: Sequence[str]) -> tuple[list[str], str | None]:
    """The columns of choices, and that of the right one where it has its own (then among them)."""
    listed = ", ".join(shown(column, 40) for column in columns[:20]) + (" …" if len(columns) > 20 else "")
    if given:
        if strangers := [name for name in given if name not in columns]:
            raise ChoiceError(f"{path}: no column {strangers[0]!r} (columns: {listed})")
        right = [name for name in given if CORRECT.fullmatch(name.strip())]
        return list(given), right[0] if len(given) > 1 and len(right) == 1 else None
    lists = [column for column in columns if column.strip().lower() in LISTS]
    correct = [column for column in columns if CORRECT.fullmatch(column.strip())]
    wrong = [column for column in columns if INCORRECT.fullmatch(column.strip())]
    lettered = {match[1].lower(): column for column in columns if (match := LETTERED.fullmatch(column.strip()))}
    ways: list[tuple[list[str], str | None]] = [([column], None) for column in lists]
    if len(correct) == 1 and wrong:
        ways.append(([*correct, *wrong], correct[0]))
    for series in (LETTERS.lower(), [str(number) for number in range(1, 11)]):
        row = [lettered[sign] for sign in series if sign in lettered]
        if len(row) > 1 and all(sign in lettered for sign in list(series)[: len(row)]):
            ways.append((row, None))
    if len(ways) > 1:
        several = " or ".join("/".join(shown(name, 40) for name in way[:3]) for way, _ in ways)
        raise ChoiceError(f"{path}: the choices may stand in {several}; say which with --choice-columns")
    if not ways:
        raise ChoiceError(
            f"{path}: no column has a name of choices; name them with --choice-columns (columns: {listed})"
        )
    return ways[0]


def _texts(where: str, record: Mapping[str, Any], columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """(texts, labels) of a record's choices."""
    if missing := [name for name in columns if name not in record]:
        raise ChoiceError(f"{where}: no column {missing[0]!r}")
    labels: Sequence[Any] = ()
    if len(columns) > 1:
        values: Sequence[Any] = [record[name] for name in columns]
        while values and (values[-1] is None or str(values[-1]).strip() in ("", "nan")):
            values = values[:-1]  # problems may have fewer choices than there are columns
    else:
        value = _listed(record[columns[0]])
        if isinstance(value, Mapping) and {"text", "label"} <= value.keys():
            values, labels = _listed(value["text"]), _listed(value["label"])
        elif isinstance(value, Mapping):
            values, labels = list(value.values()), list(value)
        else:
            values = value
    if not isinstance(values, list | tuple) or not isinstance(labels, list | tuple):
        raise ChoiceError(f"{where}: {columns[0]!r} holds no list of choices but {spelled(record[columns[0]], 60)}")
    texts = [_text(where, value) for value in values]
    if not 2 <= len(texts) <= len(LETTERS):
        raise ChoiceError(f"{where}: has {len(texts)} choices; 2 to {len(LETTERS)} can be asked for")
    if labels and len(labels) != len(texts):
        raise ChoiceError(f"{where}: has {len(texts)} choices and {len(labels)} labels")
    return texts, [str(label).strip() for label in labels]


def _listed(value: Any) -> Any:
    """A list as it is; one that a cell of a CSV file spells, in JSON or as Python does; arrays as lists."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        for read in (json.loads, ast.literal_eval):
            try:
                return read(value.strip())
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
    return value


def _text(where: str, value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    if not text or text == "nan":
        raise ChoiceError(f"{where}: a choice must be text or a number, got {spelled(value, 60)}")
    return text


def _tell(path: str, records: Sequence[Record], texts: Sequence[Sequence[str]], how: Choices) -> None:
    """Warns of choices that stand twice, and of those that a shuffle makes wrong."""
    twice = [where for (where, _), each in zip(records, texts, strict=True) if len(set(each)) < len(each)]
    if twice:
        warnings.warn(f"{path}: {len(twice)} problems have the same choice twice, the first {twice[0]}", stacklevel=5)
    placed = [where for (where, _), each in zip(records, texts, strict=True) if any(map(PLACED.search, each))]
    if placed and how.shuffle is not None:
        warnings.warn(
            f"{path}: {len(placed)} problems have a choice that speaks of the others' places (all of the above), which "
            f"a shuffle changes; the first {placed[0]}",
            stacklevel=5,
        )


# A way to read a column: (value, texts, labels) → place, None where it does not fit.
Reading = Callable[[Any, Sequence[str], Sequence[str]], int | None]


def _by_label(value: Any, texts: Sequence[str], labels: Sequence[str]) -> int | None:
    return labels.index(str(value).strip()) if labels.count(str(value).strip()) == 1 else None


def _by_letter(value: Any, texts: Sequence[str], labels: Sequence[str]) -> int | None:
    match = re.fullmatch(r"\(?([A-Ja-j])\)?\.?", value.strip()) if isinstance(value, str) else None
    place = LETTERS.index(match[1].upper()) if match else len(texts)
    return place if place < len(texts) else None


def _by_text(value: Any, texts: Sequence[str], labels: Sequence[str]) -> int | None:
    text = value.strip() if isinstance(value, str) else None
    return list(texts).index(text) if text is not None and list(texts).count(text) == 1 else None


def _by_number(first: int) -> Reading:
    def read(value: Any, texts: Sequence[str], labels: Sequence[str]) -> int | None:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        text = str(value).strip()
        whole = isinstance(value, int | str) and not isinstance(value, bool) and re.fullmatch(r"[0-9]{1,3}", text)
        place = int(text) - first if whole else -1
        return place if 0 <= place < len(texts) else None

    return read


READINGS: dict[str, Reading] = {
    "label": _by_label,
    "letter": _by_letter,
    "text": _by_text,
    "number from 0": _by_number(0),
    "number from 1": _by_number(1),
}


def _places(
    path: str, records: Sequence[Record], held: Sequence[tuple[list[str], list[str]]], columns: Sequence[str]
) -> list[int]:
    """Which choice is right in each record, as all `columns` have it that can be read."""
    ways = {name: _readings(name, records, held) for name in columns}
    if unread := [name for name, readings in ways.items() if not readings]:
        if len(unread) == len(columns):
            where, value = _first_unread(unread[0], records, held)
            raise ChoiceError(
                f"{where}: {unread[0]!r} names no choice: {spelled(value, 60)} (a letter, a label, a choice's "
                "text or its number)"
            )
        ways = {name: readings for name, readings in ways.items() if readings}
    agreed = set.intersection(*(set(readings.values()) for readings in ways.values()))
    if len(agreed) == 1:
        return list(next(iter(agreed)))
    if not agreed:
        (first, some), (second, others) = list(ways.items())[:2]
        left, right = next(iter(some.values())), next(iter(others.values()))
        at = next((i for i, (a, b) in enumerate(zip(left, right, strict=True)) if a != b), 0)
        record = records[at][1]
        raise ChoiceError(
            f"{records[at][0]}: {first} {spelled(record.get(first), 40)} and {second} {spelled(record.get(second), 40)}"
            " name different choices; say which column counts (--answer-column)"
        )
    name, readings = min(ways.items(), key=lambda way: len(set(way[1].values())))
    raise ChoiceError(
        f"{path}: {name!r} can be read in {len(readings)} ways that differ ({', '.join(readings)}); write letters "
        f"({LETTERS[0]}, {LETTERS[1]}, …)"
    )


def _readings(
    column: str, records: Sequence[Record], held: Sequence[tuple[list[str], list[str]]]
) -> dict[str, tuple[int, ...]]:
    """The ways to read a column that fit all its values, with the places that they give."""
    found = {}
    for name, read in READINGS.items():
        places: list[int] = []
        for (_, record), (texts, labels) in zip(records, held, strict=True):
            place = read(record.get(column), texts, labels)
            if place is None:
                break
            places.append(place)
        else:
            found[name] = tuple(places)
    if "label" in found:  # where choices have labels, what fits them all is no other letter or number
        return {name: places for name, places in found.items() if name in ("label", "text")}
    return found


def _first_unread(
    column: str, records: Sequence[Record], held: Sequence[tuple[list[str], list[str]]]
) -> tuple[str, Any]:
    """The first value that no way reads, else the first of a column that no one way reads."""
    for (where, record), (texts, labels) in zip(records, held, strict=True):
        if all(read(record.get(column), texts, labels) is None for read in READINGS.values()):
            return where, record.get(column)
    return records[0][0], records[0][1].get(column)
