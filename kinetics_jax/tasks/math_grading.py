r"""Mathematical answers against the known ones: `\frac{1}{2}` is 0.5, (1, 2) is not (2, 1). No jax.

Plain numbers are compared exactly and at once. Everything else goes to math-verify (LaTeX → sympy, then numeric and
symbolic equality), which can hang, crash or eat memory on what models write, so it runs in a process of its own. A text
without a box is read as math-verify reads it: `the final answer is …`, or else the last formula or number.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from kinetics_jax.errors import UserError
from kinetics_jax.tasks.answers import compare_numbers, last_answer_box, respell, split_reasoning, undecorated
from kinetics_jax.tasks.grading import Grade, Grader, grade_integer, integer
from kinetics_jax.tasks.problems import BUILTIN

WORKER = Path(__file__).with_name("math_worker.py")
STARTUP_SECONDS = 120  # importing sympy on a busy machine
MAX_ANSWER = 4000  # characters; more is no answer, and math-verify's time grows faster than its input


class GradingError(UserError):
    """Known answers that no grader can use; the message names them."""


@contextlib.contextmanager
def grader_for(task: str, answers: Iterable[str] = ()) -> Iterator[Grader]:
    """The grader of a task: integers for the built-in one, mathematics for all others.

    Raises GradingError, before anything is graded, when it could not use one of the known `answers`.
    """
    if task == BUILTIN:
        if bad := [answer for answer in answers if integer(answer) is None]:
            raise GradingError(f"task {task!r}: the known answer {_short(bad[0])} is not an integer")
        yield grade_integer
        return
    with MathGrader() as grader:
        grader.check(answers)
        yield grader


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
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __call__(self, text: str, answer: str) -> Grade:
        reasoning, final = split_reasoning(text)
        box = last_answer_box(final)
        if box is None and not final.strip():
            box = last_answer_box(reasoning)
        if box is None and not final.strip():
            return Grade(correct=False, answer=None)
        if box is None:
            return self._ask({"text": respell(_tail(final))}, answer)
        verdict = compare_numbers(box, answer)
        if verdict is not None:
            return Grade(verdict, box)
        if not undecorated(box):
            return Grade(correct=False, answer=box)
        if len(box) > MAX_ANSWER:
            return _failed("error", f"an answer of {len(box)} characters is not compared (at most {MAX_ANSWER})", box)
        graded = self._ask({"box": _formula(box)}, answer)
        return dataclasses.replace(graded, answer=box)

    def check(self, answers: Iterable[str]) -> None:
        """Raises GradingError unless every known answer can be read and equals itself. No process for plain numbers.

        Raises it too where math-verify does not start, and is needed.
        """
        bad: dict[str, str] = {}
        for answer in dict.fromkeys(answers):
            if compare_numbers(answer, answer) is None:
                if len(answer) > MAX_ANSWER:
                    bad[answer] = f"{len(answer)} characters, at most {MAX_ANSWER} are read"
                    continue
                reply = self._exchange({"gold": _formula(answer), "box": _formula(answer)})
                if reply.get("startup"):
                    raise GradingError(f"{reply['error']}; without it {_short(answer)} cannot be graded")
                if "timeout" in reply:
                    bad[answer] = "no reading in time"
                elif not reply.get("correct"):
                    bad[answer] = reply.get("error", "not equal to itself")
        if bad:
            first, reason = next(iter(bad.items()))
            raise GradingError(
                f"{len(bad)} known answers cannot be graded, the first: {_short(first)} ({reason}); "
                f"name the column that holds final answers, as numbers or in LaTeX"
            )

    def _ask(self, what: dict[str, str], answer: str) -> Grade:
        reply = self._exchange({"gold": _formula(answer), **what})
        if "timeout" in reply:
            return _failed("timeout", f"no verdict in {self.timeout:g} s", what.get("box"))
        if "error" in reply:
            return _failed("error", reply["error"], what.get("box"))
        return Grade(reply["correct"], reply["answer"])

    def _exchange(self, request: dict[str, str]) -> dict[str, Any]:
        """One request and its reply; {"timeout": …} and {"error": …} for what went wrong, "startup" if at the start."""
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._process is None:
            # A path, not a module: starts without the package. -P keeps this folder's names out of its imports.
            command = [sys.executable, "-P", str(WORKER), str(self.memory), str(int(self.timeout) + 2)]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the one who asks, not for the one who answers
            )
            ready = self._line(b"", STARTUP_SECONDS)
            if "ready" not in ready:
                self._stop()
                return {
                    "error": f"math-verify does not start: {ready.get('error', 'no sign of life')}",
                    "startup": True,
                }
        return self._line(json.dumps(request).encode("ascii") + b"\n", self.timeout)

    def _line(self, line: bytes, seconds: float) -> dict[str, Any]:
        """Sends a line and reads one. The process is killed when that takes too long, whatever it is doing."""
        process = self._process
        assert process is not None
        assert process.stdin is not None  # pipes, as _exchange opens it
        assert process.stdout is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(line)
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = b""
        except BaseException:  # interrupted: its reply must not be taken for the next request's
            self._stop()
            raise
        finally:
            timer.cancel()
        if reply.endswith(b"\n") and not expired.is_set():
            answer = json.loads(reply)
            if answer.get("last"):
                self._stop()
            return answer
        self._stop()
        return {"timeout": seconds} if expired.is_set() else {"error": f"its process died ({process.returncode})"}

    def _stop(self) -> None:
        """Ends the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()  # waits, and closes the pipes


def _formula(answer: str) -> str:
    """An answer as math-verify reads it."""
    return respell(undecorated(answer))


def _tail(text: str) -> str:
    """The end of a text, from the start of a line where that is possible: formulas stay whole."""
    if len(text) <= MAX_ANSWER:
        return text
    tail = text[-MAX_ANSWER:]
    _, newline, lines = tail.partition("\n")
    return lines if newline and lines.strip() else tail


def _failed(grader: str, reason: str, answer: str | None) -> Grade:
    warnings.warn(f"not graded ({grader}): {reason}; answer {_short(answer)}", stacklevel=3)
    return Grade(correct=None, answer=answer, grader=grader)


def _short(text: str | None) -> str:
    return "none" if text is None else repr(text if len(text) <= 60 else text[:57] + "…")
