"""Chat templates, rendered in a process of their own (template_worker.py): a template is code of whoever made the
checkpoint. One process renders all prompts of a template; it is killed where one takes too long.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("template_worker.py")
MEMORY = 1 << 30  # bytes of address space
SECONDS = 10.0  # of one prompt
START_SECONDS = 60.0  # of a process, on a busy machine


class TemplateError(Exception):
    """Why a template gave no text."""


class RenderedTemplate:
    """A chat template, held by a process that renders it."""

    def __init__(self, template: str, *, seconds: float = SECONDS, memory: int = MEMORY):
        """Raises TemplateError for a template that cannot be read."""
        self.seconds = seconds
        # A path, not a module: starts without the package. -P keeps this folder's names out of its imports.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(memory), str(int(seconds) + 2)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the one who asks, not for the one who answers
        )
        weakref.finalize(self, _end, self._process)
        self._ask({"template": template}, START_SECONDS)

    def render(self, **variables: Any) -> str:
        """The text. Raises TemplateError for a template that fails, takes too long, or needs too much memory."""
        return self._ask(variables, self.seconds)["text"]

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None  # pipes, as they were opened
        assert process.stdout is not None
        if process.poll() is not None:
            raise TemplateError("its process has ended")
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            process.kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
            process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = b""
        except BaseException:  # interrupted: its reply must not be taken for the next request's
            _end(process)
            raise
        finally:
            timer.cancel()
        if not reply.endswith(b"\n") or expired.is_set():
            _end(process)
            raise TemplateError(
                f"it takes more than {seconds:g} s" if expired.is_set() else f"its process died ({process.returncode})"
            )
        answer = json.loads(reply)
        if "error" in answer:
            raise TemplateError(answer["error"])
        return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.communicate()  # waits, and closes the pipes
