"""Problem sets by task name, from the hub or from a file."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import math
import re
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kinetics_jax.assets import ASSETS, FAMILIES
from kinetics_jax.assets import LEDGER as LEDGER_FAMILY
from kinetics_jax.errors import UserError
from kinetics_jax.hub import HubError, download
from kinetics_jax.tasks.answers import all_boxes, last_answer_box
from kinetics_jax.tasks.exact import thousands
from kinetics_jax.tasks.known_answers import keep_lost
from kinetics_jax.tasks.ledger import LEDGER, ROUTE

BUILTIN = "builtin"
QUESTION_COLUMNS = ("question", "problem", "prompt", "query")
ANSWER_COLUMNS = ("answer", "expected_answer", "final_answer", "gold", "target")
SOLUTION_COLUMNS = ("solution", "reference_solution")  # used if there is no column of answers: the last box of each
ID_COLUMNS = ("id", "unique_id", "problem_id")


SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


class TaskError(UserError):
    """A task or problem file that cannot be used; the message names what and where."""


# A record and where it stands, for messages.
Record = tuple[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question with its known answer; `id` is unique in its set and fixes the problem's random draws.

    Of multiple choice `choices` are the texts in the order that a model reads them, and the answer is a letter.
    `fields` are the record's other columns, which own graders and prompt templates read.
    """

    id: str
    question: str
    answer: str
    choices: tuple[str, ...] = ()
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def stored(self, prompt: str) -> dict[str, Any]:
        """What a run folder keeps of it, with the text that the model read."""
        plain = {"id": self.id, "question": self.question, "answer": self.answer, "prompt": prompt}
        more = {"choices": list(self.choices), "fields": dict(self.fields)}
        return plain | {name: value for name, value in more.items() if value}


def problem_fields(stored: Mapping[str, Any]) -> dict[str, Any]:
    """What a grader or a template reads of a problem: the other columns of its record, then its own fields."""
    return {**stored.get("fields", {}), **{name: value for name, value in stored.items() if name != "fields"}}


@dataclasses.dataclass(frozen=True)
class HubTask:
    """A data set on the Hugging Face hub: repository, split, columns, and how many problems it has."""

    repository: str
    split: str
    question: str
    answer: str
    count: int


HUB_TASKS = {
    "aime24": HubTask("HuggingFaceH4/aime_2024", "train", "problem", "answer", 30),
    "aime25": HubTask("math-ai/aime25", "test", "problem", "answer", 30),
    "amc23": HubTask("math-ai/amc23", "test", "question", "answer", 40),
    "math500": HubTask("HuggingFaceH4/MATH-500", "test", "problem", "answer", 500),
    "gsm8k": HubTask("InfiniAILab/gsm8k", "test", "question", "answer", 1319),
}
# Tasks whose problems come with the package, and the columns of their answers. A route is held to its question's rules.
PACKAGED = {
    BUILTIN: (ASSETS / "problems.jsonl", "answer"),
    LEDGER: (FAMILIES[LEDGER_FAMILY] / "ledger.jsonl", "answer"),
    ROUTE: (FAMILIES[LEDGER_FAMILY] / "route.jsonl", "question"),
}
TASKS = (*PACKAGED, *HUB_TASKS)


def load_problems(task: str, *, limit: int | None = None) -> list[Problem]:
    """The first `limit` problems of a task (all by default), in the order of its file.

    A hub task is downloaded, or taken from the hub's cache, which needs no network. Raises TaskError for an unknown
    task, if the hub cannot be reached, or if its data set has changed.
    """
    if task not in TASKS:
        raise TaskError(f"task {task!r} is not known (known: {', '.join(TASKS)})")
    _check_limit(f"task {task!r}", limit)
    if task in PACKAGED:
        path, answer = PACKAGED[task]
        problems = load_problem_file(path, answer_column=answer, limit=limit)
        return [dataclasses.replace(problem, fields={}) for problem in problems]
    hub = HUB_TASKS[task]
    files = split_files(_download(hub.repository), hub.split, hub.repository)
    records = [record for path in files for record in _read(path)]
    problems = problems_of(records, hub.question, hub.answer, task)
    if len(problems) != hub.count:
        raise TaskError(f"{hub.repository}: {len(problems)} problems in split {hub.split}, {task} has {hub.count}")
    return problems[:limit]


