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


def shown(value: Any, limit: int = SHOWN) -> str:
    """How a value stands in a message: as Python spells it, a name (str of a path) as it is; one line, cut to `limit`.

    `limit` counts characters; the middle of what is longer is left out.
    """
    try:
        text = escape_controls(value) if isinstance(value, str) else repr(value)
    except (ValueError, RecursionError):  # a whole number of too many digits; nested too deeply
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-limit // 3 :]}"
