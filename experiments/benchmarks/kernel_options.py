"""Options of kernels on the command line: `--option tokens=32`, or `--option paged_decode.tokens=32` for one op."""

from __future__ import annotations

from collections.abc import Sequence

from kinetics_kernels.backends import chosen_backend
from kinetics_kernels.choices import Choice, choice_for, option, parsed
from kinetics_kernels.kernel_files import ATTENTION_OPS, kernel_files, kernel_names, kernel_options

HELP = "an option of the kernels, NAME=VALUE or OP.NAME=VALUE, as tokens=32; may be repeated"


def with_options(backend: str | None, options: Sequence[str], ops: Sequence[str] = ATTENTION_OPS) -> str | None:
    """The spelling of a choice of backends whose kernels are called with `options`, each by every op that takes it.

    Raises ValueError for what is no option, and for one that no kernel chosen takes, naming those that it takes.
    """
    if not options:
        return backend
    choices = {op: choice_for(op, backend) or Choice(chosen_backend(op)[0]) for op in ops}
    for op, choice in choices.items():
        if choice.backend not in kernel_names():
            raise ValueError(f"{op}: backend {choice.backend!r:.60} is not known (known: {', '.join(kernel_names())})")
    takes = {
        op: kernel_options(op, choice.backend) if choice.backend in kernel_files(op) else []
        for op, choice in choices.items()
    }
    changed: dict[str, Choice] = {}
    for text in options:
        where = f"option {text!r:.60}"
        name, value = option(text.rpartition(".")[2] if "." in text.partition("=")[0] else text, where)
        named = [text.partition(".")[0]] if "." in text.partition("=")[0] else list(ops)
        if not {*named} <= {*ops}:
            raise ValueError(f"{where}: {named[0]!r:.60} is no op ({', '.join(ops)})")
        taking = [op for op in named if name in takes[op]]
        if not taking:
            each = "; ".join(f"{op} ({choices[op].backend}): {', '.join(takes[op]) or 'none'}" for op in named)
            raise ValueError(f"{where}: no kernel chosen takes {name}; options of {each}")
        for op in taking:
            before = changed.get(op, choices[op])
            if name in dict(before.options):
                raise ValueError(f"{where}: {name} of {op} is given twice")
            changed[op] = Choice(before.backend, (*before.options, (name, value)))
    entries = {**({} if backend is None else parsed(backend)), **{op: changed[op] for op in ops if op in changed}}
    return ",".join(f"{op}={choice}" if op else str(choice) for op, choice in entries.items())
