"""The standard streams and the terminal's width, before anything else is imported: only the standard library here."""

from __future__ import annotations

import codecs
import io
import json
import os
import shutil
import sys

ESCAPING = "kinetics_escape"
# What a terminal without Unicode shows for characters of our own; others are written as escapes.
PLAIN = {"…": "...", "×": "x", "−": "-", "–": "-", "µ": "u", "½": "1/2", "“": '"', "”": '"', "─": "-", "│": "|"}
PLAIN |= dict.fromkeys("╭╮╰╯├┤┬┴┼", "+")
WIDTHS = 40, 400  # columns that help texts are laid out for; narrower ones would never end


def prepare_streams() -> None:
    """Makes the standard streams fit to write to, whatever they are.

    Ends the process with one line and exit code 2 where standard output is closed: results would be lost. Closed other
    ones lead nowhere. What a stream's encoding lacks is written as an escape.
    """
    closed = {number for number in (0, 1, 2) if not _is_open(number)}
    for number in sorted(closed):  # else the next file that is opened would take its place
        where = os.open(os.devnull, os.O_RDWR)
        if where != number:
            os.dup2(where, number)
            os.close(where)
    if sys.stderr is None or 2 in closed:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  (as long as the process)
    if sys.stdout is None or 1 in closed:
        print("kinetics: standard output is closed; give it a place (> file, or > /dev/null)", file=sys.stderr)
        sys.exit(2)
    codecs.register_error(ESCAPING, _escape)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ESCAPING)


def prepare_width() -> None:
    """Keeps the terminal's width in the range that help texts can be laid out for."""
    width = shutil.get_terminal_size().columns
    if not WIDTHS[0] <= width <= WIDTHS[1]:
        os.environ["COLUMNS"] = str(min(max(width, WIDTHS[0]), WIDTHS[1]))


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Plain characters for those that an encoding lacks: escapes as JSON has them, so that JSON stays what it says."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter) or json.dumps(letter)[1:-1] for letter in text), error.end
