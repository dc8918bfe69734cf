r"""Mathematical answers against the known ones: `\frac{1}{2}` is 0.5, (1, 2) is not (2, 1). No jax.

Plain numbers are compared exactly and at once. Everything else goes to math-verify (LaTeX → sympy, then numeric and
symbolic equality), which can hang, crash or eat memory on what models write, so it runs in a process of its own. A text
without a box is read as math-verify reads it: `the final answer is …`, or else the last formula or number.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from kinetics_jax.errors import UserError
from kinetics_jax.tasks.answers import stated_answer
from kinetics_jax.tasks.exact import based, compare_numbers
from kinetics_jax.tasks.grading import Grade, Grader, grade_integer, integer
from kinetics_jax.tasks.guarded_process import GuardedProcess, ProcessEnded
from kinetics_jax.tasks.known_answers import MAX_ANSWER, fault, formulas
from kinetics_jax.tasks.latex_forms import modulus
from kinetics_jax.tasks.ledger import LEDGER, ROUTE, grade_ledger, grade_route, ledger_fault, route_fault
from kinetics_jax.tasks.problems import BUILTIN, PACKAGED, Problem
from kinetics_jax.tasks.reading import read, says_nothing
from kinetics_jax.tasks.verdicts import compare
from kinetics_jax.tasks.vocabulary import each_of

# What a grade depends on: the bytes of these files are hashed into stored grades of cut samples.
SOURCES = tuple(
    Path(__file__).with_name(f"{name}.py")
    for name in each_of(
        "amounts answers characters exact formulas guarded_process known_answers latex_forms math_grading math_worker "
        "moments number_words phrasing reading tokens units verdicts vocabulary wrapping"
    )
)
WORKER = Path(__file__).with_name("math_worker.py")
STARTUP_SECONDS = 120  # importing sympy on a busy machine
LEFT_OUT = "its known answer cannot be graded, and is left out"
UNGRADED = Grade(correct=None, answer=None, grader="error", why=LEFT_OUT)
NAMED = 3  # problems that a message names


class GradingError(UserError):
    """Known answers that no grader can use; the message names them."""


@contextlib.contextmanager
def grader_for(
    task: str, answers: Iterable[str] | Mapping[str, str] = (), *, skip_unreadable: bool = False
) -> Iterator[Grader]:
    """The grader of a task: its own for the package's tasks, mathematics for all others.

    Raises GradingError, before anything is graded, when it could not use one of the known `answers` (by problem id, if
    the message is to name the problems). With `skip_unreadable` it warns instead, and grades what is held against such
    an answer as `error`.
    """
    with MathGrader() as mathematics:
        bad = _refuse(_unreadable(task, mathematics, _by_name(answers)), skip_unreadable)
        if task not in PACKAGED and not bad:
            yield mathematics
            return
        grader = _own_grader(task) if task in PACKAGED else mathematics
        yield functools.partial(_graded, grader, frozenset(answer for answer, _ in bad.values()))


def readable_problems(problems: Sequence[Problem], task: str, *, skip_unreadable: bool = False) -> list[Problem]:
    """The problems whose known answers can be graded.

    Raises GradingError for any other; with `skip_unreadable` it warns, with their number and first ids, and leaves them
    out. Raises it too where none is left.
    """
    bad = unreadable_answers(task, {problem.id: problem.answer for problem in problems}, skip=skip_unreadable)
    if len(bad) == len(problems):
        raise GradingError(f"task {task!r}: no problem is left; {_listed(bad)}")
    return [problem for problem in problems if problem.id not in bad]


def unreadable_answers(task: str, answers: Mapping[str, str], *, skip: bool) -> dict[str, tuple[str, str]]:
    """Of each known answer, by problem id, that cannot be graded: the answer, and why.

    Raises GradingError if there is any, or, with `skip`, warns of them.
    """
    with MathGrader() as mathematics:
        return _refuse(_unreadable(task, mathematics, answers), skip)


def _refuse(bad: dict[str, tuple[str, str]], skip: bool) -> dict[str, tuple[str, str]]:
    if bad and not skip:
        raise GradingError(
            f"{_listed(bad)}; mend them, name the column that holds final answers (numbers, LaTeX or a few words), or "
            "leave them out (--skip-unreadable)"
        )
    if bad:
        warnings.warn(f"left out: {_listed(bad)}", stacklevel=4)
    return bad


def _unreadable(task: str, grader: MathGrader, answers: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    if task not in PACKAGED:
        return grader.unreadable(answers)
    faults = {name: (answer, _own_fault(task, answer)) for name, answer in answers.items()}
    return {name: (answer, why) for name, (answer, why) in faults.items() if why}


def _own_grader(task: str) -> Callable[[str, str], Grade]:
    """Of a task of the package."""
    return {LEDGER: grade_ledger, ROUTE: grade_route}.get(task, grade_integer)


def _own_fault(task: str, answer: str) -> str | None:
    """Why a known answer is none for the task's own grader."""
    if task == BUILTIN:
        return "not an integer" if integer(answer) is None else None
    return route_fault(answer) if task == ROUTE else ledger_fault(answer)


def _graded(
    grader: Callable[[str, str], Grade],
    skipped: frozenset[str],
    text: str,
    answer: str,
    problem: Mapping[str, Any] | None = None,
) -> Grade:
    return Grade(None, stated_answer(text), "error", why=LEFT_OUT) if answer in skipped else grader(text, answer)


def _by_name(answers: Iterable[str] | Mapping[str, str]) -> Mapping[str, str]:
    return answers if isinstance(answers, Mapping) else {answer: answer for answer in answers}


