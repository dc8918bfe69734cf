"""Renders a chat template, in a process of its own: a script, started by chat_template and never imported.

A checkpoint's chat template is a program that somebody else wrote. Here it can reach no file, no module and no Python
object but the values below, and has a limit of memory; its limit of time is kept by the parent, who kills this process.

JSON lines on standard input and output. The first line in is {"template": text, "strict": bool}, its reply
{"ready": true}; then every line holds the template's variables, and its reply is {"text": text}; or {"error": text}
instead. Arguments: bytes of address space, and the seconds after which a request kills the process (for when the
parent is gone).
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
from typing import Any

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2.nodes import Node
from jinja2.parser import Parser

MAX_TEXT = 4_000_000  # characters of a prompt


class Generation(jinja2.ext.Extension):
    """`{% generation %}` marks what a model is trained on; the text is its body."""

    tags = {"generation"}  # noqa: RUF012  (as jinja2 declares it)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """No name that begins with an underscore is reached, whatever reads it; nothing that is handed in can change."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return not str(attr).startswith("_") and super().is_safe_attribute(obj, attr, value)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, str) and argument.startswith("__"):
            return self.undefined(obj=obj, name=argument)
        return super().getitem(obj, argument)


class Helper:
    """A function that a template may call: no function, whose globals could be reached."""

    __slots__ = ("_work",)

    def __init__(self, work: Any):
        self._work = work

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._work(*args, **kwargs)


def fail(message: object) -> None:
    """`raise_exception` of chat templates."""
    raise jinja2.TemplateError(str(message))


def to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
):
    """As transformers spells it: jinja2's own escapes what HTML does not take."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def now(spelling: str) -> str:
    """`strftime_now` of chat templates."""
    return datetime.datetime.now().strftime(spelling)


def environment(*, strict: bool = False) -> Sandbox:
    """What transformers gives to chat templates; `strict`: a name that is not known is a fault."""
    made = Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[Generation, jinja2.ext.loopcontrols],
        undefined=jinja2.StrictUndefined if strict else jinja2.Undefined,
    )
    made.filters["tojson"] = Helper(to_json)
    for name in ("lipsum", "cycler", "joiner"):
        del made.globals[name]
    made.globals |= {"raise_exception": Helper(fail), "strftime_now": Helper(now), "dict": Helper(dict)}
    return made


def main() -> None:
    size, seconds = int(sys.argv[1]), int(sys.argv[2])
    replies = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, who closes our input
    if sys.platform == "linux":  # macOS refuses, Windows has none: there the limit of time stands alone
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        lowest = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(resource.RLIMIT_AS, (lowest, hard))
    template = None
    for line in sys.stdin:
        if hasattr(signal, "alarm"):
            signal.alarm(seconds)
        try:
            request = json.loads(line)
            if template is None:
                template = environment(strict=request["strict"]).from_string(request["template"])
                reply: dict[str, Any] = {"ready": True}
            else:
                text = template.render(request)
                too_long = len(text) > MAX_TEXT
                reply = {"error": f"it writes {len(text):,} characters"} if too_long else {"text": text}
        except Exception as error:  # a template is a program: it can raise anything
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        if hasattr(signal, "alarm"):
            signal.alarm(0)
        print(json.dumps(reply), file=replies, flush=True)


if __name__ == "__main__":
    main()
