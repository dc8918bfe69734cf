"""How commands refuse flags: first of all, before anything is read or loaded, in one line that names the flag."""

from __future__ import annotations

import os
from pathlib import Path

from kinetics_jax.errors import UserError, shown
from kinetics_jax.files import output_file

MAX_PRICE = 1e6  # of a chip-hour


def require(holds: bool, message: str) -> None:
    """Raises UserError with the message unless the condition holds."""
    if not holds:
        raise UserError(message)


def require_between(flag: str, value: int, low: int, high: int) -> None:
    """Raises UserError unless `value`, given for `flag`, is in `low` … `high`."""
    require(low <= value <= high, f"{flag} must be at least {low} and at most {high}, got {value}")


def require_outputs(*paths: Path | None) -> None:
    """Raises FileError for a file that could not be written, before anything is computed for it; None is no file."""
    for path in paths:
        if path is not None:
            output_file(path)


def require_figures() -> None:
    """Raises UserError where matplotlib cannot be imported with the MPLBACKEND that is set; figures need none."""
    try:
        import matplotlib  # noqa: F401
    except ValueError as error:
        backend = shown(os.environ.get("MPLBACKEND", ""))
        raise UserError(f"matplotlib refuses MPLBACKEND={backend}; unset it (figures are drawn without one)") from error


def require_devices() -> None:
    """Raises UserError where jax has no device to run on, as under a JAX_PLATFORMS that this machine lacks."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        cure = (
            f"JAX_PLATFORMS is {shown(platforms)}: unset it, or name cpu" if platforms else "JAX_PLATFORMS=cpu may do"
        )
        why = f" ({shown(str(error).splitlines()[0], 300)})" if str(error) else ""
        raise UserError(f"jax has no device to run on{why}; {cure}") from error


def require_ending(path: Path | None, what: str, *endings: str) -> None:
    """Raises UserError for a file that would be written under a name with another ending; None is no file."""
    output = "''" if path == Path() else path
    require(path is None or path.suffix in endings, f"{output}: {what} must end in {', '.join(endings)}")
