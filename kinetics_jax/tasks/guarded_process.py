"""A script in a process of its own that answers JSON lines: for work that can hang, crash or eat memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any


class ProcessEnded(Exception):
    """No reply: the process took too long and was killed (`expired`), or it died, with an exit `code`."""

    def __init__(self, message: str, *, expired: bool, code: int | None = None):
        super().__init__(message)
        self.expired, self.code = expired, code


class GuardedProcess:
    """Runs a script, started as a file and never imported, with a request a line in and a reply a line out.

    Its arguments are `memory`, the bytes of address space that the script is to keep within, and the seconds after
    which it ends itself over one request, which count where this process is gone.
    """

    def __init__(self, script: Path, *, memory: int, seconds: float):
        self.popen = subprocess.Popen(
            # A path, not a module: starts without the package. -P keeps this folder's names out of its imports.
            [sys.executable, "-P", str(script), str(memory), str(int(seconds) + 2)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the one who asks, not for the one who answers
        )

    def ask(self, request: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
        """Sends a request (None: awaits the first reply, of itself) and returns its reply.

        Raises ProcessEnded if there is none within `seconds`, whatever the process is doing, or if it died.
        """
        process = self.popen
        assert process.stdin is not None  # pipes, as they were opened
        assert process.stdout is not None
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            self._kill()

        timer = threading.Timer(seconds, expire)
        timer.daemon = True
        timer.start()
        try:
            if request is not None:
                process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
                process.stdin.flush()
            reply = process.stdout.readline()
        except BrokenPipeError:
            reply = b""
        except BaseException:  # interrupted: its reply must not be taken for the next request's
            self.end()
            raise
        finally:
            timer.cancel()
        if reply.endswith(b"\n") and not expired.is_set():
            try:
                return json.loads(reply)
            except ValueError as error:
                self.end()
                raise ProcessEnded("it wrote something else than a reply", expired=False) from error
        self.end()
        said = f"no reply in {seconds:g} s" if expired.is_set() else f"its process died ({process.returncode})"
        raise ProcessEnded(said, expired=expired.is_set(), code=process.returncode)

    def ended(self) -> bool:
        """Whether the process is gone."""
        return self.popen.poll() is not None

    def end(self) -> None:
        """Ends the process, if it is there, with what it started, and closes its pipes."""
        self._kill()
        self.popen.communicate()

    def _kill(self) -> None:
        """Kills the process and the others of its session, unless it has been waited for: its number is then free."""
        if self.popen.returncode is not None:
            return
        try:
            os.killpg(self.popen.pid, signal.SIGKILL)
        except (AttributeError, ProcessLookupError, PermissionError):  # Windows has no sessions; or it is gone
            self.popen.kill()
