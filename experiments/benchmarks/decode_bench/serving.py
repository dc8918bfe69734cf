"""A program that times decoding when asked, by JSON lines on stdin and stdout. Needs the standard library alone."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

Measure = Callable[[], float]


class Program(Protocol):
    """What a worker runs. `facts`: what it is made of, sent first."""

    facts: dict[str, Any]

    def make(self, point: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
        """What gives the seconds of one decode step at a point, warmed up, and what the row shall say beside them."""
        ...

    def out_of_memory(self, error: Exception) -> bool:
        """Whether the error says that the device's memory is too small."""
        ...

    def bandwidth(self) -> float:
        """Bytes per second that the device reads."""
        ...


def serve(program: Program) -> None:
    """Answers `make` (a point under its runner's name), `time` (a runner), `drop` (all that was made), `bandwidth`.

    A time comes with the CPU seconds, of all threads, of the whole turn: on a busy host they tell more than the clock.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    print(json.dumps(program.facts), file=answers)
    made: dict[str, Measure] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        answer: dict[str, Any] = {"status": "ok"}
        try:
            if asked["do"] == "make":
                made[asked["point"]["runner"]], about = program.make(asked["point"])
                answer |= about
            elif asked["do"] == "time":
                began = time.process_time()
                answer["seconds"] = made[asked["runner"]]()
                answer["cpu_seconds"] = time.process_time() - began
            elif asked["do"] == "bandwidth":
                answer["bytes_per_second"] = program.bandwidth()
            else:
                made.clear()
        except Exception as error:  # an outcome of this point; the next ones still run
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            small = isinstance(error, MemoryError) or program.out_of_memory(error)
            answer = {
                "status": "out of memory" if small else "failed",
                "why": f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}",
            }
        print(json.dumps(answer), file=answers)


def check_host_memory(needed: float) -> None:
    """Raises MemoryError where this would take more than nine tenths of what the host has left: it would be killed."""
    free = host_memory()
    if free is not None and needed > 0.9 * free:
        raise MemoryError(f"needs {needed / 1e9:.1f} GB, the host has {free / 1e9:.1f} GB left")


def host_memory() -> int | None:
    """Bytes that the host can give without swapping; None where it does not say."""
    table = Path("/proc/meminfo")
    if not table.exists():
        return None
    found = dict(line.split(":", 1) for line in table.read_text().splitlines())
    return 1024 * int(found["MemAvailable"].split()[0])
