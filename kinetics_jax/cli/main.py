"""The entry point of the `kinetics` command. Heavy imports wait until a command needs them."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from typing import Any, NoReturn

import tyro

from kinetics_jax.cli.calibrate import calibrate
from kinetics_jax.cli.convert import convert
from kinetics_jax.cli.cost import cost
from kinetics_jax.cli.demo import demo
from kinetics_jax.cli.doctor import doctor
from kinetics_jax.cli.frontier import frontier
from kinetics_jax.cli.generate import generate
from kinetics_jax.cli.grade import grade
from kinetics_jax.cli.plan import plan
from kinetics_jax.cli.sample import sample
from kinetics_jax.cli.streams import prepare_streams, prepare_width
from kinetics_jax.cli.terminal import say
from kinetics_jax.errors import UserError


def main() -> None:
    """Runs the command that was typed: exit code 2 and one line for a user's mistake, 130 when interrupted."""
    prepare_streams()
    prepare_width()
    told: set[str] = set()

    def tell(message: Warning | str, *_: Any, **__: Any) -> None:
        if str(message) not in told:  # from wherever it is said again
            told.add(str(message))
            say(str(message))

    warnings.showwarning = tell
    commands = {
        command.__name__: command
        for command in (demo, sample, grade, cost, frontier, plan, calibrate, generate, convert, doctor)
    }
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="kinetics",
            description="Which model, how many samples, how sparse an attention: sampled, graded, costed.",
        )
    except UserError as error:
        fail(str(error))
    except BrokenPipeError:  # whoever reads our output has closed it, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        fail(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # already exiting
        print("kinetics: stopped; a run keeps what it has finished, and the same command continues it", file=sys.stderr)
        sys.exit(130)


def fail(message: str) -> NoReturn:
    """Ends the command with the message and the exit code of a user's mistake."""
    say(message)
    sys.exit(2)
