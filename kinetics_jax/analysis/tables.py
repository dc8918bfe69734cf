"""Plain tables of samples (CSV, JSONL, Parquet): a row per sample, a RunData for every configuration of the rows.

Columns: `problem, sample, tokens, correct`, optionally `prompt_tokens`, `model`, `attention`, `run`, `seed`, `answer`,
`finish_reason`, `score` (a verifier's), and settings (`temperature`, `max_tokens`, `dtype`, …); others are not read. A
count that is left empty is missing, never zero. Rows that leave empty what others say are read as a configuration of
their own.

`cost` (Tera-eFLOPs) and `seconds` are what the sample took, by whoever drew it; with one of them `tokens` is not
needed. `method` names a way of drawing samples that is not this package's: it stands for the model, or behind its name.
"""

from __future__ import annotations

import collections
import csv
import functools
import io
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kinetics_jax.analysis.samples import OWN, RunData, SamplesError, reconcile
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.config import ConfigError, ModelConfig
from kinetics_jax.costs.architectures.architecture import PricedModel
from kinetics_jax.costs.architectures.published import architecture_named
from kinetics_jax.errors import shown, spelled
from kinetics_jax.files import open_regular
from kinetics_jax.runs.records import lines_of, parse_line

# What a column may be called, in any case; messages use the first name.
COLUMNS = {
    "problem": ("problem", "problem_id"),
    "sample": ("sample", "epoch"),
    "tokens": ("tokens", "output_tokens"),
    "correct": ("correct",),
    "prompt_tokens": ("prompt_tokens",),
    "model": ("model",),
    "attention": ("attention",),
    "run": ("run",),
    "seed": ("seed",),
    "answer": ("answer",),
    "finish_reason": ("finish_reason",),
    "score": ("score",),
    "method": ("method",),
    "cost": ("cost",),
    "seconds": ("seconds",),
}
SETTINGS = ("temperature", "top_p", "top_k", "min_p", "max_tokens", "repetition_window")
SETTINGS += ("dtype", "kv_dtype", "weight_dtype")
REQUIRED = ("problem", "sample", "tokens", "correct")
VERDICTS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": None}
ENDINGS = (".csv", ".jsonl", ".parquet")
MAX_TABLE = 16 << 30  # bytes of a CSV or Parquet file
MAX_COUNT = 10**9  # tokens of a sample
MAX_AMOUNT = 1e15  # Tera-eFLOPs or seconds of a sample
WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})")
Row = tuple[str, dict[str, Any]]  # its place ("line 7"), and its fields


def read_rows(path: Path) -> list[Row]:
    """The rows of a table by the ending of its name; names of columns in lower case.

    Raises SamplesError for what is no such file, and for a row or header that names a column twice.
    """
    readers = {".csv": _csv_rows, ".jsonl": _jsonl_rows, ".parquet": _parquet_rows}
    if path.suffix.lower() not in readers:
        raise SamplesError(f"{path}: not a run folder, nor a file of samples ({', '.join(ENDINGS)})")
    try:
        return list(readers[path.suffix.lower()](path))
    except FileNotFoundError as error:
        raise SamplesError(f"{path}: a link to nothing") from error


