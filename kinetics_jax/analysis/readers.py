"""Samples of any format as RunData: run folders, plain tables (CSV, JSONL, Parquet), the paper's own JSONL.

A plain table has a row per sample: `problem, sample, tokens, correct`, optionally `model`, `attention`, `run` and
`prompt_tokens`. A count that is left empty is missing, never zero. The paper's own format: paper_traces.py.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kinetics_jax.analysis import paper_traces
from kinetics_jax.analysis.samples import RunData, SamplesError, reconcile, run_data
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.config import ConfigError, ModelConfig
from kinetics_jax.runs.folder import read_run

# What a column may be called; messages use the first name.
COLUMNS = {
    "problem": ("problem", "problem_id"),
    "sample": ("sample", "epoch"),
    "tokens": ("tokens", "output_tokens"),
    "correct": ("correct",),
    "prompt_tokens": ("prompt_tokens",),
    "model": ("model",),
    "attention": ("attention",),
    "run": ("run",),
}
REQUIRED = ("problem", "sample", "tokens", "correct")
VERDICTS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": None}
ENDINGS = (".csv", ".jsonl", ".parquet")
Row = tuple[str, dict[str, Any]]  # its place ("line 7"), and its fields


def read_samples(
    path: str | Path,
    *,
    model: str | None = None,
    attention: AttentionPolicy | str | None = None,
    config: ModelConfig | None = None,
    tokenizer: Any = None,
) -> RunData:
    """The samples at `path`, which hold one configuration; see `read_all`. Raises SamplesError for several."""
    runs = read_all([path], model=model, attention=attention, config=config, tokenizer=tokenizer)
    names = sorted({f"{run.model} {run.attention}" for run in runs})
    if len(runs) > 1:
        raise SamplesError(f"{path}: holds {len(runs)} runs ({names[0]}, …), one is expected; read_all reads them all")
    return runs[0]


def read_all(
    paths: Iterable[str | Path],
    *,
    model: str | None = None,
    attention: AttentionPolicy | str | None = None,
    config: ModelConfig | None = None,
    tokenizer: Any = None,
) -> list[RunData]:
    """The samples of several sources, a RunData for every configuration of each; `samples.pooled` makes them one.

    A source is a run folder, a file (.csv, .jsonl or .parquet), or a directory of those. `model`, `attention` (a policy
    or its spelling) and `config` are for files that do not say; where one does say, they must not contradict it. A
    table that names no attention is dense. The architecture of a published Qwen3 model is known by its name; that of
    another is None unless `config` is given. `tokenizer` counts the tokens of the paper's own files: a
    tokenizers.Tokenizer, the path of a tokenizer.json, or of the directory that holds one; without it their token
    counts are missing. Raises SamplesError naming file and line, TraceError for a broken run folder.
    """
    policy = parse_policy(attention) if isinstance(attention, str) else attention
    runs = [
        run
        for path in paths
        for source in _sources(Path(path))
        for run in _read(source, model=model, attention=policy, tokenizer=tokenizer)
    ]
    return _with_architecture(runs, config)


def _sources(path: Path) -> list[Path]:
    """A run folder, or a file; of another directory, those directly in it."""
    if not path.exists():
        raise SamplesError(f"{path}: not a run folder, nor a file of samples: no such file or directory")
    if not path.is_dir() or (path / "run.json").exists():
        return [path]
    inside = sorted(path.iterdir())
    sources = [entry for entry in inside if (entry / "run.json").exists() or entry.suffix in ENDINGS]
    if not sources:
        raise SamplesError(f"{path}: not a run folder (it holds no run.json), nor a directory of runs or sample files")
    return sources


def _read(source: Path, *, model: str | None, attention: AttentionPolicy | None, tokenizer: Any) -> list[RunData]:
    if source.is_dir():
        run = run_data(read_run(source))
        reconcile(source, "model", run.model, model)
        reconcile(source, "attention", run.attention, attention)
        return [run]
    if source.suffix == ".csv":
        rows = list(_csv_rows(source))
    elif source.suffix == ".jsonl":
        rows = list(_jsonl_rows(source))
        if paper_traces.is_paper_trace([fields for _, fields in rows[:2]]):
            return [paper_traces.read_paper_trace(source, rows, model=model, attention=attention, tokenizer=tokenizer)]
    elif source.suffix == ".parquet":
        rows = list(_parquet_rows(source))
    else:
        raise SamplesError(f"{source}: not a run folder, nor a file of samples ({', '.join(ENDINGS)})")
    return _table(source, rows, model, attention)


def _with_architecture(runs: Sequence[RunData], config: ModelConfig | None) -> list[RunData]:
    """The runs, those of unknown architecture with the given one, or the published one of their name."""
    unknown = sorted({run.model for run in runs if run.config is None and published_config(run.model) is None})
    if config is not None and len(unknown) != 1:
        which = ", ".join(unknown) or "none"
        raise SamplesError(f"a config is for the one model whose architecture is not known; of these it is {which}")
    named = [run if run.config else _as_published(run) for run in runs]
    return [run if run.config else dataclasses.replace(run, config=config) for run in named]


def _as_published(run: RunData) -> RunData:
    shape = published_config(run.model)
    return dataclasses.replace(run, model=shape.name, config=shape) if shape else run


def published_config(model: str) -> ModelConfig | None:
    """The architecture of a published model; None for another name."""
    try:
        return ModelConfig.named(model)
    except ConfigError:
        return None


def _csv_rows(path: Path) -> Iterator[Row]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            for fields in reader:
                where = f"line {reader.line_num}"
                if None in fields or None in fields.values():
                    raise SamplesError(f"{path}, {where}: not as many fields as the first line names")
                yield where, fields
    except (csv.Error, UnicodeDecodeError) as error:
        raise SamplesError(f"{path}: not a CSV file ({error})") from error


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except ValueError as error:
                raise SamplesError(f"{path}, line {number}: not valid JSON ({error})") from error
            if not isinstance(fields, dict):
                raise SamplesError(f"{path}, line {number}: not a record")
            yield f"line {number}", fields


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow

    try:
        from pyarrow import parquet

        records = parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise SamplesError(f"{path}: not a Parquet file ({error})") from error
    return ((f"row {number}", fields) for number, fields in enumerate(records, start=1))


def _table(path: Path, rows: Sequence[Row], model: str | None, attention: AttentionPolicy | None) -> list[RunData]:
    """A RunData for every (model, attention, run) of a plain table."""
    if not rows:
        raise SamplesError(f"{path}: holds no samples")
    names = {
        column: next((name for name in spelled if name in rows[0][1]), None) for column, spelled in COLUMNS.items()
    }
    if missing := [column for column in REQUIRED if names[column] is None]:
        raise SamplesError(
            f"{path}: no column {', '.join(missing)}; a table of samples has {', '.join(REQUIRED)}, the paper's own "
            f"files query, prediction, score; this one has {', '.join(map(str, rows[0][1]))}"
        )
    read, bad = [], []
    for where, fields in rows:
        try:
            read.append(_table_row({column: fields.get(name, "") for column, name in names.items() if name}))
        except ValueError as error:
            bad.append(f"{where}: {error}")
    if bad:
        raise SamplesError(f"{path}, {bad[0]}" + (f" (and {len(bad) - 1} more bad rows)" if len(bad) > 1 else ""))
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = collections.defaultdict(list)
    for row in read:
        groups[row.get("model"), row.get("attention"), row.get("run")].append(row)
    counts = collections.Counter((named, policy) for named, policy, _ in groups)
    return [
        _run(path, group, _name(path, named, run if counts[named, policy] > 1 else None, model), policy, attention)
        for (named, policy, run), group in groups.items()
    ]


def _name(path: Path, stated: str | None, run: str | None, given: str | None) -> str:
    """The model's name; with the run's if a model has several: they differ in something that the table does not say."""
    name = reconcile(path, "model", stated, given)
    if name is None:
        raise SamplesError(f"{path}: says no model; add a column model, or give the model's name")
    shape = published_config(name)
    name = shape.name if shape else name
    return f"{name} ({run})" if run else name


def _run(
    path: Path,
    rows: list[dict[str, Any]],
    model: str,
    stated: AttentionPolicy | None,
    attention: AttentionPolicy | None,
) -> RunData:
    samples = [row["sample"] for row in rows]
    if all(sample.lstrip("-").isdigit() for sample in samples):
        samples = [int(sample) for sample in samples]
    return RunData(
        model=model,
        attention=reconcile(path, "attention", stated, attention) or parse_policy("dense"),
        config=published_config(model.partition(" (")[0]),
        problem=[row["problem"] for row in rows],
        sample=samples,
        prompt_tokens=[row.get("prompt_tokens") for row in rows],
        output_tokens=[row["tokens"] for row in rows],
        correct=[row["correct"] for row in rows],
    )


def _table_row(fields: dict[str, Any]) -> dict[str, Any]:
    """One row's fields, parsed. Raises ValueError naming the one that cannot be."""
    readers: dict[str, Callable[[str], Any]] = {
        "tokens": _count,
        "prompt_tokens": _count,
        "correct": _verdict,
        "attention": _policy,
    }
    row: dict[str, Any] = {}
    for column, value in fields.items():
        missing = value is None or (isinstance(value, float) and math.isnan(value))
        text = "" if missing else str(value).strip()
        if column in ("problem", "sample") and not text:
            raise ValueError(f"no {column}")
        try:
            row[column] = readers[column](text) if column in readers else text or None
        except ValueError as error:
            raise ValueError(f"{column} cannot be {value!r} ({error})") from error
    return row


@functools.lru_cache(maxsize=64)  # a table spells few policies, many times
def _policy(text: str) -> AttentionPolicy | None:
    return parse_policy(text) if text else None


def _count(text: str) -> int | None:
    if not text:
        return None
    number = float(text)
    if not (number >= 0 and number.is_integer()):
        raise ValueError("a whole number of tokens is needed, or nothing")
    return int(number)


def _verdict(text: str) -> bool | None:
    lowered = text.lower().removesuffix(".0")
    if lowered not in VERDICTS:
        raise ValueError("true, false, 1, 0 or nothing is needed")
    return VERDICTS[lowered]
