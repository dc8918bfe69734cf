"""Run folders: run.json, problems.jsonl, samples.jsonl. Written once, continued, read.

run.json        what makes the samples what they are, and where they were made
problems.jsonl  snapshot of the problems: id, question, answer, prompt (the text, tokenised as it stands)
samples.jsonl   one record a line, appended and flushed as samples are graded: problem, sample, seed, prompt_tokens
                (a count), output_tokens (ids), text, finish_reason, correct, answer, grader, seconds

Beside them may lie cut_grades.jsonl, the grades of cut samples (cut_grades.py).
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kinetics_jax.errors import UserError
from kinetics_jax.files import encode_utf8, lock_file, write_atomic

SCHEMA = 1
# Where a run was made, not what it is: a run may be continued with these changed.
CIRCUMSTANCES = ("versions", "device", "mesh", "backends", "git_revision", "command")
# Sampling settings that earlier versions did not have, with what they did.
LATER_SETTINGS = {"repetition_window": 0, "known_ids_only": False}
LATER_FIELDS = {"prefill_chunk": 2048}  # of run.json; earlier runs prefilled whole, as prompts up to this still are
RECORD_TYPES: dict[str, Any] = {
    "problem": str,
    "sample": int,
    "seed": int,
    "prompt_tokens": int,
    "output_tokens": list,
    "text": str | None,
    "finish_reason": str,
    "correct": bool | None,
    "answer": str | None,
    "grader": str,
    "seconds": int | float,
}
PROBLEM_TYPES: dict[str, Any] = {"id": str, "question": str, "answer": str, "prompt": str}
RECORD_FIELDS = tuple(RECORD_TYPES)


class TraceError(UserError):
    """A run folder that cannot be read or continued; the message names the file and the cure."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder as read: `header` is run.json, `problems` by id in their order, `samples` as they ended."""

    path: Path
    header: dict[str, Any]
    problems: dict[str, dict[str, Any]]
    samples: list[dict[str, Any]]


