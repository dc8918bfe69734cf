"""A user's own function that grades or scores: named, told from others, and called in a process of its own.

A function is named as `module:function` or `file.py:function`. It may hang, crash, print, fork or exit: the process
that calls it (grader_worker.py) is killed after a time limit and started anew. No jax.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import os
import sys
import warnings
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Self

from kinetics_jax.errors import UserError, shown, spelled
from kinetics_jax.files import FileError, read_regular
from kinetics_jax.tasks.answers import stated_answer
from kinetics_jax.tasks.grading import Grade
from kinetics_jax.tasks.guarded_process import GuardedProcess, ProcessEnded

WORKER = Path(__file__).with_name("grader_worker.py")
STARTUP_SECONDS = 120.0  # importing the user's module, and all that it imports
SECONDS = 10.0  # of one call
MEMORY = 16 << 30  # bytes of address space
SOURCE_BYTES = 64 << 20
MAX_ANSWER = 100_000  # characters
FIELDS = ("correct", "score", "answer")  # of a mapping that a grader returns


class FunctionError(UserError):
    """A function that cannot be called as it stands; the message names it and the cure."""


@dataclasses.dataclass(frozen=True)
class OwnFunction:
    """A function by name: of a `module`, or of the `file` of one. `source` is where it is read from, `fingerprint` a
    digest of that file's bytes: what it imports itself is not part of it.
    """

    name: str
    module: str | None
    file: Path | None
    source: Path
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.module or self.source.name}:{self.name}"

    @property
    def identity(self) -> dict[str, str]:
        """What run.json says of it."""
        return {"function": str(self), "fingerprint": self.fingerprint}


def own_function(given: str | Callable[..., Any]) -> OwnFunction:
    """The function that is spelled `module:function` or `file.py:function`, or that is given itself.

    Modules are looked for in the working directory and where Python imports from; nothing is imported here. Raises
    FunctionError for a spelling, file or module that is none, and for a function that has no such name, as a lambda.
    """
    where, name = _spelling(given) if isinstance(given, str) else _home(given)
    if where.endswith(".py") or os.sep in where:
        file = Path(where).absolute()
        if not file.is_file():
            raise FunctionError(f"{shown(where)}:{name}: there is no file {shown(str(file), 300)}")
        return OwnFunction(name, None, file, file, _digest(file))
    source = _source(where)
    if source is None:
        raise FunctionError(
            f"{where}:{name}: no module {where!r} with a source file is found (looked for in {os.getcwd()} and where "
            f"Python imports from); name its file instead, path/to/{where.rpartition('.')[2]}.py:{name}"
        )
    return OwnFunction(name, where, None, source, _digest(source))


def _spelling(given: str) -> tuple[str, str]:
    where, colon, name = given.rpartition(":")
    if not (colon and where and name.isidentifier()):
        raise FunctionError(f"{shown(given)!r} names no function; write module:function, or path/to/file.py:function")
    if not (where.endswith(".py") or os.sep in where or all(part.isidentifier() for part in where.split("."))):
        raise FunctionError(f"{shown(given)!r}: {shown(where)!r} is neither a module nor a file that ends in .py")
    return where, name


def _home(function: Callable[..., Any]) -> tuple[str, str]:
    """(module or file, name) of a function that is given itself: the process that calls it imports it by name."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    held = sys.modules.get(module or "")
    if name is None or not name.isidentifier() or getattr(held, name, None) is not function:
        raise FunctionError(
            f"{spelled(function)} cannot be called in a process of its own, which finds a function by its name; define "
            "it at the top level of a module or file (def grade(text, answer): …)"
        )
    file = getattr(held, "__file__", None)
    if file is None:
        raise FunctionError(
            f"{name} of {module} has no file that a process of its own could read; write it into one and name it: "
            f"grader.py:{name}"
        )
    found = None if module == "__main__" else _source(str(module))
    return (str(module) if found is not None and found.samefile(file) else str(Path(file).absolute())), name