def load_problem_file(
    path: str | Path,
    *,
    question_column: str | None = None,
    answer_column: str | None = None,
    task: str | None = None,
    limit: int | None = None,
    needs_answers: bool = True,
) -> list[Problem]:
    r"""The first `limit` problems of a file: JSONL, JSON, CSV with a header, or Parquet.

    A JSON file holds a list of objects, an object with such a list in it, or columns.
    Columns that are not named are looked for by the names that data sets use; a column of solutions gives what
    their last box holds. An answer with `####` is what follows it. Ids are the file's own (columns id, unique_id,
    problem_id) where all problems have one and no two the same, else `<task>-<index>`, the task being the file's stem
    unless named: name it, and a set has the same ids from a file as from the hub, if the file is the hub's.
    Without `needs_answers`, as for own graders, a file may
    have no column of answers, which are then empty. Raises TaskError naming file and line.
    """
    path = Path(path)
    records, columns, question_column = read_problem_records(path, question_column, limit)
    task = task or path.stem
    if answer_column is None and not needs_answers and not _has_answers(columns):
        return problems_of(records, question_column, None, task)[:limit]
    answer_column = answer_column or _find_column(path, "answer", columns, ANSWER_COLUMNS, SOLUTION_COLUMNS)
    return problems_of(records, question_column, answer_column, task)[:limit]


def read_problem_records(
    path: Path, question_column: str | None, limit: int | None
) -> tuple[list[Record], list[str], str]:
    """The records of a problem file, its columns, and that of the questions."""
    _check_limit(str(path), limit)
    records = list(_read(path))
    if not records:
        raise TaskError(f"{path}: holds no problems")
    columns = list(dict.fromkeys(name for _, record in records for name in record))
    return records, columns, question_column or _find_column(path, "question", columns, QUESTION_COLUMNS)


def _has_answers(columns: list[str]) -> bool:
    return any(column.strip().lower() in (*ANSWER_COLUMNS, *SOLUTION_COLUMNS) for column in columns)


