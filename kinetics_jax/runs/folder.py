"""Run folders: run.json, problems.jsonl, samples.jsonl. Written once, continued, read.

run.json        what makes the samples what they are, and where they were made
problems.jsonl  snapshot of the problems: id, question, answer, prompt (the text, tokenised as it stands); where there
                are any, choices, and fields (the other columns of its file)
samples.jsonl   one record a line, appended and flushed as samples are graded: problem, sample, seed, prompt_tokens
                (a count), output_tokens (ids), text, finish_reason, correct, answer, grader, seconds,
                attended_tokens, summary_vectors (what its decode steps read, over layers and KV heads); where there is
                one, score (a verifier's), why (the reason that there is no grade or score), agreement (of its policy
                with dense attention, token by token) and speculation (its rounds and their price)

Beside them may lie cut_grades.jsonl, the grades of cut samples (cut_grades.py).
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from kinetics_jax.errors import shown, spelled
from kinetics_jax.files import encode_utf8, lock_file, open_regular, read_json, write_atomic
from kinetics_jax.runs.records import (
    HEADER,
    LATER_RECORD,
    OPTIONAL,
    OPTIONAL_PROBLEM,
    PROBLEM,
    RECORD,
    SAMPLING,
    Kind,
    TraceError,
    lines_of,
    misfits,
    parse_line,
)

# 2 may hold samples whose logits were not finite; 3, counts of what samples read, scores, reasons, own graders, choices
# and other columns of problems.
SCHEMA = 3
SCHEMAS = (1, 2, SCHEMA)  # that this version reads
# Where a run was made, not what it is: a run may be continued with these changed.
CIRCUMSTANCES = ("versions", "device", "mesh", "backends", "git_revision", "recommended", "command")
# Sampling settings that earlier versions did not have, with what they did.
LATER_SETTINGS = {"repetition_window": 0, "known_ids_only": False}
LATER_FIELDS = {"prefill_chunk": 2048}  # of run.json; earlier runs prefilled whole, as prompts up to this still are
# Of run.json; what earlier runs had is not known, and their prompts are stored.
LATER_UNKNOWN = ("template",)
RECORD_FIELDS = tuple(RECORD)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder as read: `header` is run.json, `problems` by id in their order, `samples` as they ended."""

    path: Path
    header: dict[str, Any]
    problems: dict[str, dict[str, Any]]
    samples: list[dict[str, Any]]


def read_run(path: str | Path) -> Run:
    """Reads a run folder.

    A torn last record of samples.jsonl is left out with a warning; one that lacks only its line feed is whole. Raises
    TraceError naming the file, the line and what is wrong there.
    """
    path = Path(path)
    try:
        header = read_json(path / "run.json", error=TraceError)
    except FileNotFoundError as error:
        raise TraceError(f"{shown(str(path), 400)}: not a run folder (it holds no run.json)") from error
    if header.get("schema") not in SCHEMAS:
        raise TraceError(
            f"{path / 'run.json'}: not a run of schema {' or '.join(map(str, SCHEMAS))}, which this version reads, but "
            f"of schema {spelled(header.get('schema'))}; a newer version may read it"
        )
    for fields, schema, where in ((header, HEADER, ""), (header.get("sampling"), SAMPLING, "sampling.")):
        if isinstance(fields, dict) and (fault := misfits(fields, schema, all_needed=False)):
            raise TraceError(f"{path / 'run.json'}: {where}{fault}")
    problems = read_lines(path / "problems.jsonl", PROBLEM, OPTIONAL_PROBLEM).records
    by_id = {problem["id"]: problem for problem in problems}
    if len(by_id) < len(problems):
        raise TraceError(f"{path / 'problems.jsonl'}: holds {len(problems)} problems under {len(by_id)} ids")
    samples = read_samples(path).records
    if strays := [record["problem"] for record in samples if record["problem"] not in by_id]:
        raise TraceError(f"{path / 'problems.jsonl'}: missing problem {spelled(strays[0])} of samples.jsonl")
    return Run(path, _up_to_date(header), by_id, samples)


def _up_to_date(run: dict[str, Any]) -> dict[str, Any]:
    """run.json with the settings that it was written without."""
    sampling = run.get("sampling")
    run = {**LATER_FIELDS, **run}
    return {**run, "sampling": {**LATER_SETTINGS, **sampling}} if isinstance(sampling, dict) else run


