"""What commands show while they work, and how Ctrl-C reaches them. Slow imports wait until something is shown."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from kinetics_jax.errors import escape_controls

if TYPE_CHECKING:
    from kinetics_jax.runs.best_of_n import Progress

WIDTH = 120  # of a line of prose
NOISE = 1e-12  # no amount that is printed is so small, but for what is left of a difference of equal numbers


@contextlib.contextmanager
def sample_bar(title: str) -> Iterator[Callable[[Progress], None]]:
    """A progress bar over samples, with tokens per second, on standard error; after the first chunk, what was compiled.

    Ctrl-C takes effect when the bar is next called, after a chunk and its records; a second one interrupts at once.
    """
    from tqdm import tqdm

    from kinetics_jax.compile_cache import watch_compiles

    with contextlib.ExitStack() as stack:
        check = stack.enter_context(_interrupts_wait())
        compiled = stack.enter_context(watch_compiles())
        bar: Any = None
        warm = False

        def on_progress(progress: Progress) -> None:
            nonlocal bar, warm
            if bar is None:  # not before the run is known to be possible; what an earlier run left is not counted
                bar = stack.enter_context(
                    tqdm(desc=escape_controls(title), unit="sample", total=progress.total, initial=progress.finished)
                )
            bar.update(progress.finished - bar.n)
            elapsed = bar.format_dict["elapsed"]
            if progress.tokens and elapsed:
                preempted = f", preempted {progress.preempted}×" if progress.preempted else ""
                bar.set_postfix_str(f"{progress.tokens / elapsed:.0f} tokens/s{preempted}")
            if progress.tokens and not warm:
                warm = True
                tqdm.write(compiled.line(), file=sys.stderr)
            check()

        yield on_progress


@contextlib.contextmanager
def count_bar(title: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over (done, total) on standard error. Ctrl-C takes effect at its next call, as in `sample_bar`."""
    from tqdm import tqdm

    with contextlib.ExitStack() as stack:
        check = stack.enter_context(_interrupts_wait())
        bar: Any = None

        def on_progress(done: int, total: int) -> None:
            nonlocal bar
            if bar is None:
                bar = stack.enter_context(tqdm(desc=escape_controls(title), unit=unit, total=total))
            bar.update(done - bar.n)
            check()

        yield on_progress


@contextlib.contextmanager
def warm_up_report() -> Iterator[Callable[[int], None]]:
    """Yields a function for an engine to call after every chunk; the first call prints what was compiled to standard
    error.
    """
    from kinetics_jax.compile_cache import watch_compiles

    with watch_compiles() as compiled:
        warm = False

        def on_chunk(_: int) -> None:
            nonlocal warm
            if not warm:
                print(compiled.line(), file=sys.stderr)
            warm = True

        yield on_chunk


@contextlib.contextmanager
def tensor_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over tensors, shown when it takes longer than a second."""
    from tqdm import tqdm

    with tqdm(desc=escape_controls(title), unit="tensor", leave=False, delay=1) as bar:

        def on_tensor(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield on_tensor


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[Callable[[], None]]:
    """Yields a function that raises KeyboardInterrupt once Ctrl-C was pressed; a second Ctrl-C raises by itself."""
    if (
        signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    ):  # as under nohup: whoever started this process wants no interrupts
        yield lambda: None
        return
    pressed = False

    def on_press(*_: Any) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nkinetics: stopping after this chunk; press again to stop at once", file=sys.stderr)

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


def without_noise(value: float) -> float:
    """The value, and 0 for what rounding leaves of a difference of equal numbers, or for -0."""
    return 0.0 if abs(value) < NOISE else value


def table_without_noise(table: Any) -> Any:
    """A data frame whose columns of floats went through `without_noise`; `attrs` stay."""
    floats = table.select_dtypes("float")
    return table.assign(**floats.mask(floats.abs() < NOISE, 0.0)) if len(floats.columns) else table


def print_table(table: Any, as_json: bool) -> None:
    """A data frame to standard output, as aligned text or as JSON records, without noise. What is missing is null in
    JSON; in text nothing, and a column that is missing everywhere is left out.
    """
    table = table_without_noise(table)
    if as_json:
        records = table.astype(object).where(table.notna(), None).to_dict(orient="records")
        print(json.dumps(records, indent=1, allow_nan=False))
    else:
        table = table.dropna(axis="columns", how="all")
        gaps = table.columns[table.isna().any()]
        table = table.assign(**{str(name): table[name].map(_cell).astype(object) for name in gaps})
        text = table.to_string(index=False, float_format=lambda value: f"{value:.4g}")
        print(escape_controls(text, keep="\n"))


def _cell(value: Any) -> Any:
    """A cell of a column in which some are missing, as text; numbers as in the other columns."""
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def prose(text: str) -> None:
    """Sentences to standard output, in lines of at most WIDTH characters; a line break of their own begins a new one.
    Control characters of names in them are not obeyed.
    """
    for line in escape_controls(text, keep="\n").split("\n"):
        indent = " " * (len(line) - len(line.lstrip()))
        print(textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False))


def say(line: str) -> None:
    """A line of the command itself, to standard error; control characters of names in it are not obeyed."""
    print(f"kinetics: {escape_controls(line, keep=chr(10))}", file=sys.stderr)


def command_line() -> str:
    """What the user typed."""
    return shlex.join(["kinetics", *sys.argv[1:]])