def _csv_rows(path: Path) -> Iterator[Row]:
    try:
        with io.TextIOWrapper(_opened(path), encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = _names(path, next(reader, []))
            for cells in reader:
                if not cells:
                    continue
                where = f"line {reader.line_num}"
                if len(cells) != len(header):
                    raise SamplesError(f"{path}, {where}: has {len(cells)} fields, the first line names {len(header)}")
                yield where, dict(zip(header, cells, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise SamplesError(f"{path}: not a CSV file ({error})") from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in lines_of(path, error=SamplesError):
        if line.strip():
            fields = parse_line(path, number, line, error=SamplesError)
            yield f"line {number}", dict(zip(_names(path, list(fields), number), fields.values(), strict=True))


def _parquet_rows(path: Path) -> Iterator[Row]:
    from pyarrow import parquet

    try:
        with _opened(path) as file:
            table = parquet.read_table(file)
        columns = [column.to_pylist() for column in table.columns]
    except SamplesError:
        raise
    except Exception as error:  # a broken file makes the library raise almost anything
        raise SamplesError(f"{path}: not a Parquet file ({shown(str(error), 200)})") from error
    header = _names(path, table.column_names)
    for number, cells in enumerate(zip(*columns, strict=True), start=1):
        yield f"row {number}", dict(zip(header, cells, strict=True))


def _opened(path: Path) -> Any:
    return open_regular(path, at_most=MAX_TABLE, error=SamplesError)


def _names(path: Path, header: Sequence[str], line: int | None = None) -> list[str]:
    """Names of columns without spaces around them, in lower case. Raises SamplesError for one that is there twice."""
    names = [str(name).strip().lower() for name in header]
    if len(set(names)) < len(names):
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        where = f"{path}, line {line}" if line else f"{path}"
        raise SamplesError(f"{where}: names the column {spelled(twice)} twice; remove one")
    return names


def is_results(rows: Sequence[Row]) -> bool:
    """Whether a table holds no samples but accuracies: with the intervals of this package, or with the coverage and
    cost that the paper's code writes beside its traces.
    """
    names = rows[0][1].keys() if rows else set()
    return "correct" not in names and any(
        known <= names for known in ({"accuracy", "low", "high"}, {"coverage", "total_cost"})
    )


def read_table(path: Path, rows: Sequence[Row], model: str | None, attention: AttentionPolicy | None) -> list[RunData]:
    """A RunData for every (model, attention, run, settings) of a plain table.

    `model` and `attention` are for rows that do not say; a row that says another is refused. A table without any
    attention is dense, unless its rows are records of a run folder, which may be of any.
    """
    if not rows:
        raise SamplesError(f"{path}: holds no samples")
    there = dict.fromkeys(name for _, fields in rows for name in fields)
    own = [column for column in OWN if column in there]
    needed = [column for column in REQUIRED if column != "tokens" or not own]
    if missing := [column for column in needed if not there.keys() & set(COLUMNS[column])]:
        raise SamplesError(
            f"{path}: no column {', '.join(missing)}; a table of samples has {', '.join(REQUIRED)}, the paper's own "
            f"files query, prediction, score; this one has {shown(', '.join(there), 300)}"
        )
    read, bad = [], []
    for where, fields in rows:
        try:
            read.append(_row(where, fields))
        except ValueError as error:
            bad.append(f"{where}: {error}")
    if bad:
        raise SamplesError(f"{path}, {bad[0]}" + (f" (and {len(bad) - 1} more bad rows)" if len(bad) > 1 else ""))
    _tell_of_gaps(path, read, model, attention)
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = collections.defaultdict(list)
    for row in read:
        groups[row.get("model"), row.get("method"), row.get("attention"), row.get("run"), _settings(row)].append(row)
    runs = collections.defaultdict(set)
    for named, method, policy, run, _ in groups:
        runs[named, method, policy].add(run)
    data = []
    for (named, method, policy, run, _), group in groups.items():
        more = [method, run if len(runs[named, method, policy]) > 1 else None]
        data.append(_run(path, group, _name(path, named, more, model), policy, attention))
    return data


def _settings(row: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((name, row[name]) for name in SETTINGS if row.get(name) is not None)


def _tell_of_gaps(
    path: Path, rows: Sequence[dict[str, Any]], model: str | None, attention: AttentionPolicy | None
) -> None:
    """Says which rows leave empty what others say of a configuration; refuses those that name no model."""

    def without(column: str) -> list[dict[str, Any]]:
        """The rows that say nothing of it, where others do."""
        silent = [row for row in rows if row.get(column) is None]
        return silent if len(silent) < len(rows) else []

    if model is None and (silent := [row for row in without("model") if row.get("method") is None]):
        raise SamplesError(
            f"{path}, {silent[0]['where']}: names no model, where other rows do ({len(silent)} of {len(rows)} rows "
            "name none); fill the column model in"
        )
    for column, taken in (("attention", f"{attention or 'dense'} attention"), ("run", "a run of their own")):
        if silent := without(column):
            warnings.warn(
                f"{path}: {len(silent)} of {len(rows)} rows name no {column} ({silent[0]['where']} is the first); they "
                f"are taken for {taken}, apart from the others",
                stacklevel=4,
            )
    for name in SETTINGS:
        if silent := without(name):
            warnings.warn(
                f"{path}: {len(silent)} of {len(rows)} rows leave {name} empty ({silent[0]['where']} is the first); "
                "they are a configuration of their own",
                stacklevel=4,
            )
    records = attention is None and all(row["of_a_run"] and row.get("attention") is None for row in rows)
    if records:
        raise SamplesError(
            f"{path}: holds records of a run folder, whose attention only its run.json says; name the folder that "
            "holds both, or say the attention (--attention dense)"
        )


def _name(path: Path, stated: str | None, more: Sequence[str | None], given: str | None) -> str:
    """The model's name, or the method's where the table says none; behind it what else tells its rows apart: the
    method, and the run if there are several, which differ in something that the table does not say.
    """
    apart = [each for each in more if each]
    name = reconcile(path, "model", stated, given)
    if name is None and more[0]:
        name, *apart = apart
    if name is None:
        raise SamplesError(f"{path}: says no model; add a column model, or give the model's name (--model)")
    shape = published_config(name)
    name = shape.name if shape else name
    return f"{name} ({', '.join(apart)})" if apart else name


def published_config(model: str) -> PricedModel | None:
    """The architecture of a published model, to run or to be priced alone; None for another name."""
    for named in (ModelConfig.named, architecture_named):
        try:
            return named(model)
        except ConfigError:
            continue
    return None


def _run(
    path: Path,
    rows: list[dict[str, Any]],
    model: str,
    stated: AttentionPolicy | None,
    attention: AttentionPolicy | None,
) -> RunData:
    samples: list[Any] = [row["sample"] for row in rows]
    if all(map(WHOLE.fullmatch, samples)):
        samples = [int(sample) for sample in samples]
    if any(row.get("seed") is not None for row in rows):
        samples = [(row.get("seed") or "", sample) for row, sample in zip(rows, samples, strict=True)]

    def column(name: str) -> list[Any]:
        """Empty where no row says it."""
        values = [row.get(name) for row in rows]
        return values if any(value is not None for value in values) else []

    return RunData(
        model=model,
        attention=reconcile(path, "attention", stated, attention) or parse_policy("dense"),
        config=published_config(model.partition(" (")[0]),
        problem=[row["problem"] for row in rows],
        sample=samples,
        prompt_tokens=[row.get("prompt_tokens") for row in rows],
        output_tokens=[row.get("tokens") for row in rows],
        correct=[row.get("correct") for row in rows],
        answers=column("answer"),
        ended=column("finish_reason"),
        scores=column("score"),
        own={kind: column(kind) for kind in OWN if column(kind)},
        settings=dict(_settings(rows[0])),
    )


def _row(where: str, fields: dict[str, Any]) -> dict[str, Any]:
    """One row's fields, parsed. Raises ValueError naming the one that cannot be."""
    row: dict[str, Any] = {"where": where, "of_a_run": {"grader", "finish_reason", "output_tokens"} <= fields.keys()}
    for column, names in (*COLUMNS.items(), *((name, (name,)) for name in SETTINGS)):
        values = [fields[name] for name in names if name in fields and not _is_empty(fields[name])]
        if len(values) > 1:
            raise ValueError(f"has both {' and '.join(names)}; leave one out")
        try:
            row[column] = _value(column, values[0]) if values else None
        except ValueError as error:
            raise ValueError(f"{column} cannot be {spelled(values[0])} ({error})") from error
        if column in ("problem", "sample") and row[column] is None:
            raise ValueError(f"no {column}")
    if row["of_a_run"]:
        row["seconds"] = None  # of the engine's batch, not of a sample by itself
    return row


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value)) or (value == "" or str(value).isspace())


def _value(column: str, value: Any) -> Any:
    """A cell that is not empty, parsed. Raises ValueError that says what is needed."""
    if column == "tokens" and isinstance(value, list):  # of token ids, as run folders have them
        return len(value)
    if isinstance(value, list | dict | bytes):
        raise ValueError("text or a number is needed")
    readers: dict[str, Callable[[str], Any]] = {
        "tokens": _count,
        "prompt_tokens": _count,
        "max_tokens": _count,
        "correct": _verdict,
        "attention": _policy,
        **dict.fromkeys(OWN, _amount),
        **dict.fromkeys(("score", "temperature", "top_p", "top_k", "min_p", "repetition_window"), _setting),
    }
    return readers.get(column, str)(str(value).strip())


@functools.lru_cache(maxsize=64)  # a table spells few policies, many times
def _policy(text: str) -> AttentionPolicy:
    return parse_policy(text)


def _count(text: str) -> int:
    number = float(text)
    if not (0 <= number <= MAX_COUNT and number.is_integer()):
        raise ValueError(f"a whole number of tokens up to {MAX_COUNT:,} is needed, or nothing")
    return int(number)


def _setting(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is needed, or nothing")
    return number


def _amount(text: str) -> float:
    number = float(text)
    if not 0 <= number <= MAX_AMOUNT:
        raise ValueError(f"a number from 0 to {MAX_AMOUNT:g} is needed, or nothing")
    return number


def _verdict(text: str) -> bool | None:
    lowered = text.lower().removesuffix(".0")
    if lowered not in VERDICTS:
        raise ValueError("true, false, 1, 0 or nothing is needed")
    return VERDICTS[lowered]
