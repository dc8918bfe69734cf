"""How commands refuse flags: first of all, before anything is read or loaded, in one line that names the flag."""

from __future__ import annotations

from pathlib import Path

from kinetics_jax.errors import UserError


def require(holds: bool, message: str) -> None:
    """Raises UserError with the message unless the condition holds."""
    if not holds:
        raise UserError(message)


def require_between(flag: str, value: int, low: int, high: int) -> None:
    """Raises UserError unless `value`, given for `flag`, is in `low` … `high`."""
    require(low <= value <= high, f"{flag} must be at least {low} and at most {high}, got {value}")


def require_ending(path: Path | None, what: str, *endings: str) -> None:
    """Raises UserError for a file that would be written under a name with another ending; None is no file."""
    require(path is None or path.suffix in endings, f"{path}: {what} must end in {', '.join(endings)}")
