"""How a run's samples are graded and scored: as their task is, by a named grader, or by functions of the user's own."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kinetics_jax.tasks.choice_grading import CHOICE, LETTERS, grade_choice
from kinetics_jax.tasks.grading import Grade, Grader
from kinetics_jax.tasks.math_grading import GradingError, grader_for, readable_problems
from kinetics_jax.tasks.own_functions import SECONDS, Calls, OwnFunction, OwnGrader, OwnScore, own_function
from kinetics_jax.tasks.problems import Problem

MATH = "math"
NAMED = (MATH, CHOICE)


@dataclasses.dataclass(frozen=True)
class Grading:
    """Who grades: `grader`, one of NAMED or a user's function; None: as the task is graded. Who scores: `score`, a
    user's function, a verifier or judge; None: nobody, unless the grader returns scores. `seconds`: what a call of a
    user's function may take.
    """

    grader: OwnFunction | str | None = None
    score: OwnFunction | None = None
    seconds: float = SECONDS

    @property
    def identity(self) -> dict[str, Any]:
        """What run.json says of it; nothing of how the task itself is graded."""
        named = {"function": self.grader} if isinstance(self.grader, str) else None
        grader = self.grader.identity if isinstance(self.grader, OwnFunction) else named
        score = None if self.score is None else self.score.identity
        return {name: each for name, each in (("grader", grader), ("score", score)) if each is not None}

    def check(self) -> None:
        """Raises FunctionError for a user's function that cannot be loaded; its process starts for that, and ends."""
        for function, noun in ((self.grader, "grader"), (self.score, "score")):
            if isinstance(function, OwnFunction):
                with Calls(function, noun):
                    pass

    def of(self, problems: Sequence[Problem]) -> Grading:
        """The same, where problems with choices have the grader of letters unless another is named."""
        choice = self.grader is None and any(problem.choices for problem in problems)
        return dataclasses.replace(self, grader=CHOICE) if choice else self


AS_TASK = Grading()


def grading(
    grader: str | Callable[..., Any] | None = None,
    score: str | Callable[..., Any] | None = None,
    *,
    seconds: float = SECONDS,
) -> Grading:
    """Of spellings (`choice`, `module:function`, `file.py:function`) or functions. Raises FunctionError, as
    `own_function`, and GradingError for a name that is none.
    """
    if isinstance(grader, str) and ":" not in grader:
        if grader not in NAMED:
            raise GradingError(
                f"grader {grader!r:.60} is not known (known: {', '.join(NAMED)}; your own: module:function or "
                "path/to/file.py:function)"
            )
        graded: OwnFunction | str | None = grader
    else:
        graded = None if grader is None else own_function(grader)
    return Grading(graded, None if score is None else own_function(score), seconds)


@contextlib.contextmanager
def open_grader(
    task: str,
    answers: Mapping[str, str],
    how: Grading = AS_TASK,
    *,
    skip_unreadable: bool = False,
) -> Iterator[Grader]:
    """The grader of a task's samples, its processes started as they are needed and ended with the `with`.

    Raises GradingError for known `answers` (by problem id) that it cannot use, as `grader_for`, and FunctionError for a
    function that cannot be loaded; a user's own grader takes any answers.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(how.grader, OwnFunction):
            grader: Grader = stack.enter_context(OwnGrader(how.grader, seconds=how.seconds))
        elif how.grader == CHOICE:
            _check_letters(answers)
            grader = grade_choice
        else:
            grader = stack.enter_context(grader_for(how.grader or task, answers, skip_unreadable=skip_unreadable))
        if how.score is not None:
            scorer = stack.enter_context(OwnScore(how.score, seconds=how.seconds))
            grader = functools.partial(_scored, grader, scorer, how)
        yield grader


def gradable_problems(
    problems: Sequence[Problem], task: str, how: Grading, *, skip_unreadable: bool = False
) -> list[Problem]:
    """The problems whose known answers the grader can use: all, for a user's own. Raises as `readable_problems`."""
    how = how.of(problems)
    if isinstance(how.grader, OwnFunction) or how.grader == CHOICE:
        return list(problems)
    return readable_problems(problems, how.grader or task, skip_unreadable=skip_unreadable)


def _check_letters(answers: Mapping[str, str]) -> None:
    for name, answer in answers.items():
        if not (len(answer.strip()) == 1 and answer.strip() in LETTERS):
            raise GradingError(
                f"problem {name!r:.60}: the known answer {answer!r:.40} is no letter of a choice ({LETTERS[0]} … "
                f"{LETTERS[-1]}); the grader {CHOICE!r} is for multiple choice (--choices)"
            )


def _scored(
    grader: Grader, scorer: OwnScore, how: Grading, text: str, answer: str, problem: Mapping[str, Any] | None = None
) -> Grade:
    grade = grader(text, answer, problem or {})
    if grade.score is not None:
        raise GradingError(f"grader {how.grader} returns a score, and {how.score} scores too; leave one of them out")
    score, why = scorer(text, answer, problem or {})
    return dataclasses.replace(grade, score=score, why="; ".join(filter(None, (grade.why, why))) or None)
