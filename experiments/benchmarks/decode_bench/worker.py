"""The other end of `serving`: starts a worker, asks it, and tells how it died."""

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
    """The engine's programs in this interpreter, free to take most of an accelerator's memory."""
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92"}
    command = [sys.executable, "-m", "decode_bench.engine_worker"]
    return Worker(command, folder=FOLDER.parent, environment=environment, **how)


def transformers_worker(python: str, **how: Any) -> Worker:
    """transformers in an interpreter that has it."""
    return Worker([python, str(FOLDER / "transformers_worker.py")], **how)


class WorkerDied(Exception):
    """The worker ended or did not answer in time; the message holds its last words."""


class Worker:
    """A process that serves. `facts` is what it told first. Raises WorkerDied where it does not start."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        patience: float = 300,
    ):
        self.patience = patience
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115  (read when the process has died)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            cwd=folder,
            env={**os.environ, **(environment or {})},
        )
        self.facts = self._answer()

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """The answer. Raises WorkerDied where none comes within `patience` seconds."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerDied(self._last_words("ended")) from None
        return self._answer()

    def get(self, do: str, **more: Any) -> dict[str, Any]:
        """The answer where it is good. Exits with the reason where it is not."""
        answer = self.ask(do, **more)
        if answer.pop("status") != "ok":
            raise SystemExit(f"{do}: {answer['why']}")
        return answer

    def close(self) -> None:
        """Ends the process, kindly where it listens."""
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
        self._said.seek(0)
        lines = [line.strip() for line in self._said.read().splitlines() if line.strip()]
        return f"{how}: {' | '.join(lines[-3:])}"[-500:]
