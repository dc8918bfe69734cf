"""Runs a suite's cases in a worker process that may crash or hang, and keeps every row it got.

The worker names a case in its section's file before running it and adds the row right after; each time it replaces the
whole file. A worker that dies, or is killed because a case takes too long, is restarted at the next case; the one that
stopped it gets a row that says so.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

POISONED = 75  # exit code of a worker whose device no longer answers
MAX_STARTS = 20


@dataclasses.dataclass(frozen=True)
class Case:
    """A row to measure: a name unique in its section, a function that gives the row, and fields that every row has."""

    name: str
    run: Callable[[], dict]
    about: dict = dataclasses.field(default_factory=dict)


class SectionFile:
    """A section's JSON: its rows, and the case that is running. Every method returns with the change on disk."""

    def __init__(self, path: pathlib.Path, header: dict):
        self.path = path
        stored = json.loads(path.read_text()) if path.exists() else {}
        self.content: dict[str, Any] = {**header, "running": None, "left": [], "rows": [], **stored}

    @property
    def done(self) -> set[str]:
        return {row["case"] for row in self.content["rows"]}

    def begin(self, case: Case) -> None:
        self.content["running"] = {"case": case.name, **case.about}
        self.write()

    def end(self, row: dict) -> None:
        """Adds the row of the running case."""
        self.content["rows"].append(self.content["running"] | row)
        self.content["running"] = None
        self.write()

    def write(self) -> None:
        """Replaces the file as a whole. (`kinetics_jax.files` has such a writer: here a bare clone must do.)"""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")  # not kinetics_jax.files: the suites need the kernels alone
        partial.write_text(json.dumps(_plain(self.content), indent=1) + "\n")
        partial.replace(self.path)


def _plain(value: Any) -> Any:
    """The value as strict JSON takes it: infinities and NaN as strings."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return str(value)
    return value


def run_case(case: Case) -> dict:
    """The case's row; a refusal or an error becomes a row with the first line of its message."""
    began = time.perf_counter()
    try:
        row = case.run()
    except NotImplementedError as refusal:
        row = {"status": "refused", "why": _line(refusal)}
    except ImportError as error:
        row = {"status": "absent", "why": _line(error)}
    except MemoryError as error:  # numpy's or a state's of this suite; the device's own is a failure
        row = {"status": "too large", "why": _line(error)}
    except Exception as error:  # any failure of one kernel or peer is a result; the others still run
        row = {"status": "failed", "why": f"{type(error).__name__}: {_line(error)}"}
    return {**row, "seconds": round(time.perf_counter() - began, 2)}


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else "no message"


def run_section(file: SectionFile, cases: Sequence[Case], until: float, healthy: Callable[[], bool]) -> bool:
    """Runs the cases that have no row yet until `until` (time.time()); returns whether all have one now.

    Exits with POISONED if the device no longer computes.
    """
    for case in cases:
        if case.name in file.done:
            continue
        if time.time() > until:
            break
        file.begin(case)
        row = run_case(case)
        file.end(row)
        print(f"{case.name}: {describe(row)}", flush=True)
        if row["status"] == "failed" and not healthy():
            sys.exit(POISONED)
    file.content["left"] = [case.name for case in cases if case.name not in file.done]
    file.write()
    return not file.content["left"]


def describe(row: dict) -> str:
    """A row in a few words."""
    if "us" in row:
        mark = " (launch-bound)" if row.get("launch_bound") else " (impossible: read too little)" * row["impossible"]
        return f"{row['us']:.1f} µs, {row['fraction']:.2f} of the bandwidth{mark}"
    return f"{row['status']}{': ' + row['why'] if 'why' in row else ''}"


def supervise(command: Sequence[str], folder: pathlib.Path, prefix: str, *, seconds: float, stall: float) -> int:
    """Restarts the worker until it ends by itself or time runs out; returns its exit code, 0 too if time ran out.

    `command` is the worker's; files `<prefix>*.json` in `folder` are its sections. `stall`: seconds a case may take.
    """
    until = time.time() + seconds
    with tempfile.TemporaryFile("w+") as stderr:
        for _ in range(MAX_STARTS):
            stderr.seek(0)
            stderr.truncate()
            worker = subprocess.Popen(command, stderr=stderr, env=os.environ | {"PYTHONUNBUFFERED": "1"})
            ending = _watch(worker, folder, prefix, until, stall)
            stderr.seek(0)
            last = stderr.read().strip().splitlines()[-6:]
            if ending == "done" and worker.returncode == 0:
                return 0
            why = f"exit code {worker.returncode}" if ending == "done" else ending
            running = _note_running(folder, prefix, ending, f"{why}: {' | '.join(last)}"[-600:])
            print(f"worker ended ({why}) in {running or 'no case'}", flush=True)
            if ending == "out of time":
                return 0
            if not running and worker.returncode != POISONED:  # no case to blame: a restart would fail again
                print("\n".join(last), file=sys.stderr)
                return worker.returncode or 1
    print(f"worker given up after {MAX_STARTS} starts", flush=True)
    return 1


def _watch(worker: subprocess.Popen, folder: pathlib.Path, prefix: str, until: float, stall: float) -> str:
    """Waits for the worker; kills it if time runs out or nothing was written for `stall` seconds.

    Returns why it ended.
    """
    began = time.time()
    while worker.poll() is None:
        time.sleep(0.2)
        written = [path.stat().st_mtime for path in folder.glob(f"{prefix}*.json")]
        reason = "out of time" if time.time() > until else ""
        if time.time() - max([began, *written]) > stall:
            reason = f"nothing written for {stall:.0f} s"
        if reason:
            worker.kill()
            worker.wait()
            return reason
    return "done"


def _note_running(folder: pathlib.Path, prefix: str, ending: str, why: str) -> str | None:
    """Gives the case that was running a row, or lists it as left if time ran out; returns its name."""
    for path in folder.glob(f"{prefix}*.json"):
        file = SectionFile(path, {})
        running = file.content["running"]
        if running is None:
            continue
        if ending == "out of time":
            file.content["running"] = None
            file.content["left"].append(running["case"])
            file.write()
        else:
            file.end({"status": "crashed" if ending == "done" else "hung", "why": why})
        return running["case"]
    return None