def _source(module: str) -> Path | None:
    """The source file of a module, none of its packages imported; None where there is none."""
    path: Any = import_path()
    spec, whole = None, ""
    for part in module.split("."):
        whole = f"{whole}.{part}" if whole else part
        spec = None if path is None else PathFinder.find_spec(whole, path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
    origin = None if spec is None or not spec.has_location else spec.origin
    return None if origin is None else Path(origin)


def import_path() -> list[str]:
    """Where a user's module is looked for: the working directory, then what this process imports from."""
    return list(dict.fromkeys([os.getcwd(), *(entry or os.getcwd() for entry in sys.path)]))


def _digest(source: Path) -> str:
    try:
        return hashlib.blake2b(read_regular(source, at_most=SOURCE_BYTES), digest_size=8).hexdigest()
    except (OSError, FileError) as error:
        raise FunctionError(f"{source}: cannot be read ({error})") from error


class Calls:
    """Calls a user's function, `noun` in messages; a context manager. What goes wrong in a call is told once by its
    kind, in a warning that names the function, and is a reason, never an exception.

    A call may take `seconds` and its process `memory` bytes of address space; the process starts when it is first
    needed, and anew after it was killed. One thread at a time.
    """

    def __init__(self, function: OwnFunction, noun: str, *, seconds: float = SECONDS, memory: int = MEMORY):
        if not 0 < seconds < math.inf:
            raise FunctionError(f"the time of a {noun} must be positive, got {seconds} s")
        self.function, self.noun, self.seconds, self.memory = function, noun, seconds, memory
        self._process: GuardedProcess | None = None
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        self._start()  # what cannot be imported is told before anything is sampled
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> None:
        own = self.function
        if _digest(own.source) != own.fingerprint:
            raise FunctionError(
                f"{self.noun} {own}: {own.source} has changed since the first grade; what is graded is kept: begin "
                "anew, or put the file back and give the same command"
            )
        self._process = GuardedProcess(WORKER, memory=self.memory, seconds=max(self.seconds, STARTUP_SECONDS))
        file = None if own.file is None else str(own.file)
        named = {"path": import_path(), "module": own.module, "file": file, "function": own.name}
        try:
            reply = self._process.ask(named, STARTUP_SECONDS)
        except ProcessEnded as error:
            self._process = None
            why = f"it is not loaded in {STARTUP_SECONDS:g} s" if error.expired else f"its module ends: {error}"
            raise FunctionError(f"{self.noun} {own} cannot be loaded: {why}") from error
        if "error" in reply:
            self._stop()
            raise FunctionError(f"{self.noun} {own} cannot be loaded: {reply['error']}")

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.end()

    def call(self, text: str, answer: str, problem: Mapping[str, Any]) -> dict[str, Any]:
        """The reply of grader_worker.py; {"error": why} and {"timeout": why} for what went wrong."""
        if self._process is not None and self._process.ended():
            self._stop()
        if self._process is None:
            self._start()
        assert self._process is not None
        try:
            reply = self._process.ask({"text": text, "answer": answer, "problem": dict(problem)}, self.seconds)
        except ProcessEnded as error:
            self._process = None
            return {"timeout": f"gives none in {self.seconds:g} s"} if error.expired else {"error": _ended(error)}
        if printed := reply.get("printed"):
            self.tell(f"prints ({spelled(printed)}); what it prints goes nowhere", "prints")
        if reply.get("forked"):
            self.tell("forks; a copy that comes back from it is ended, and the first process answers", "forks")
        return reply

    def tell(self, what: str, kind: str, problem: Mapping[str, Any] | None = None) -> None:
        """Warns of what the function did, once of each kind."""
        if kind in self._told:
            return
        self._told.add(kind)
        at = f", problem {spelled(problem['id'])}" if problem and "id" in problem else ""
        more = "; `why` of each record says so, and more of this kind are not told" if problem is not None else ""
        warnings.warn(f"{self.noun} {self.function}{at}: {what}{more}", stacklevel=5)


def _ended(error: ProcessEnded) -> str:
    code = error.code
    return f"exits (its process ended with code {code})" if code is None or code >= 0 else f"is killed (signal {-code})"


class OwnGrader:
    """Grades by a user's function; a Grader and a context manager.

    It returns True or False; a pair (correct, score); or a mapping with `correct` and, if it likes, `score` and
    `answer`, what the text answered (else what `stated_answer` finds). Anything else, and whatever goes wrong, leaves
    `correct` None and says why.
    """

    def __init__(self, function: OwnFunction, *, seconds: float = SECONDS, memory: int = MEMORY):
        self.calls = Calls(function, "grader", seconds=seconds, memory=memory)

    def __enter__(self) -> Self:
        self.calls.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.calls.__exit__(*exception)

    def __call__(self, text: str, answer: str, problem: Mapping[str, Any] | None = None) -> Grade:
        asked = problem or {}
        reply = self.calls.call(text, answer, asked)
        stated = stated_answer(text)
        verdict = _verdict(reply)
        if isinstance(verdict, str):
            timed = "timeout" in reply
            self.calls.tell(verdict, _kind(reply, verdict), asked)
            why = f"{self.calls.function} {verdict}"
            return Grade(correct=None, answer=stated, grader="timeout" if timed else "error", why=why)
        return Grade(verdict["correct"], verdict.get("answer", stated), score=verdict.get("score"))


class OwnScore:
    """Scores by a user's function, a verifier or judge, which returns a finite number; a context manager."""

    def __init__(self, function: OwnFunction, *, seconds: float = SECONDS, memory: int = MEMORY):
        self.calls = Calls(function, "score", seconds=seconds, memory=memory)

    def __enter__(self) -> Self:
        self.calls.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.calls.__exit__(*exception)

    def __call__(self, text: str, answer: str, problem: Mapping[str, Any]) -> tuple[float | None, str | None]:
        """(score, why there is none)."""
        reply = self.calls.call(text, answer, problem)
        value = reply.get("number")
        if isinstance(value, float):
            return value, None
        failed = reply.get("timeout") or reply.get("error")
        what = failed or f"returns {_said(reply)}, no finite number"
        self.calls.tell(what, _kind(reply, what), problem)
        return None, f"{self.calls.function} {what}"


def _kind(reply: Mapping[str, Any], fault: str) -> str:
    """What faults are told once by: `raises ValueError`, `returns the answer`, `returns`, whatever the value."""
    words = fault.split(":")[0].split()
    if "timeout" in reply:
        return "timeout"
    if words[0] == "raises":
        return " ".join(words[:2])
    return " ".join(words[: 3 if words[:2] in (["returns", "the"], ["returns", "a"]) else 1])


def _verdict(reply: Mapping[str, Any]) -> dict[str, Any] | str:
    """`correct` and, where there are any, `score` and `answer` of a grader's reply; what is wrong with it."""
    if failed := reply.get("timeout") or reply.get("error"):
        return failed
    given = reply.get("fields", reply)
    fields = {name: given[name] for name in (given if given is not reply else FIELDS) if name in given}
    if strangers := [name for name in fields if name not in FIELDS]:
        return f"returns a mapping with {spelled(strangers[0])}; it may hold {', '.join(FIELDS)}"
    if not isinstance(fields.get("correct"), bool):
        return f"returns {_said(reply)}, not True or False"
    score = fields.get("score")
    if score is not None and (isinstance(score, bool) or not isinstance(score, float)):
        return f"returns the score {spelled(score)}, no finite number"
    answer = fields.get("answer", "")
    if not (answer is None or (isinstance(answer, str) and len(answer) <= MAX_ANSWER and _is_unicode(answer))):
        return f"returns the answer {spelled(answer)}, no text of at most {MAX_ANSWER} characters"
    return fields


def _is_unicode(text: str) -> bool:
    r"""Whether a text can be written: no half of a surrogate pair, which JSON can spell (`"\ud800"`)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _said(reply: Mapping[str, Any]) -> str:
    """What a function returned, in words."""
    if "other" in reply:
        return reply["other"]
    if "number" in reply:
        return str(reply["number"])
    if "score" in reply:
        return f"({reply['correct']}, {reply['score']})"
    return spelled(reply.get("fields", reply.get("correct")))
