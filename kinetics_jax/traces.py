"""Run folders: run.json, problems.jsonl, samples.jsonl. Written once, continued, read. No jax.

run.json        what makes the samples what they are, and where they were made
problems.jsonl  snapshot of the problems: id, question, answer, prompt (the text, tokenised as it stands)
samples.jsonl   one record a line, appended and flushed as samples are graded: problem, sample, seed, prompt_tokens
                (a count), output_tokens (ids), text, finish_reason, correct, answer, grader, seconds
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from pathlib import Path
from typing import Any

from kinetics_jax.errors import UserError

try:
    import fcntl
except ImportError:  # not a POSIX system: runs are not guarded against a second writer
    fcntl = None

SCHEMA = 1
# Where a run happened, as against what it is: a run may be continued with these changed.
CIRCUMSTANCES = ("versions", "device", "git_revision", "command")
RECORD_FIELDS = (
    "problem",
    "sample",
    "seed",
    "prompt_tokens",
    "output_tokens",
    "text",
    "finish_reason",
    "correct",
    "answer",
    "grader",
    "seconds",
)


class TraceError(UserError):
    """A run folder that cannot be read or continued; the message names the file and the cure."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder as read: `run` is run.json, `problems` by id in their order, `samples` in the order they ended."""

    path: Path
    run: dict[str, Any]
    problems: dict[str, dict[str, Any]]
    samples: list[dict[str, Any]]


def read_run(path: str | Path) -> Run:
    """Reads a run folder. Raises TraceError naming the file and line; a torn last record is dropped with a warning."""
    path = Path(path)
    if not (path / "run.json").exists():
        raise TraceError(f"{path}: not a run folder (it holds no run.json)")
    try:
        run = json.loads((path / "run.json").read_text())
    except json.JSONDecodeError as error:
        raise TraceError(f"{path / 'run.json'}: not valid JSON ({error})") from error
    if run.get("schema") != SCHEMA:
        raise TraceError(f"{path / 'run.json'}: schema {run.get('schema')!r}, this version reads {SCHEMA}")
    problems, _ = _read_lines(path / "problems.jsonl")
    samples, _ = _read_lines(path / "samples.jsonl") if (path / "samples.jsonl").exists() else ([], 0)
    for number, record in enumerate(samples, start=1):
        missing = [field for field in RECORD_FIELDS if field not in record]
        if missing:
            raise TraceError(f"{path / 'samples.jsonl'}, line {number}: missing {', '.join(missing)}")
    return Run(path, run, {problem["id"]: problem for problem in problems}, samples)


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Records of a JSONL file, and how many bytes they span; what follows them is a torn last line."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise TraceError(f"{path}: no such file") from error
    records, whole = [], 0
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        torn = not line.endswith(b"\n")
        try:
            record = json.loads(line)
            if torn or not isinstance(record, dict):
                raise ValueError("not a whole record")
        except ValueError as error:
            if whole + len(line) == len(data):
                warnings.warn(f"{path}: dropped the torn last line ({len(line)} bytes)", stacklevel=2)
                break
            raise TraceError(f"{path}, line {number}: not a JSON record; the lines after it are whole") from error
        records.append(record)
        whole += len(line)
    return records, whole


class RunWriter:
    """A run folder open for appending, new or continued; a context manager.

    `done` holds the (problem, sample) pairs that are already there. Raises TraceError when the folder holds something
    else, or another configuration.
    """

    def __init__(self, path: str | Path, run: dict[str, Any], problems: list[dict[str, Any]]):
        self.path = Path(path)
        self.done: set[tuple[str, int]] = set()
        run = json.loads(json.dumps({"schema": SCHEMA, **run}))  # as it will be read back: tuples are lists
        if not (self.path / "run.json").exists():
            self._create(run, problems)
        self._file = open(self.path / "samples.jsonl", "ab")  # noqa: SIM115  (closed by __exit__)
        try:
            self._lock()
            self._continue(run, problems)
        except BaseException:
            self._file.close()
            raise

    def _create(self, run: dict[str, Any], problems: list[dict[str, Any]]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        strangers = sorted(p.name for p in self.path.iterdir() if not p.name.startswith("problems.jsonl"))
        if [name for name in strangers if not name.endswith(".partial")]:
            raise TraceError(f"{self.path}: holds {strangers[0]} but no run.json; give a new or empty folder")
        write_whole(self.path / "problems.jsonl", "".join(_line(problem) for problem in problems))
        write_whole(self.path / "run.json", json.dumps(run, indent=1, ensure_ascii=False) + "\n")

    def _lock(self) -> None:
        """Holds samples.jsonl for this process until it is closed; the system lets go of it when a process dies."""
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise TraceError(f"{self.path}: another process is writing this run; wait for it to end") from error

    def _continue(self, run: dict[str, Any], problems: list[dict[str, Any]]) -> None:
        before = read_run(self.path)
        changed = [
            f"{key}: {_short(before.run.get(key))} there, {_short(run.get(key))} asked"
            for key in sorted({*before.run, *run} - set(CIRCUMSTANCES))
            if before.run.get(key) != run.get(key)
        ]
        if list(before.problems.values()) != problems:
            changed.append("the problems differ")
        if changed:
            raise TraceError(f"{self.path}: holds another run ({'; '.join(changed)}); give another folder")
        samples = self.path / "samples.jsonl"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # read_run has warned of a torn line
            _, whole = _read_lines(samples)
        os.truncate(samples, whole)
        for record in before.samples:
            pair = (record["problem"], record["sample"])
            if pair in self.done:
                raise TraceError(f"{samples}: problem {pair[0]!r} sample {pair[1]} is there twice")
            self.done.add(pair)

    def append(self, record: dict[str, Any]) -> None:
        """Adds one record and hands it to the operating system: it survives the end of this process."""
        self._file.write(_line({field: record[field] for field in RECORD_FIELDS}).encode())
        self._file.flush()

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def write_whole(path: Path, text: str) -> None:
    """Writes a file under a temporary name and renames it, so that it is never seen half-written."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
