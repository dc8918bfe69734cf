"""The grades of cut samples beside a run: cut_grades.jsonl in its folder, written by truncation.py.

    {"schema": 1, "grader": …, "tokenizer": …}                            first line: what the grades are a function of
    {"caps": [2048, 4096]}                                                asked for: a line for every command
    {"problem", "seed", "sample", "of", "cap", "correct", "answer", "grader"}      one for every cut sample and cap

Appended and flushed as texts are graded; of several lines for one sample and cap the last counts. `of` tells what was
graded: a sample whose tokens, prompt or known answer have changed since counts as not graded. A sample that ends
within a cap is not cut there, and has no line: its own grade stands.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import warnings
from pathlib import Path
from typing import Any

from kinetics_jax.runs.folder import Run, TraceError, read_lines
from kinetics_jax.runs.records import MAX_TOKENS, RECORD, TEXT, Kind, misfits, whole

NAME = "cut_grades.jsonl"
SCHEMA = 1
CAP = whole(1, MAX_TOKENS)
GRADE: dict[str, Kind] = {
    **{name: RECORD[name] for name in ("problem", "seed", "sample", "correct")},
    "of": TEXT,
    "cap": CAP,
}
ANSWER = {"answer": RECORD["answer"]}  # where the line has it
CAPS = {
    "caps": Kind(
        "a list of whole numbers of tokens", lambda value: isinstance(value, list) and all(map(CAP.holds, value))
    )
}
Key = tuple[str, int, int, int]  # problem, seed, sample, cap


@dataclasses.dataclass(frozen=True)
class CutGrades:
    """The file as read. `maker`: its first line. `caps`: all that were asked for, ascending. `grades`: those that are
    of the samples as they are now; `answers`: what those texts said. `torn`: bytes of a last line that was not
    written to its end; `ended`: whether the last whole line has its line feed.
    """

    maker: dict[str, Any]
    caps: tuple[int, ...]
    grades: dict[Key, bool | None]
    torn: int
    ended: bool
    answers: dict[Key, str | None] = dataclasses.field(default_factory=dict)


def read_cut_grades(run: Run) -> CutGrades | None:
    """The grades of a run's cut samples; None if there are none.

    A torn last line is dropped with a warning. Raises TraceError naming the line that cannot be read.
    """
    path = Path(run.path) / NAME
    if not os.path.lexists(path):
        return None
    lines = read_lines(path, {}, may_be_torn=True)
    records = lines.records
    if lines.torn:
        warnings.warn(f"{path}: dropped the torn last line ({len(lines.torn)} bytes)", stacklevel=2)
    if not records:  # begun, and stopped before its first line
        return None
    if records[0].get("schema") != SCHEMA:
        raise TraceError(f"{path}: not grades of schema {SCHEMA}; remove it and grade again (kinetics grade --caps …)")
    now = {sample_key(record): sample_digest(run, record) for record in run.samples}
    caps: set[int] = set()
    grades: dict[Key, bool | None] = {}
    answers: dict[Key, str | None] = {}
    for number, record in enumerate(records[1:], start=2):
        if fault := misfits(record, CAPS if "caps" in record else GRADE) or misfits(record, ANSWER, all_needed=False):
            raise TraceError(f"{path}, line {number}: not a grade ({fault}); remove the file and grade again")
        if "caps" in record:
            caps.update(record["caps"])
        elif now.get(key := sample_key(record)) == record["of"]:
            grades[*key, record["cap"]] = record["correct"]
            if "answer" in record:
                answers[*key, record["cap"]] = record["answer"]
    return CutGrades(records[0], tuple(sorted(caps)), grades, len(lines.torn), lines.ended, answers)


def grades_within(
    run: Run,
) -> tuple[tuple[int, ...], list[tuple[bool | None, ...]], list[tuple[str | None, ...]]]:
    """Caps, ascending, and for each sample of the run its grades and its answers at them, as `RunData` takes them; no
    answers where the file holds grades without.

    Only caps at which every longer sample was graded; a warning names the others.
    """
    cut = read_cut_grades(run)
    if cut is None:
        return (), [], []
    longer = {
        cap: [sample_key(record) for record in run.samples if len(record["output_tokens"]) > cap] for cap in cut.caps
    }
    ungraded = {cap: sum((*key, cap) not in cut.grades for key in keys) for cap, keys in longer.items()}
    if unfinished := [cap for cap in cut.caps if ungraded[cap]]:
        warnings.warn(
            f"{Path(run.path) / NAME}: {ungraded[unfinished[0]]} of {len(longer[unfinished[0]])} samples are not "
            f"graded at cap {unfinished[0]}; cap{'s' if len(unfinished) > 1 else ''} {', '.join(map(str, unfinished))} "
            f"left out (kinetics grade {shlex.quote(str(run.path))} --caps … finishes them)",
            stacklevel=3,
        )
    caps = tuple(cap for cap in cut.caps if not ungraded[cap])
    if not caps:
        return (), [], []
    grades = [tuple(_grade(cut, record, cap) for cap in caps) for record in run.samples]
    if any((*key, cap) not in cut.answers for cap in caps for key in longer[cap]):
        return caps, grades, []
    return caps, grades, [tuple(_answer(cut, record, cap) for cap in caps) for record in run.samples]


def _grade(cut: CutGrades, record: dict[str, Any], cap: int) -> bool | None:
    ends = len(record["output_tokens"]) <= cap
    return record["correct"] if ends else cut.grades[*sample_key(record), cap]


def _answer(cut: CutGrades, record: dict[str, Any], cap: int) -> str | None:
    ends = len(record["output_tokens"]) <= cap
    return record.get("answer") if ends else cut.answers[*sample_key(record), cap]


def sample_key(record: dict[str, Any]) -> tuple[str, int, int]:
    """What identifies a sample of a run: problem, seed, number."""
    return record["problem"], record["seed"], record["sample"]


def sample_digest(run: Run, record: dict[str, Any]) -> str:
    """16 hex digits of what a sample's cut grades depend on besides the grader and the tokenizer."""
    problem = run.problems[record["problem"]]
    graded = [record["output_tokens"], problem.get("prompt"), problem.get("answer")]
    return hashlib.blake2b(json.dumps(graded).encode(), digest_size=8).hexdigest()
