"""From a problem to the text a model reads. No jax."""

from __future__ import annotations

from kinetics_jax.tasks.problems import Problem


def render_prompt(problem: Problem) -> str:
    """The text that is tokenised as it stands. The built-in models read the bare question."""
    return problem.question