@dataclasses.dataclass(frozen=True)
class Lines:
    """Records of a JSONL file. `torn`: the bytes behind them, of a last line that was not written to its end. `ended`:
    whether the last record has its line feed.
    """

    records: list[dict[str, Any]]
    torn: bytes = b""
    ended: bool = True


def read_samples(path: Path) -> Lines:
    """The records of a run folder; none before the first one. Warns of a torn last line, and raises as `read_lines`."""
    samples = path / "samples.jsonl"
    lines = read_lines(samples, RECORD, OPTIONAL, may_be_torn=True) if os.path.lexists(samples) else Lines([])
    if lines.torn:
        warnings.warn(f"{samples}: dropped the torn last line ({len(lines.torn)} bytes)", stacklevel=3)
    return lines


def read_lines(
    path: Path, schema: dict[str, Kind], optional: dict[str, Kind] | None = None, *, may_be_torn: bool = False
) -> Lines:
    """The records of a JSONL file, each with the fields of a schema, and of `optional` what is there.

    A last line without its line feed is a record if it can be read; else it is torn, where it may be. Raises TraceError
    naming the file and line, also where a carriage return stands for a line feed: what follows would be lost.
    """
    records: list[dict[str, Any]] = []
    ended = True
    try:
        for number, line in lines_of(path):
            ended = line.endswith(b"\n")
            if not line.strip():
                continue
            try:
                record = parse_line(path, number, line)
            except TraceError:
                if ended or not may_be_torn or b"\r" in line.strip():
                    raise
                return Lines(records, torn=line)
            if fault := misfits(record, schema) or misfits(record, optional or {}, all_needed=False):
                raise TraceError(f"{path}, line {number}: {fault}")
            records.append(record)
    except FileNotFoundError as error:
        raise TraceError(f"{path}: no such file") from error
    return Lines(records, ended=ended)


class RunWriter:
    """A run folder open for appending, new or continued; a context manager.

    `done` holds the (problem, sample) pairs that are stored already, `prompt_tokens` the lengths of their prompts.
    Raises TraceError if the folder holds something else or another configuration, or while another process writes it.
    """

    def __init__(self, path: str | Path, run: dict[str, Any], problems: list[dict[str, Any]]):
        self.path = Path(path)
        self.done: set[tuple[str, int]] = set()
        self.prompt_tokens: dict[str, int] = {}
        self._written: set[tuple[str, int]] = set()
        run = _up_to_date(json.loads(json.dumps({"schema": SCHEMA, **run})))  # as read back: tuples are lists
        self._run = run
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
        names = {path.name for path in self.path.iterdir() if path.suffix != ".partial"}
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
        others = _other_problems(list(before.problems.values()), problems)
        named = any(change.startswith(("template", "instruction", "system", "prompt_template")) for change in changed)
        changed += [] if named and others != [OTHER_PROBLEMS] else others
        if changed:
            cure = "give another folder, or the command that began it"
            if any(change.startswith(("grader", "score")) for change in changed):
                cure += ", with the grader and score that the folder has by now (kinetics grade changes them)"
            raise TraceError(f"{self.path}: holds another run ({'; '.join(changed)}); {cure}")
        samples = self.path / "samples.jsonl"
        lines = read_lines(samples, RECORD, may_be_torn=True)
        os.truncate(samples, samples.stat().st_size - len(lines.torn))  # it is sampled again
        if not lines.ended:
            self._write(b"\n")
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
        fields = [name for name in RECORD_FIELDS if name in record or name not in LATER_RECORD]
        fields += [name for name in OPTIONAL if record.get(name) is not None]
        self._write(encode_utf8(_line({field: record[field] for field in fields})))
        self._written.add((record["problem"], record["sample"]))

    def read_back(self) -> Run:
        """The whole run as it is on the disk. Raises TraceError if any of what was written is no longer there."""
        self._require_mine()
        run = read_run(self.path)
        lost = len((self.done | self._written) - {(record["problem"], record["sample"]) for record in run.samples})
        if lost or _differences(run.header, self._run):
            raise TraceError(
                f"{self.path}: was changed while this run was writing it ({lost} samples are gone); the same command "
                "continues what is there"
            )
        return run

    def _write(self, data: bytes) -> None:
        self._require_mine()
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise TraceError(
                f"{self.path / 'samples.jsonl'}: cannot be written ({error.strerror}); the samples before this one are "
                f"kept: make room and give the same command again to continue"
            ) from error

    def _require_mine(self) -> None:
        """Raises TraceError if samples.jsonl is no longer the file that this process has open."""
        require_same(self._file, self.path / "samples.jsonl")

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()


