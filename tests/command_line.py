"""The command line called in this process: what it prints and how it ends, without the seconds that a start takes."""

import contextlib
import dataclasses
import io
import sys
import warnings
from unittest import mock

from kinetics_jax.cli.main import main


@dataclasses.dataclass(frozen=True)
class Ended:
    """A command that has ended: what it wrote."""

    stdout: str
    stderr: str


def kinetics(*arguments, code: int = 0) -> Ended:
    """`kinetics ARGUMENTS`, as a process of its own would run it; it must end with this exit code."""
    out, err, ended = io.StringIO(), io.StringIO(), 0
    with (
        warnings.catch_warnings(),  # main shows warnings its own way
        mock.patch.object(sys, "argv", ["kinetics", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        warnings.simplefilter("default")  # pytest shows more kinds than a process does
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        try:
            main()
        except SystemExit as left:
            ended = left.code
    assert ended == code, err.getvalue()
    return Ended(out.getvalue(), err.getvalue())
