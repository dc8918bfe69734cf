"""Long-CoT from the paper's traces: texts cut after n tokens and graded, as its code does. trace_cuts.py reads that.

The grades of NAME.jsonl are written whole to NAME.jsonl.cut_grades, under another name first; while texts are graded,
finished lines stand in NAME.jsonl.cut_grades.partial, where the same command goes on. The trace itself is only read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kinetics_jax.analysis.paper_traces import Trace, question_id
from kinetics_jax.analysis.trace_cuts import SCHEMA, beside, read_grades, sample_digests
from kinetics_jax.files import write_atomic
from kinetics_jax.runs.truncation import (
    append_records,
    file_digest,
    grade_each,
    grader_fingerprint,
    locked,
    model_tokenizer,
    wanted_caps,
)
from kinetics_jax.tasks.math_grading import UNGRADED, unreadable_answers

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from kinetics_jax.tasks.grading import Grade, Grader


@dataclasses.dataclass(frozen=True)
class TextToCut:
    """One sample to be graded at `caps`, so far as its text is longer; `answer` is None for one that is left out.
    `done` and `said`: the grades and answers that it has, by cap.
    """

    sample: int
    of: str
    question: str
    answer: str | None
    text: str
    caps: tuple[int, ...]
    done: dict[str, bool | None]
    said: dict[str, str | None]


def grade_cut_texts(
    trace: Trace,
    caps: Sequence[int],
    *,
    model: str | None = None,
    tokenizer: str | Path | None = None,
    workers: int | None = None,
    skip_unreadable: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Grades a trace's texts as if each had been cut after each of `caps` tokens; returns the file of the grades.

    The grades of earlier caps are kept; what another grader or tokenizer made, or is of other texts, is made anew, with
    a warning. `tokenizer` is the path of a tokenizer.json or of the directory that holds it, by default that of the
    `model` (default: the trace's own). The other arguments, and the errors, are those of `truncation.grade_cuts`, and
    SamplesError for grades that cannot be read.
    """
    wanted = wanted_caps(trace.path, caps, workers)
    answers = dict(zip(map(question_id, trace.questions), trace.answers, strict=True))
    left_out = unreadable_answers(trace.task, answers, skip=skip_unreadable)
    file = model_tokenizer(trace.path, str(model or trace.model), tokenizer)
    maker = {"schema": SCHEMA, "grader": grader_fingerprint(trace.task), "tokenizer": file_digest(file)}
    path = beside(trace.path)
    cure = "remove it and grade again"
    with locked(partial := path.with_name(f"{path.name}.partial")) as target:
        header, lines, _ = read_grades(path, cure) if os.path.lexists(path) else (None, {}, 0)
        begun, more, torn = read_grades(partial, cure)
        if (lines and not _made_by(header, maker)) or (more and not _made_by(begun, maker)):
            warnings.warn(
                f"{path}: made with another grader, tokenizer or version; its texts are graded again", stacklevel=2
            )
        earlier = (lines if _made_by(header, maker) else {}) | (more if _made_by(begun, maker) else {})
        everything = tuple(sorted({*wanted, *(header["caps"] if header else ())}))
        jobs, ready = _split(trace, everything, earlier, left_out)
        _start_partial(target, maker, begun, torn)
        on_progress(0, len(jobs))
        for count, line in enumerate(grade_each(_grade_cuts_of, jobs, trace.task, file, workers), start=1):
            append_records(target, [line])
            ready[line["sample"]] = line
            on_progress(count, len(jobs))
        records = [maker | {"caps": list(everything)}, *(ready[i] for i in sorted(ready))]
        write_atomic(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        partial.unlink()
    return path


def _made_by(header: dict[str, Any] | None, maker: dict[str, Any]) -> bool:
    return header is not None and all(header.get(name) == value for name, value in maker.items())


def _start_partial(file: IO[bytes], maker: dict[str, Any], begun: dict[str, Any] | None, torn: int) -> None:
    """Keeps the lines of a command that was stopped, without a torn last one; else begins with the maker."""
    if _made_by(begun, maker):
        kept = os.fstat(file.fileno()).st_size - torn
        file.truncate(kept)
        file.seek(kept - 1)
        if file.read(1) != b"\n":
            file.write(b"\n")
        return
    file.truncate(0)
    append_records(file, [maker])


def _split(
    trace: Trace, caps: tuple[int, ...], earlier: dict[int, dict[str, Any]], left_out: Collection[str]
) -> tuple[list[TextToCut], dict[int, dict[str, Any]]]:
    """What is to be graded, and the lines of what has been at all caps."""
    jobs, ready = [], {}
    for i, of in enumerate(sample_digests(trace)):
        line = earlier.get(i)
        if line is not None and line["of"] != of:
            line = None
        done = {str(cap): line["correct"][str(cap)] for cap in caps if line and str(cap) in line["correct"]}
        said = {cap: line["answers"][cap] for cap in done} if line else {}
        if line is not None and len(done) == sum(cap < line["tokens"] for cap in caps):
            ready[i] = line | {"correct": done, "answers": said}
            continue
        question = trace.questions[i]
        answer = None if question_id(question) in left_out else trace.answers[i]
        jobs.append(TextToCut(i, of, question, answer, trace.texts[i], caps, done, said))
    return jobs, ready


def _grade_cuts_of(job: TextToCut, tokenizer: Tokenizer, grader: Grader) -> dict[str, Any]:
    """The line of one sample."""
    text, question = (each.encode("utf-8", "replace").decode() for each in (job.text, job.question))
    tokens = tokenizer.encode(text, add_special_tokens=False).ids
    correct, said = dict(job.done), dict(job.said)

    def graded(text: str) -> Grade:
        return UNGRADED if job.answer is None else grader(text, job.answer)

    for cap in job.caps:
        if cap < len(tokens) and str(cap) not in correct:
            grade = graded(tokenizer.decode(tokens[:cap], skip_special_tokens=True))
            correct[str(cap)], said[str(cap)] = grade.correct, grade.answer
    of_question = len(tokenizer.encode(question, add_special_tokens=False).ids)
    return {
        "sample": job.sample,
        "of": job.of,
        "tokens": len(tokens),
        "question_tokens": of_question,
        "correct": correct,
        "answers": said,
        "answer": graded(text).answer,
    }