def require_same(file: IO[Any], path: Path) -> None:
    """Raises TraceError if `path` does not lead to the open `file`: it was deleted or replaced meanwhile."""
    try:
        same = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except OSError:
        same = False
    if not same:
        raise TraceError(
            f"{path}: was deleted or replaced while this process was writing it; what was written since is lost: give "
            "the same command again, and nothing else that changes the folder meanwhile"
        )


def require_regular(path: Path) -> None:
    """Raises TraceError for what is there and no regular file: to open a pipe for writing would wait for a reader."""
    try:
        open_regular(path, error=TraceError).close()
    except FileNotFoundError as error:
        if os.path.lexists(path):
            raise TraceError(f"{path}: is a link to nothing; remove it, or give back what it leads to") from error


def _open_locked(path: Path) -> io.FileIO:
    """samples.jsonl, open for appending and held for this process alone until it is closed or the process dies."""
    samples = path / "samples.jsonl"
    while True:
        require_regular(samples)
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
    unknown = {name for name in LATER_UNKNOWN if name not in stored}
    for key in sorted({*stored, *asked} - (set() if prefix else {"schema", *CIRCUMSTANCES, *unknown})):
        old, new = stored.get(key), asked.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changes += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            changes.append(f"{prefix}{key}: {_spelled(old)} stored, {_spelled(new)} asked for")
    return changes


OTHER_PROBLEMS = "the problems differ"


def _other_problems(stored: list[dict[str, Any]], asked: list[dict[str, Any]]) -> list[str]:
    """In what a run's problems differ from those asked for. Of earlier versions' no other columns are stored."""
    if len(stored) == len(asked):
        asked = [
            {name: value for name, value in new.items() if name != "fields" or name in old}
            for old, new in zip(stored, asked, strict=True)
        ]
    if stored == asked:
        return []
    texts = ({**new, "prompt": old["prompt"]} for old, new in zip(stored, asked, strict=False))
    if len(stored) != len(asked) or list(texts) != stored:
        return [OTHER_PROBLEMS]
    first = next(new["id"] for old, new in zip(stored, asked, strict=True) if old != new)
    return [f"the prompts differ, first that of problem {_spelled(first)}: template, instruction or thinking"]


def regrade(
    path: str | Path,
    grade: Callable[[dict[str, Any], str], dict[str, Any]],
    settle: Callable[[list[dict[str, Any]]], Mapping[str, Any]] = lambda samples: {},
) -> tuple[Run, Run]:
    """Grades a run's samples anew: `grade(record, known answer)` returns the fields that replace a record's own.

    samples.jsonl is written whole under another name, then renamed; until then the run is as it was. A torn last line
    stays behind the records. `settle` is given the new records, which it may still change, before anything is written;
    it returns the fields of run.json that say how the run is graded now (None: no longer there). Returns the run before
    and after. Raises TraceError while another process writes the run.
    """
    path = Path(path)
    read_run(path)  # refuse what is no run folder first: opening samples.jsonl would create it
    with _open_locked(path) as file:
        run = read_run(path)
        torn = read_lines(path / "samples.jsonl", RECORD, may_be_torn=True).torn
        samples = [{**record, **grade(record, run.problems[record["problem"]]["answer"])} for record in run.samples]
        said = settle(samples)
        samples = [_without_nothing(record) for record in samples]
        require_same(file, path / "samples.jsonl")
        write_atomic(path / "samples.jsonl", encode_utf8("".join(map(_line, samples))) + torn)
        stored = read_json(path / "run.json", error=TraceError)
        now = {name: value for name, value in {**stored, **said}.items() if value is not None or name not in said}
        if now != stored:
            now["schema"] = SCHEMA
            write_atomic(path / "run.json", json.dumps(now, indent=1, ensure_ascii=False) + "\n")
    return run, dataclasses.replace(run, header=_up_to_date(now), samples=samples)


def _without_nothing(record: dict[str, Any]) -> dict[str, Any]:
    """A record without the optional fields that hold nothing."""
    return {name: value for name, value in record.items() if name not in OPTIONAL or value is not None}


def _line(record: dict[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def _spelled(value: Any) -> str:
    return shown(json.dumps(value))
