"""Problem sets by task name. No jax."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from kinetics_jax.checkpoints.resolve import ASSETS
from kinetics_jax.errors import UserError


class TaskError(UserError):
    """A task or problem file that cannot be used; the message names what and where."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """A question with its known answer; `id` is unique in its set and fixes the problem's random draws."""

    id: str
    question: str
    answer: str


TASKS: dict[str, Path] = {"builtin": ASSETS / "problems.jsonl"}


def load_problems(task: str, *, limit: int | None = None) -> list[Problem]:
    """The first `limit` problems of a task (all by default). Raises TaskError for an unknown task."""
    if task not in TASKS:
        raise TaskError(f"task {task!r} is not known (known: {', '.join(TASKS)})")
    if limit is not None and limit < 1:
        raise TaskError(f"task {task!r}: the number of problems must be at least 1, got {limit}")
    lines = TASKS[task].read_text(encoding="utf-8").splitlines()
    return [Problem(**json.loads(line)) for line in lines[:limit]]
