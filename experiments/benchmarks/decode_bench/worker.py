"""The client of `serving`: starts a worker process, sends it requests, and reports how it ended."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent


def engine_worker(**how: Any) -> Worker:
    """Starts `engine_worker` in this interpreter; it may take most of an accelerator's memory."""
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    command = [sys.executable, "-m", "decode_bench.engine_worker"]
    return Worker(command, folder=FOLDER.parent, environment=environment, **how)


def transformers_worker(python: str, **how: Any) -> Worker:
    """Starts `transformers_worker` in an interpreter that has torch and transformers."""
    return Worker([python, str(FOLDER / "transformers_worker.py")], **how)


class WorkerDied(Exception):
    """The worker ended or did not answer in time; the message ends with its last lines of standard error."""


class Worker:
    """A process that runs `serving.serve`. `facts` is its first message. Raises WorkerDied if it does not start."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        patience: float = 300,
    ):
        self.patience = patience
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  (read after the process has ended)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            cwd=folder,
            env={**os.environ, **(environment or {})},
        )
        self.facts = self._answer()

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """Sends a request; returns the answer. Raises WorkerDied if none comes within `patience` seconds."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerDied(self._last_words("ended")) from None
        return self._answer()

    def ask_or_exit(self, do: str, **more: Any) -> dict[str, Any]:
        """As `ask`, for callers that cannot go on without: exits with the reason unless the status is ok."""
        answer = self.ask(do, **more)
        if answer.pop("status") != "ok":
            raise SystemExit(f"{do}: {answer['why']}")
        return answer

    def close(self) -> None:
        """Closes the process's input so that it ends; kills it if it has not ended after 20 seconds."""
        assert self._process.stdin is not None
        if self._process.poll() is None:
            self._process.stdin.close()
            try:
                self._process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], self.patience)
        if not ready:
            self._process.kill()
            self._process.wait()
            raise WorkerDied(self._last_words(f"no answer for {self.patience:.0f} s"))
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            raise WorkerDied(self._last_words(f"exit code {self._process.returncode}"))
        return json.loads(line)

    def _last_words(self, how: str) -> str:
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr.read().splitlines() if line.strip()]
        return f"{how}: {' | '.join(lines[-3:])}"[-500:]
