"""Chat templates, rendered in a process of their own (template_worker.py): a template is code of whoever made the
checkpoint. One process renders all prompts of a template; it is killed where one takes too long.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from kinetics_jax.tasks.guarded_process import GuardedProcess, ProcessEnded

WORKER = Path(__file__).with_name("template_worker.py")
MEMORY = 1 << 30  # bytes of address space
SECONDS = 10.0  # of one prompt
START_SECONDS = 60.0  # of a process, on a busy machine


class TemplateError(Exception):
    """Why a template gave no text."""


class RenderedTemplate:
    """A chat template, or with `strict` a prompt's, held by a process that renders it. A name that is not known is
    empty in a chat template, as its authors expect, and a fault in a strict one.
    """

    def __init__(self, template: str, *, strict: bool = False, seconds: float = SECONDS, memory: int = MEMORY):
        """Raises TemplateError for a template that cannot be read."""
        self.seconds = seconds
        self._process = GuardedProcess(WORKER, memory=memory, seconds=seconds)
        weakref.finalize(self, self._process.end)
        self._ask({"template": template, "strict": strict}, START_SECONDS)

    def render(self, **variables: Any) -> str:
        """The text. Raises TemplateError for a template that fails, takes too long, or needs too much memory."""
        return self._ask(variables, self.seconds)["text"]

    def _ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        if self._process.ended():
            raise TemplateError("its process has ended")
        try:
            answer = self._process.ask(request, seconds)
        except ProcessEnded as error:
            raise TemplateError(f"it takes more than {seconds:g} s" if error.expired else str(error)) from error
        if "error" in answer:
            raise TemplateError(answer["error"])
        return answer
