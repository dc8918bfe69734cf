"""Serves requests to time decoding, JSON lines on stdin and stdout. Needs only the standard library."""

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
    """What a worker runs. `facts`: versions, device and settings, sent first."""

    facts: dict[str, Any]

    def make(self, point: dict[str, Any]) -> tuple[Measure, dict[str, Any]]:
        """A warmed-up function that measures the seconds of one decode step at a point, and more fields for its row."""
        ...

    def out_of_memory(self, error: Exception) -> bool:
        """Whether the error says that the device's memory is too small."""
        ...

    def bandwidth(self) -> float:
        """Bytes/s that the device reads."""
        ...


def serve(program: Program) -> None:
    """Answers `make` (a point, kept by its runner's name), `time` (a runner), `drop` (all of them) and `bandwidth`.

    A time comes with the CPU seconds of the whole turn, over all threads: on a busy host they vary less than the clock.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    print(json.dumps(program.facts), file=answers)
    made: dict[str, Measure] = {}
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any] = {"status": "ok"}
        try:
            if request["do"] == "make":
                made[request["point"]["runner"]], about = program.make(request["point"])
                answer |= about
            elif request["do"] == "time":
                began = time.process_time()
                answer["seconds"] = made[request["runner"]]()
                answer["cpu_seconds"] = time.process_time() - began
            elif request["do"] == "bandwidth":
                answer["bytes_per_second"] = program.bandwidth()
            else:
                made.clear()
        except Exception as error:  # a result of this point; the next ones still run
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            small = isinstance(error, MemoryError) or program.out_of_memory(error)
            answer = {
                "status": "out of memory" if small else "failed",
                "why": f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}",
            }
        print(json.dumps(answer), file=answers)


def check_host_memory(needed: float) -> None:
    """Raises MemoryError if `needed` bytes exceed 0.9 of the host's free memory: the process would be killed."""
    free = host_memory()
    if free is not None and needed > 0.9 * free:
        raise MemoryError(f"needs {needed / 1e9:.1f} GB, the host has {free / 1e9:.1f} GB left")


def host_memory() -> int | None:
    """Bytes that the host can give without swapping; None if it does not report them."""
    table = Path("/proc/meminfo")
    if not table.exists():
        return None
    fields = dict(line.split(":", 1) for line in table.read_text().splitlines())
    return 1024 * int(fields["MemAvailable"].split()[0])
