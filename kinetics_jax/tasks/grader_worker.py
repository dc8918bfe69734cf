"""Calls a user's function, in a process of its own: a script, started by own_functions and never imported.

JSON lines on standard input and output. The first line in is {"path": [folders], "module": name or null, "file": path
or null, "function": name}, its reply {"ready": true}; then every line is {"text", "answer", "problem"}, and its reply
holds what the function returned: {"correct": bool}, {"number": x}, {"correct", "score"} (a pair), {"fields": object}
(a mapping) or {"other": what it is}; beside it "printed" (the beginning of what it printed) and "forked" (how often
it forked), where it did. {"error": text} instead for what it raised. Arguments: bytes of address space, and the seconds
after which a request kills the process (for when the parent is gone).

The function can print, read standard input, start processes, raise anything or exit: the pipes of requests and replies
are out of its reach and of its children's, and a fork that comes back from it ends here.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SHOWN = 200  # characters of a message, and of what was printed


class Printed(io.TextIOBase):
    """Keeps the beginning of what is printed."""

    def __init__(self) -> None:
        self.beginning = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        self.beginning += text[: SHOWN - len(self.beginning)]
        return len(text)


def main() -> None:
    size, seconds = int(sys.argv[1]), int(sys.argv[2])
    requests, replies = os.fdopen(os.dup(0), "r", encoding="ascii"), os.fdopen(os.dup(1), "w", encoding="ascii")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who closes our input
    limit_memory(size)
    own, forks = os.getpid(), [0]
    if hasattr(os, "register_at_fork"):
        pipes = [requests.fileno(), replies.fileno()]

        def in_child() -> None:
            while pipes:  # once: a child of the child may have other files under these numbers
                os.close(pipes.pop())

        def in_parent() -> None:
            forks[0] += 1

        os.register_at_fork(after_in_child=in_child, after_in_parent=in_parent)

    function: Callable[..., Any] | None = None
    for line in requests:
        if hasattr(signal, "alarm"):
            signal.alarm(seconds)
        printed, forks[0] = Printed(), 0
        sys.stdout = printed
        request = json.loads(line)
        try:
            if function is None:
                function = adapted(load(request))
                reply: dict[str, Any] = {"ready": True}
            else:
                reply = described(function(request["text"], request["answer"], request["problem"]))
        except BaseException as error:  # SystemExit too: the next sample has its turn
            reply = {"error": raised(error)}
        if os.getpid() != own:
            os._exit(0)
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        reply |= {"printed": printed.beginning} if printed.beginning.strip() else {}
        reply |= {"forked": forks[0]} if forks[0] else {}
        print(json.dumps(reply), file=replies, flush=True)


def limit_memory(size: int) -> None:
    """Makes allocations beyond `size` bytes of address space fail, where the system can (Linux does, macOS refuses)."""
    if sys.platform != "linux":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


def load(request: dict[str, Any]) -> Callable[..., Any]:
    """The function that a request names. Raises what its module raises, and Refused for what is no plain function."""
    sys.path[:] = request["path"]
    name = request["function"]
    if request["file"] is None:
        module = importlib.import_module(request["module"])
    else:
        path = Path(request["file"])
        sys.path.insert(0, str(path.parent))  # what lies beside it can be imported
        spec = importlib.util.spec_from_file_location(f"_own_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise Refused(f"{path} is no Python file")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if function is None:
        raise Refused(f"there is no {name!r} in it")
    if not callable(function):
        raise Refused(f"{name!r} is no function but {shown(function)}")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise Refused(f"{name!r} is async; write a plain function (def)")
    if inspect.isgeneratorfunction(function):
        raise Refused(f"{name!r} is a generator (it has a yield); write a function that returns")
    return function


def adapted(function: Callable[..., Any]) -> Callable[[str, str, dict[str, Any]], Any]:
    """The function as one of (text, answer, problem), whether it takes the problem or not."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some functions written in C
        return lambda text, answer, problem: function(text, answer)
    if "problem" in signature.parameters and binds(signature, 2, problem=True):
        return lambda text, answer, problem: function(text, answer, problem=problem)
    if binds(signature, 2):
        return lambda text, answer, problem: function(text, answer)
    if binds(signature, 3):
        return function
    raise Refused(f"it takes {signature}; it is called with (text, answer) or (text, answer, problem)")


def binds(signature: inspect.Signature, positional: int, *, problem: bool = False) -> bool:
    try:
        signature.bind(*[None] * positional, **({"problem": None} if problem else {}))
    except TypeError:
        return False
    return True


def described(value: Any) -> dict[str, Any]:
    """What a function returned, as JSON has it."""
    plain = scalar(value)
    if isinstance(plain, bool):
        return {"correct": plain}
    if isinstance(plain, int | float):
        return {"number": number(plain)}
    if isinstance(value, tuple | list) and len(value) == 2:
        correct, score = map(scalar, value)
        if isinstance(correct, bool) and isinstance(score, int | float) and not isinstance(score, bool):
            return {"correct": correct, "score": number(score)}
    elif isinstance(value, Mapping):
        fields = {str(name): scalar(each) for name, each in value.items()}
        odd = [name for name, each in fields.items() if not isinstance(each, str | int | float | None)]
        if not odd:
            return {"fields": {k: number(v) if isinstance(v, int | float) else v for k, v in fields.items()}}
    return {"other": shown(value)}


def scalar(value: Any) -> Any:
    """NumPy's, jax's and torch's scalars as Python's."""
    if getattr(value, "shape", None) == () and hasattr(value, "dtype") and hasattr(value, "item"):
        return value.item()
    return value


def number(value: float) -> float | str:
    """A number as JSON has it: those that are not finite as text, whole ones beyond all floats too."""
    if isinstance(value, bool):
        return value
    try:
        real = float(value)
    except OverflowError:
        return "inf"
    return real if real - real == 0 else str(real)


def shown(value: Any) -> str:
    """A value that is no verdict, shortened, with its type."""
    try:
        text = repr(value)
    except BaseException:  # of a class of the user's, which may raise anything
        text = "which cannot be shown"
    return f"{cut(text)} ({type(value).__name__})"


def raised(error: BaseException) -> str:
    """What was raised, and in which line."""
    if isinstance(error, Refused):
        return str(error)
    try:
        text = cut(str(error))
    except BaseException:
        text = ""
    if isinstance(error, SystemExit):
        return f"exits (sys.exit({text}))"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    where = f" in line {frames[-1].lineno} of {Path(frames[-1].filename).name}" if frames else ""
    return f"raises {type(error).__name__}{': ' if text else ''}{text}{where}"


def cut(text: str) -> str:
    """A text on one line, of at most SHOWN characters."""
    text = " ".join(text[: 4 * SHOWN].split()).encode("utf-8", "replace").decode()
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


class Refused(Exception):
    """What is named is no function that can be called."""


if __name__ == "__main__":
    main()