class MathGrader:
    """Grades mathematical answers; a Grader and a context manager.

    What math-verify cannot decide in `timeout` seconds is graded `timeout`, what makes it fail or die `error`; both
    leave `correct` None and say why in a warning. Its process has `memory` bytes of address space (where the system can
    limit it: Linux does, macOS does not), starts when it is first needed, and starts anew after it was killed. One
    thread at a time.
    """

    def __init__(self, *, timeout: float = 10.0, memory: int = 4 << 30):
        if timeout <= 0:
            raise GradingError(f"the time to grade an answer must be positive, got {timeout} s")
        self.timeout, self.memory = timeout, memory
        self._process: GuardedProcess | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __call__(self, text: str, answer: str, problem: Mapping[str, Any] | None = None) -> Grade:
        stated = stated_answer(text)
        if stated is None:
            return Grade(correct=False, answer=None)
        verdict = compare_numbers(stated.strip(), answer.strip())
        if verdict is not None:
            return Grade(verdict, stated)
        if len(stated) > MAX_ANSWER:
            why = f"an answer of {len(stated)} characters is not compared (at most {MAX_ANSWER})"
            return _failed("error", why, stated)
        if says_nothing(stated):
            return Grade(correct=False, answer=stated)
        given, known = read(stated), read(answer)
        if known.kind == "unread" and given.text != known.text:
            return _failed("error", f"the known answer {_short(answer)} cannot be read: {known.why}", stated)
        replies: list[tuple[str, str]] = []  # how math-verify failed
        verdict = compare(given, known, functools.partial(self._ask, replies))
        if verdict is None:
            why = given.why if given.kind == "unread" else "what it says can be told neither from right nor from wrong"
            return _failed(*(replies[-1] if replies else ("error", why)), stated)
        return Grade(verdict, stated)

    def _ask(self, failures: list[tuple[str, str]], given: str, known: str) -> bool | None:
        """math-verify's verdict on two formulas; None, with the failure appended, where it has none."""
        reply = self._exchange({"gold": known, "box": given})
        if "timeout" in reply:
            failures.append(("timeout", f"no verdict in {self.timeout:g} s"))
        elif "error" in reply:
            failures.append(("error", reply["error"]))
        else:
            return reply["correct"]
        return None

    def check(self, answers: Iterable[str] | Mapping[str, str]) -> None:
        """Raises GradingError unless every known answer can be matched by a final answer. No process for plain numbers.

        `answers` by problem id have the message name the problems. Raises it too where math-verify does not start, and
        is needed.
        """
        _refuse(self.unreadable(_by_name(answers)), skip=False)

    def unreadable(self, answers: Mapping[str, str]) -> dict[str, tuple[str, str]]:
        """Of each known answer that no final answer could match, by problem id: the answer, and why."""
        reasons = {answer: self._fault(answer) for answer in dict.fromkeys(answers.values())}
        return {name: (answer, why) for name, answer in answers.items() if (why := reasons[answer])}

    def _fault(self, answer: str) -> str | None:
        why = fault(answer)
        if why is not None or compare_numbers(answer, answer) is not None:
            return why
        for core in formulas(read(answer)):
            if compare_numbers(core, core) is not None or modulus(core) or based(core) is not None or "\\ldots" in core:
                continue
            reply = self._exchange({"gold": core, "box": core})
            if reply.get("startup"):
                raise GradingError(f"{reply['error']}; without it {_short(answer)} cannot be graded")
            if not reply.get("correct"):
                why = "no reading in time" if "timeout" in reply else reply.get("error", "not equal to itself")
                return f"cannot be read: {why}"
        return None

    def _exchange(self, request: dict[str, str]) -> dict[str, Any]:
        """One request and its reply; {"timeout": …} and {"error": …} for what went wrong, "startup" if at the start."""
        if self._process is not None and self._process.ended():
            self._stop()
        if self._process is None:
            self._process = GuardedProcess(WORKER, memory=self.memory, seconds=self.timeout)
            ready = self._reply(None, STARTUP_SECONDS)
            if "ready" not in ready:
                self._stop()
                reason = f"nothing in {STARTUP_SECONDS} s" if "timeout" in ready else ready["error"]
                return {"error": f"math-verify does not start: {reason}", "startup": True}
        return self._reply(request, self.timeout)

    def _reply(self, request: dict[str, str] | None, seconds: float) -> dict[str, Any]:
        assert self._process is not None
        try:
            reply = self._process.ask(request, seconds)
        except ProcessEnded as error:
            self._process = None
            return {"timeout": seconds} if error.expired else {"error": str(error)}
        if reply.get("last"):
            self._stop()
        return reply

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()


def _listed(bad: Mapping[str, tuple[str, str]]) -> str:
    """How many known answers cannot be graded, and the first few with their problems' ids."""
    first = [
        f"{'' if name == answer else name[:60] + ': '}{_short(answer)} ({why[:90]})"
        for name, (answer, why) in list(bad.items())[:NAMED]
    ]
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    noun = "known answer" if len(bad) == 1 else "known answers"
    return f"{len(bad)} {noun} cannot be graded: {'; '.join(first)}{more}"


def _failed(grader: str, reason: str, answer: str | None) -> Grade:
    warnings.warn(f"not graded ({grader}): {reason}; answer {_short(answer)}", stacklevel=3)
    return Grade(correct=None, answer=answer, grader=grader, why=reason)


def _short(text: str | None) -> str:
    return "none" if text is None else repr(text if len(text) <= 40 else text[:37] + "…")