def _check_limit(what: str, limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise TaskError(f"{what}: the number of problems must be at least 1, got {limit}")


def _find_column(path: Path, kind: str, columns: list[str], *choices: Sequence[str]) -> str:
    """The column whose lower-case name is among the first `choices` that match any; TaskError unless exactly one is."""
    for names in choices:
        matches = [column for column in columns if column.strip().lower() in names]
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise TaskError(f"{path}: {' and '.join(matches)} may hold the {kind}; say which with --{kind}-column")
    listed = ", ".join(column[:40] for column in columns[:20]) + (" …" if len(columns) > 20 else "")
    separator = next((name for sign, name in SEPARATORS.items() if len(columns) == 1 and sign in columns[0]), None)
    if separator is not None:
        raise TaskError(f"{path}: the columns are separated by {separator}; a CSV file separates them by commas")
    raise TaskError(f"{path}: no column has a name of {kind}s; name one with --{kind}-column (columns: {listed})")


def problems_of(
    records: list[Record],
    question_column: str,
    answer_column: str | None,
    task: str,
    used: Collection[str] = (),
) -> list[Problem]:
    """The problems of records; `used`: columns beside these two that are no fields of their own."""
    if answer_column is not None and answer_column.lower() in SOLUTION_COLUMNS:
        _tell_other_boxes(records, answer_column)
    ids = own_ids([record for _, record in records])
    problems = []
    for index, (where, record) in enumerate(records):
        question = _text(where, record, question_column)
        answer = (
            "" if answer_column is None else _final_answer(where, answer_column, _text(where, record, answer_column))
        )
        problem_id = ids[index] if ids else f"{task}-{index}"
        _check_unicode(where, "the id", problem_id)
        left = {name: value for name, value in record.items() if name not in (question_column, answer_column, *used)}
        problems.append(Problem(problem_id, question, answer, fields=_plain_fields(left)))
    _tell_contradictions(problems, task)
    return problems


def _plain_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record's columns as JSON has them; those that it cannot have (bytes) are left out."""
    kept = {}
    for name, value in record.items():
        with contextlib.suppress(TypeError, UnicodeEncodeError, RecursionError):
            plain = _plain(value)
            json.dumps(plain, ensure_ascii=False).encode("utf-8")
            kept[name] = plain
    return kept


def _plain(value: Any) -> Any:
    """Arrays as lists, dates as text, missing and infinite numbers as None. Raises TypeError for what JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not kept")


def _tell_other_boxes(records: list[Record], column: str) -> None:
    """Warns of solutions with boxes that differ: the last one is the known answer."""
    several = [where for where, record in records if len(all_boxes(str(record.get(column)))) > 1]
    if several:
        warnings.warn(f"{_counted(several)}: {column!r} boxes several answers; the last one counts", stacklevel=4)


def _tell_contradictions(problems: list[Problem], task: str) -> None:
    """Warns of questions that stand there more than once with other answers."""
    first: dict[str, Problem] = {}
    pairs = [
        f"{earlier.id} and {problem.id}"
        for problem in problems
        if (earlier := first.setdefault(" ".join(problem.question.split()), problem)).answer != problem.answer
    ]
    if pairs:
        warnings.warn(f"{task}: the same question with different answers: {_counted(pairs)}", stacklevel=4)


def _counted(names: list[str]) -> str:
    """The first three of some names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return "; ".join(name[:120] for name in names[:3]) + more


def own_ids(records: list[dict[str, Any]]) -> list[str] | None:
    """The ids in the first column that gives every record its own; None if no column does."""
    for column in ID_COLUMNS:
        values = [record.get(column) for record in records]
        if all(isinstance(value, str | int) and not isinstance(value, bool) and value != "" for value in values):
            ids = [str(value) for value in values]
            if len(set(ids)) == len(ids):
                return ids
    return None


def _text(where: str, record: dict[str, Any], column: str) -> str:
    """A column's text; numbers as people write them. Refuses what is missing, empty, or no Unicode text."""
    if column not in record:
        raise TaskError(f"{where}: no column {column!r} (columns: {', '.join(record)})")
    value = record[column]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    finite = math.isfinite(value) if isinstance(value, float) else isinstance(value, int)
    if finite and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise TaskError(f"{where}: {column!r} must be text or a number, got {value!r:.60}")
    if not value.strip():
        raise TaskError(f"{where}: {column!r} is empty")
    _check_unicode(where, repr(column), value)
    return value


def _check_unicode(where: str, what: str, text: str) -> None:
    r"""Refuses half of a surrogate pair, which JSON can spell (`"\ud800"`) and no tokenizer or UTF-8 file can take."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise TaskError(
            f"{where}: {what} holds half of a surrogate pair ({text[error.start]!r}, character {error.start + 1})"
        ) from error


def _final_answer(where: str, column: str, text: str) -> str:
    _, marked, final = text.rpartition("####")
    if marked:
        answer = thousands(final.strip())
    elif column.lower() in SOLUTION_COLUMNS:
        answer = last_answer_box(text)
        if answer is None:
            raise TaskError(f"{where}: {column!r} boxes no answer; name the column of final answers (--answer-column)")
    else:
        answer = keep_lost(text)
    if not answer.strip():
        raise TaskError(f"{where}: {column!r} ends without an answer")
    return answer


def _read(path: Path) -> Iterator[Record]:
    """Records of a file and where they stand, by the ending of its name."""
    if path.suffix.lower() not in READERS:
        raise TaskError(f"{path}: a problem file ends in {', '.join(READERS)}")
    if not path.is_file():
        raise TaskError(f"{path}: no such file")
    try:
        yield from READERS[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise TaskError(f"{path}: not UTF-8 text (byte {error.start})") from error


def _read_jsonl(path: Path) -> Iterator[Record]:
    # Lines end with \n alone: str.splitlines would cut texts at separators that JSON leaves as they are.
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            yield where, _object(where, _parse(where, line))


def _read_json(path: Path) -> Iterator[Record]:
    text = path.read_text(encoding="utf-8-sig")
    first = next((line for line in text.split("\n") if line.strip()), "")
    if first.lstrip().startswith("{") and _is_object(first) and text.strip() != first.strip():
        yield from _read_jsonl(path)  # the hub has JSON lines under this name too
        return
    for number, record in enumerate(_records(path, _parse(str(path), text)), start=1):
        where = f"{path}, record {number}"
        yield where, _object(where, record)


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _records(path: Path, value: Any) -> list[Any]:
    """The records of a JSON file: a list; an object that holds one list of them; or one object, which is a record."""
    if isinstance(value, list):
        return value
    if not isinstance(value, dict):
        raise TaskError(f"{path}: must be a list of objects, got {value!r:.60}")
    lists = {
        name: held for name, held in value.items() if isinstance(held, list) and all(map(_is_record, held)) and held
    }
    if len(lists) == 1:
        return next(iter(lists.values()))
    if lists:
        raise TaskError(f"{path}: {' and '.join(name[:40] for name in lists)} are lists of objects; keep one of them")
    if value and all(map(_is_record, value.values())):
        if any(name.strip().lower() in QUESTION_COLUMNS for name in value):  # columns by a key
            keys = next(iter(value.values()))
            return [{name: column.get(key) for name, column in value.items()} for key in keys]
        return list(value.values())  # records by a key
    lengths = {len(held) if isinstance(held, list) else -1 for held in value.values()}
    if len(lengths) == 1 and -1 not in lengths:  # columns
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    return [value]


def _is_record(value: Any) -> bool:
    return isinstance(value, dict)


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TaskError(f"{where}: not valid JSON ({error})") from error


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TaskError(f"{where}: must be an object with named columns, got {value!r:.60}")
    return value


def _read_csv(path: Path) -> Iterator[Record]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        try:
            header = reader.fieldnames or []
            if twice := [name for index, name in enumerate(header) if name in header[:index]]:
                raise TaskError(f"{path}, line {reader.line_num}: the header has column {twice[0]!r} more than once")
            for record in reader:
                where = f"{path}, line {reader.line_num}"
                if None in record or None in record.values():
                    raise TaskError(f"{where}: not as many fields as the header has")
                yield where, record
        except csv.Error as error:
            raise TaskError(f"{path}, line {reader.reader.line_num}: not valid CSV ({error})") from error


def _read_parquet(path: Path) -> Iterator[Record]:
    import pandas as pd

    try:
        table = pd.read_parquet(path)
    except (ValueError, OSError) as error:  # pyarrow's errors are among these
        raise TaskError(f"{path}: not a Parquet file ({str(error).splitlines()[0]})") from error
    for name in [name for name, kind in table.dtypes.items() if kind in ("float32", "float16")]:
        # At its own precision: pandas would widen 0.1 to 0.10000000149011612.
        table[name] = [float(str(value)) for value in table[name].to_numpy()]
    for index, record in enumerate(table.to_dict(orient="records")):
        yield f"{path}, row {index}", {str(name): value for name, value in record.items()}


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".parquet": _read_parquet,
}


def _download(repository: str) -> Path:
    """The directory of a data set's files, downloaded from the hub or from its cache."""
    try:
        return download(repository, kind="dataset", allow_patterns=[f"*{suffix}" for suffix in READERS])
    except HubError as error:
        raise TaskError(str(error)) from error


def split_files(folder: Path, split: str, repository: str) -> list[Path]:
    """The data files of one split of a data set: `test.jsonl`, `data/test-00000-of-00001.parquet`, `test/0.json` …

    One folder and one format (in the order of READERS, where a set comes in several); shards in their order. Raises
    TaskError if there is none, or if several folders (configurations) have one.
    """
    named = re.compile(rf"(?:^|[^a-z0-9]){re.escape(split)}(?:[^a-z0-9]|$)")
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix.lower() in READERS]
    matches = [path for path in files if named.search(path.relative_to(folder).with_suffix("").as_posix().lower())]
    if not matches:
        raise TaskError(
            f"{repository}: no data file of split {split!r} in {folder} "
            f"(files: {', '.join(path.relative_to(folder).as_posix() for path in files) or 'none'})"
        )
    if len(parents := {path.parent.relative_to(folder).as_posix() for path in matches}) > 1:
        raise TaskError(
            f"{repository}: split {split!r} is in several folders ({', '.join(sorted(parents))}); "
            f"download one and give its file instead"
        )
    suffix = min((path.suffix.lower() for path in matches), key=list(READERS).index)
    return [path for path in matches if path.suffix.lower() == suffix]
