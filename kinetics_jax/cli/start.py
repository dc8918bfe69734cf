"""Where the `kinetics` command starts: what must be in place before anything heavy is imported."""

import signal
import sys


def main() -> None:
    """Runs `cli.main.main`; Ctrl-C while it is imported ends with one line too."""
    try:
        from kinetics_jax.cli.streams import prepare_streams

        prepare_streams()
        from kinetics_jax.cli.main import main as run
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # already exiting
        print("kinetics: stopped before it began", file=sys.stderr)
        sys.exit(130)
    run()
