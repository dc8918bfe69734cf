"""Errors that users can mend themselves, and how names and values stand in their messages."""

from typing import Any

SHOWN = 80  # characters of a name or value in a message


class UserError(ValueError):
    """What was asked cannot be done as it stands; the message is one line that says what, where, and what to do.

    Every folder has its own kind; the command line prints them without a traceback and exits with 2. Control characters
    (of a file's name, say) are written as their escapes, so that a terminal does not obey them; line ends stay.
    """

    def __str__(self) -> str:
        return escape_controls(super().__str__(), keep="\n")


class CheckpointError(UserError):
    """A checkpoint or tokenizer that cannot be found or loaded; the message lists everything that is wrong with it."""


def escape_controls(text: str, *, keep: str = "") -> str:
    """A text whose characters that do not print are written as escapes (`\\x1b`), but for those in `keep`."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else ascii(letter)[1:-1] for letter in text)


def shown(name: str, limit: int = SHOWN) -> str:
    """How a name (of a file, say) stands in a message: in one line, of at most about `limit` characters."""
    return _cut(escape_controls(name), limit)


def spelled(value: Any, limit: int = SHOWN) -> str:
    """How a value stands in a message: as Python spells it, in one line of at most about `limit` characters."""
    try:
        return _cut(escape_controls(repr(value)), limit)
    except (ValueError, RecursionError):  # a whole number of too many digits; nested too deeply
        return f"a {type(value).__name__}"


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 3 :]}"
