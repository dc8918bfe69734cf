"""The grades of cut texts beside a file of the paper's traces, written by trace_grading.py.

NAME.jsonl.cut_grades, JSON lines:

    {"schema": 2, "grader": …, "tokenizer": …, "caps": [2048, 4096]}              what the grades are a function of
    {"sample", "of", "tokens", "question_tokens", "correct": {"2048": false},     one for every sample of the trace
     "answers": {"2048": null}, "answer": "42"}

`correct` and `answers` have an entry for every cap below the sample's `tokens`: the grade of the cut text and its
answer, null for nothing. One that ends within a cap keeps its own grade, and the `answer` of its whole text. `of` tells
which question, known answer and text were graded. Files of schema 1, which have no answers, are read too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_jax.analysis.samples import SamplesError
from kinetics_jax.runs.cut_grades import CAP, CAPS
from kinetics_jax.runs.folder import TraceError, read_lines
from kinetics_jax.runs.records import MAX_TOKENS, OBJECT, TEXT, misfits, whole

if TYPE_CHECKING:
    from kinetics_jax.analysis.paper_traces import Trace

ENDING = ".cut_grades"
SCHEMA = 2
LINE = {
    "sample": whole(0, MAX_TOKENS),
    "of": TEXT,
    "tokens": whole(0, MAX_TOKENS),
    "question_tokens": whole(0, MAX_TOKENS),
    "correct": OBJECT,
}
ANSWERS = {"answers": OBJECT, "answer": TEXT.or_null()}  # since schema 2
Counts = tuple[Sequence[int], Sequence[int]]  # tokens of each sample's text, and of its question


@dataclasses.dataclass(frozen=True)
class CutTexts:
    """The grades of a trace's cut texts: `caps`, ascending, and of each sample its `tokens`, its `question_tokens`, and
    its grade by cap, for the caps below its tokens; `answers`, alike, and `answer`, of the whole text: None where the
    file has none.
    """

    caps: tuple[int, ...]
    tokens: list[int]
    question_tokens: list[int]
    correct: list[dict[int, bool | None]]
    answers: list[dict[int, str | None]] | None = None
    answer: list[str | None] | None = None

    @property
    def counts(self) -> Counts:
        return self.tokens, self.question_tokens

    def within(self, grades: Sequence[bool | None]) -> list[tuple[bool | None, ...]]:
        """`correct_within` of a RunData; `grades` are those of the whole texts."""
        return [
            tuple(cut.get(cap, whole_text) for cap in self.caps)
            for cut, whole_text in zip(self.correct, grades, strict=True)
        ]

    @property
    def answers_within(self) -> list[tuple[str | None, ...]]:
        """`answers_within` of a RunData; empty where the file has none."""
        each = zip(self.answers or [], self.answer or [], strict=True)
        return [tuple(cut.get(cap, whole_text) for cap in self.caps) for cut, whole_text in each]


def read_cut_texts(trace: Trace, counts: Counts | None) -> CutTexts | None:
    """The grades that stand beside a trace; None if there are none.

    `counts`: what a tokenizer counts now. Grades of other texts than the trace holds now are left out with a warning.
    Raises SamplesError for a file that cannot be read, and where the counts are not those of the grades.
    """
    path = beside(trace.path)
    if not os.path.lexists(path):
        return None
    cure = f"remove it and grade again (kinetics grade {shlex.quote(str(trace.path))} --caps …)"
    header, lines, _ = read_grades(path, cure)
    if header is None or "caps" not in header:
        raise SamplesError(f"{path}: does not say its caps; {cure}")
    digests = sample_digests(trace)
    if [lines.get(i, {}).get("of") for i in range(len(digests))] != digests:
        warnings.warn(
            f"{path}: grades of other texts than the trace holds now, which are left out; {cure}", stacklevel=5
        )
        return None
    found = [lines[i] for i in range(len(digests))]
    caps = tuple(sorted(header["caps"]))
    tokens, questions = ([line[name] for line in found] for name in ("tokens", "question_tokens"))
    for i, line in enumerate(found):
        cut_at = {str(cap) for cap in caps if cap < line["tokens"]}
        if set(line["correct"]) != cut_at or set(line.get("answers", cut_at)) != cut_at:
            raise SamplesError(
                f"{path}: {trace.places[i]} of the trace is not graded at each cap below its length; {cure}"
            )
        for name, kept, now in (("text", tokens, counts and counts[0]), ("question", questions, counts and counts[1])):
            if now and kept[i] != now[i]:
                raise SamplesError(
                    f"{path}: graded with another tokenizer: the {name} in {trace.places[i]} of the trace has "
                    f"{kept[i]} tokens there, {now[i]} by the one given; name that one, or {cure}"
                )
    correct = [{int(cap): grade for cap, grade in line["correct"].items()} for line in found]
    if header["schema"] == 1:
        return CutTexts(caps, tokens, questions, correct)
    answers = [{int(cap): answer for cap, answer in line["answers"].items()} for line in found]
    return CutTexts(caps, tokens, questions, correct, answers, [line["answer"] for line in found])


def sample_digests(trace: Trace) -> list[str]:
    """Of every sample, 16 hex digits of what its cut grades depend on besides the grader and the tokenizer."""
    graded = zip(trace.questions, trace.answers, trace.texts, strict=True)
    return [hashlib.blake2b(json.dumps(each).encode(), digest_size=8).hexdigest() for each in graded]


def beside(trace: Path) -> Path:
    """Where the grades of a trace's cut texts stand."""
    return trace.with_name(trace.name + ENDING)


def read_grades(path: Path, cure: str) -> tuple[dict[str, Any] | None, dict[int, dict[str, Any]], int]:
    """The first line, the lines by sample (of several the last), and the bytes of a torn last line."""
    try:
        read = read_lines(path, {}, may_be_torn=True)
    except TraceError as error:
        raise SamplesError(f"{error}; {cure}") from error
    if not read.records:
        return None, {}, len(read.torn)
    header, *records = read.records
    if header.get("schema") not in range(1, SCHEMA + 1):
        raise SamplesError(f"{path}: not grades of schema 1 or {SCHEMA}; {cure}")
    schema = LINE if header["schema"] == 1 else LINE | ANSWERS
    if fault := misfits(header, CAPS, all_needed=False):
        raise SamplesError(f"{path}, line 1: {fault}; {cure}")
    for number, record in enumerate(records, start=2):
        fault = misfits(record, schema)
        if not fault and not all(
            cap.isdecimal() and CAP.holds(int(cap)) and grade in (True, False, None)
            for cap, grade in record["correct"].items()
        ):
            fault = "correct holds something else than grades by cap"
        if not fault and not all(
            cap.isdecimal() and CAP.holds(int(cap)) and (answer is None or isinstance(answer, str))
            for cap, answer in record.get("answers", {}).items()
        ):
            fault = "answers holds something else than texts by cap"
        if fault:
            raise SamplesError(f"{path}, line {number}: not a grade ({fault}); {cure}")
    return header, {record["sample"]: record for record in records}, len(read.torn)
