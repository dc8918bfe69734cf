"""Stored samples graded or scored again: by their task's grader, a named one, or a user's own functions. No jax."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kinetics_jax.runs.folder import Run, TraceError, read_run, regrade
from kinetics_jax.runs.records import NONFINITE
from kinetics_jax.tasks.answers import completed
from kinetics_jax.tasks.graders import NAMED, Grading, grading, open_grader
from kinetics_jax.tasks.grading import Grade
from kinetics_jax.tasks.own_functions import SECONDS, OwnScore
from kinetics_jax.tasks.problems import problem_fields

GRADERS = ("ok", "timeout", "error", NONFINITE)  # what this package writes into the field `grader` of a record
# The grade of a sample whose logits are not finite: what it would have said is not known.
UNDECIDED = Grade(correct=None, answer=None, grader=NONFINITE)


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is: samples finished (earlier ones included) of the total; since this process began it, tokens
    drawn and how often a sample was preempted because the pool ran dry.
    """

    finished: int
    total: int
    tokens: int
    preempted: int = 0


def grade_again(
    path: str | Path,
    *,
    grader: str | Callable[..., Any] | None = None,
    score: str | Callable[..., Any] | None = None,
    grader_seconds: float = SECONDS,
    overwrite: bool = False,
    skip_unreadable: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Run, list[tuple[str, int]]]:
    """Grades the stored samples of a run folder anew: by `grader` (as in `best_of_n`), by default as its task is graded
    now. With `score` alone the grades stay and the samples are scored; with both, both are made.

    Returns the run and the (problem, sample) of every grade or score that changed. The old ones stay until all new ones
    are written. Raises TraceError for a sample without text, a run that another process is writing, and, without
    `overwrite`, for grades or scores that a user's own function or hand made and that would be lost; GradingError for
    known answers that cannot be graded, whose samples become undecided, with a warning, under `skip_unreadable`.
    """
    stored = read_run(path)
    if "task" not in stored.header:
        raise TraceError(f"{stored.path / 'run.json'}: names no task, which chooses the grader")
    how = grading(grader, score, seconds=grader_seconds)
    before = (stored.header.get("grader") or {}).get("function")
    if how.grader is None and before in NAMED:
        how = dataclasses.replace(how, grader=before)
    grades = grader is not None or score is None  # whether they are made anew
    if not overwrite:
        _refuse_loss(stored, how, grades)
    done = 0
    # Scores that the earlier grader returned go with its grades; those of a verifier stay, unless there are others now.
    verified = stored.header.get("score") is not None or before in (None, *NAMED)
    returned = False  # whether the grader returns scores

    def grade(record: dict[str, Any], answer: str) -> dict[str, Any]:
        nonlocal done, returned
        if record["text"] is None:
            raise TraceError(f"{path}: problem {record['problem']!r} sample {record['sample']} has no text to grade")
        problem = stored.problems[record["problem"]]
        asked = completed(problem["prompt"], record["text"]), answer, problem_fields(problem)
        finite = record["finish_reason"] != NONFINITE
        if scored is not None:
            value, why = scored(*asked) if finite else (None, None)
            fields = {"score": value, "why": why or (record.get("why") if record["correct"] is None else None)}
        else:
            assert graded is not None  # one of the two is there
            fields = dataclasses.asdict(graded(*asked) if finite else UNDECIDED)
            returned |= fields["score"] is not None and how.score is None
        done += 1
        on_progress(Progress(done, len(stored.samples), 0))
        return fields

    def settle(samples: list[dict[str, Any]]) -> dict[str, Any]:
        others = verified and grades and how.score is None and any("score" in record for record in stored.samples)
        if others and returned and not overwrite:
            by = (stored.header.get("score") or {}).get("function", "another")
            raise TraceError(
                f"{path}: holds scores by {by}, and {how.grader} returns its own; --overwrite replaces them"
            )
        if others and not returned:
            for made, record in zip(samples, stored.samples, strict=True):
                made["score"] = record.get("score")
        said: dict[str, Any] = {"grader": None} if grades else {}
        said |= {"score": None} if returned else {}
        return said | {name: each for name, each in how.identity.items() if grades or name == "score"}

    answers = {name: problem["answer"] for name, problem in stored.problems.items()}
    with contextlib.ExitStack() as stack:
        graded, scored = None, None
        if grades:
            graded = stack.enter_context(
                open_grader(stored.header["task"], answers, how, skip_unreadable=skip_unreadable)
            )
        elif how.score is not None:
            scored = stack.enter_context(OwnScore(how.score, seconds=how.seconds))
        old, new = regrade(path, grade, settle)
    changed = [
        (after["problem"], after["sample"])
        for earlier, after in zip(old.samples, new.samples, strict=True)
        if any(earlier.get(name) != after.get(name) for name in ("correct", "grader", "score"))
    ]
    return new, changed


def _refuse_loss(run: Run, how: Grading, grades: bool) -> None:
    """Raises TraceError where grades or scores would be lost that this package cannot make again by itself."""
    grader, score = ((run.header.get(name) or {}).get("function") for name in ("grader", "score"))
    by_hand = next((record["grader"] for record in run.samples if record["grader"] not in GRADERS), None)
    scores = any(record.get("score") is not None for record in run.samples)
    lost = None
    if grades and grader not in (None, *NAMED):
        lost = f"grades by your own grader {grader}"
    elif grades and by_hand is not None:
        lost = f"grades that this package did not make (grader {by_hand!r:.40})"
    elif how.score is not None and (score or scores):
        lost = f"scores by {score}" if score else "scores"
    if lost:
        raise TraceError(f"{run.path}: holds {lost}, which would be replaced; --overwrite replaces them")