def read_run(path: str | Path) -> Run:
    """Reads a run folder. Raises TraceError naming the file and line; a torn last record is dropped with a warning."""
    path = Path(path)
    if not (path / "run.json").exists():
        raise TraceError(f"{path}: not a run folder (it holds no run.json)")
    try:
        run = json.loads((path / "run.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise TraceError(f"{path / 'run.json'}: not valid JSON ({error})") from error
    if not isinstance(run, dict) or run.get("schema") != SCHEMA:
        raise TraceError(f"{path / 'run.json'}: not a run of schema {SCHEMA}, the one this version reads")
    problems, _ = read_lines(path / "problems.jsonl", PROBLEM_TYPES)
    samples, _ = read_lines(path / "samples.jsonl", RECORD_TYPES) if (path / "samples.jsonl").exists() else ([], 0)
    by_id = {problem["id"]: problem for problem in problems}
    if strays := [record["problem"] for record in samples if record["problem"] not in by_id]:
        raise TraceError(f"{path / 'problems.jsonl'}: missing problem {strays[0]!r} of samples.jsonl")
    return Run(path, _up_to_date(run), by_id, samples)


def _up_to_date(run: dict[str, Any]) -> dict[str, Any]:
    """run.json with the settings that it was written without."""
    sampling = run.get("sampling")
    run = {**LATER_FIELDS, **run}
    return {**run, "sampling": {**LATER_SETTINGS, **sampling}} if isinstance(sampling, dict) else run


def read_lines(path: Path, types: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Records of a JSONL file, and how many bytes they span; what follows them is a torn last line."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise TraceError(f"{path}: no such file") from error
    records, whole = [], 0
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            warnings.warn(f"{path}: dropped the torn last line ({len(line)} bytes)", stacklevel=2)
            break
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TraceError(f"{path}, line {number}: not valid JSON ({error}); mend or remove that line") from error
        if not isinstance(record, dict):
            raise TraceError(f"{path}, line {number}: not a record; mend or remove that line")
        if missing := [field for field in types if field not in record]:
            raise TraceError(f"{path}, line {number}: missing {', '.join(missing)}")
        if odd := [field for field, kind in types.items() if not _is_a(record[field], kind)]:
            raise TraceError(f"{path}, line {number}: {odd[0]} cannot be {_short(record[odd[0]])}")
        records.append(record)
        whole += len(line)
    return records, whole


def _is_a(value: Any, kind: Any) -> bool:
    """isinstance, with true and false not taken for numbers."""
    return kind == bool | None if isinstance(value, bool) else isinstance(value, kind)


class RunWriter:
    """A run folder open for appending, new or continued; a context manager.

    `done` holds the (problem, sample) pairs that are stored already, `prompt_tokens` the lengths of their prompts.
    Raises TraceError if the folder holds something else or another configuration, or while another process writes it.
    """

    def __init__(self, path: str | Path, run: dict[str, Any], problems: list[dict[str, Any]]):
        self.path = Path(path)
        self.done: set[tuple[str, int]] = set()
        self.prompt_tokens: dict[str, int] = {}
        run = _up_to_date(json.loads(json.dumps({"schema": SCHEMA, **run})))  # as read back: tuples are lists
        self._take_folder()
        self._file = _open_locked(self.path)
        try:
            if (self.path / "run.json").exists():
                self._continue(run, problems)
            elif (self.path / "samples.jsonl").stat().st_size:
                raise TraceError(f"{self.path}: holds samples.jsonl but no run.json; give a new or empty folder")
            else:
                self._begin(run, problems)
        except BaseException:
            self._file.close()
            raise

    def _take_folder(self) -> None:
        """Makes the folder; refuses one that holds something else than a run or the beginning of one."""
        self.path.mkdir(parents=True, exist_ok=True)
        names = {path.name.removesuffix(".partial") for path in self.path.iterdir()}
        strangers = sorted(names - {"run.json", "problems.jsonl", "samples.jsonl"})
        if strangers and "run.json" not in names:
            raise TraceError(f"{self.path}: holds {strangers[0]} but no run.json; give a new or empty folder")

    def _begin(self, run: dict[str, Any], problems: list[dict[str, Any]]) -> None:
        write_atomic(self.path / "problems.jsonl", "".join(map(_line, problems)))
        write_atomic(self.path / "run.json", json.dumps(run, indent=1, ensure_ascii=False) + "\n")

    def _continue(self, run: dict[str, Any], problems: list[dict[str, Any]]) -> None:
        before = read_run(self.path)
        if not before.samples:  # nothing is lost: a run without samples may start again with other settings
            os.truncate(self.path / "samples.jsonl", 0)
            self._begin(run, problems)
            return
        changed = _differences(before.header, run)
        if list(before.problems.values()) != problems:
            changed.append("the problems differ")
        if changed:
            raise TraceError(f"{self.path}: holds another run ({'; '.join(changed)}); give another folder")
        samples = self.path / "samples.jsonl"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # read_run has warned of a torn line
            _, whole = read_lines(samples, RECORD_TYPES)
        os.truncate(samples, whole)
        for record in before.samples:
            pair = (record["problem"], record["sample"])
            if pair in self.done:
                raise TraceError(f"{samples}: problem {pair[0]!r} sample {pair[1]} is recorded twice")
            self.done.add(pair)
            self.prompt_tokens[record["problem"]] = record["prompt_tokens"]

    def append(self, record: dict[str, Any]) -> None:
        """Appends one record and flushes it to the operating system, so that it survives this process.

        Raises TraceError if it cannot be written whole (on a full disk, say); earlier records stay readable.
        """
        line = memoryview(encode_utf8(_line({field: record[field] for field in RECORD_FIELDS})))
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise TraceError(
                f"{self.path / 'samples.jsonl'}: cannot be written ({error.strerror}); the samples before this one are "
                f"kept: make room and give the same command again to continue"
            ) from error

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def _open_locked(path: Path) -> io.FileIO:
    """samples.jsonl, open for appending and held for this process alone until it is closed or the process dies."""
    samples = path / "samples.jsonl"
    while True:
        file = open(samples, "ab", buffering=0)  # noqa: SIM115  (the caller closes it)
        try:
            lock_file(file)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(samples)):
                return file
            file.close()  # another process has put a regraded file in its place meanwhile
        except BlockingIOError as error:
            file.close()
            raise TraceError(f"{path}: another process is writing this run; wait for it to end") from error
        except BaseException:
            file.close()
            raise


def _differences(stored: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> list[str]:
    """What differs between two run.json, field by field, circumstances left out."""
    changes = []
    for key in sorted({*stored, *asked} - (set() if prefix else set(CIRCUMSTANCES))):
        old, new = stored.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            changes.append(f"{prefix}{key}: {_short(old)} stored, {_short(new)} asked for")
    return changes


def regrade(path: str | Path, grade: Callable[[dict[str, Any], str], dict[str, Any]]) -> tuple[Run, Run]:
    """Grades a run's samples anew: `grade(record, known answer)` returns the fields that replace a record's own.

    samples.jsonl is written whole under another name, then renamed; until then the run is as it was. Returns the run
    before and after. Raises TraceError while another process writes the run.
    """
    path = Path(path)
    read_run(path)  # refuse what is no run folder first: opening samples.jsonl would create it
    with _open_locked(path):
        run = read_run(path)
        samples = [{**record, **grade(record, run.problems[record["problem"]]["answer"])} for record in run.samples]
        write_atomic(path / "samples.jsonl", "".join(map(_line, samples)))
    return run, dataclasses.replace(run, samples=samples)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
