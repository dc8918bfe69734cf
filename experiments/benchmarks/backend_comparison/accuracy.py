"""Accuracy of a checkpoint on a task: N samples of each problem, graded, with an interval over problems."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .recording import ComparisonError, Recording, arrays_sha256

if TYPE_CHECKING:
    from kinetics_jax.attention.policies.base import AttentionPolicy
    from kinetics_jax.language_model import LanguageModel
    from kinetics_jax.settings import Sampling

SETTINGS = ("task", "problems", "samples", "temperature", "max_tokens", "seed")


def record_accuracy(
    lm: LanguageModel,
    task: str,
    problems: int,
    samples: int,
    policies: Sequence[AttentionPolicy],
    drawn: Sampling,
    report: Callable[[str], None],
) -> dict[str, Any]:
    """What goes into a recording's index under `accuracy`: per policy the right samples of every problem.

    `problems` of a task, `samples` of each; a sample that cannot be graded is not right. Raises a UserError for a task
    that is none, or whose answers no grader can use.
    """
    from kinetics_jax.tasks.answers import completed
    from kinetics_jax.tasks.math_grading import grader_for
    from kinetics_jax.tasks.problems import load_problems
    from kinetics_jax.tasks.prompts import render_prompts

    chosen = load_problems(task, limit=problems)
    texts = render_prompts(chosen, lm.directory, task=task)
    prompts = [lm.encode(texts[problem.id]) for problem in chosen]
    right: dict[str, list[int]] = {}
    with grader_for(task, {problem.id: problem.answer for problem in chosen}) as grader:
        for policy in policies:
            counts = [0] * len(chosen)
            for sample in lm.generate(prompts, n=samples, sampling=drawn, attention=policy):
                problem = chosen[sample.problem]
                counts[sample.problem] += bool(
                    grader(completed(texts[problem.id], sample.text or ""), problem.answer).correct
                )
            right[str(policy)] = counts
            report(f"{task} {policy}: {sum(counts)} of {len(chosen) * samples} samples right")
    named = {problem.id: np.frombuffer(problem.question.encode(), np.uint8) for problem in chosen}
    return {
        "task": task,
        "problems": arrays_sha256(named),
        "samples": samples,
        "temperature": drawn.temperature,
        "max_tokens": drawn.max_tokens,
        "seed": drawn.seed,
        "right": right,
    }


def compare_accuracy(a: Recording, b: Recording) -> list[dict[str, Any]]:
    """A row per policy: accuracy of either side and its 95% interval, and that of their difference.

    `beyond` says where the interval of the difference does not hold 0. No rows if a side has no accuracy. Raises
    ComparisonError if the samples were of other problems, or drawn otherwise.
    """
    sides = [side.index.get("model", {}).get("accuracy") for side in (a, b)]
    if None in sides:
        return []
    for what in SETTINGS:
        if sides[0][what] != sides[1][what]:
            raise ComparisonError(f"{a.path} and {b.path} have different inputs: {what} of the accuracy")
    from kinetics_jax.stats.intervals import accuracy_interval, difference_interval

    rows = []
    for policy in sides[0]["right"]:
        values = [np.asarray(side["right"][policy]) / side["samples"] for side in sides]
        row: dict[str, Any] = {
            "model": a.index["model"]["name"],
            "what": f"average accuracy {policy}",
            "status": "compared",
        }
        row |= {"task": sides[0]["task"], "problems": len(values[0]), "samples": sides[0]["samples"]}
        for name, each in zip("ab", values, strict=True):
            low, high = accuracy_interval(each)
            row |= {f"accuracy_{name}": float(each.mean()), f"low_{name}": float(low), f"high_{name}": float(high)}
        low, high = (float(end) for end in difference_interval(values[1], values[0]))
        row |= {"apart": float((values[1] - values[0]).mean()), "apart_low": low, "apart_high": high}
        beyond = [] if low <= 0 <= high else [f"B is {row['apart']:+.3g} from A, 95% interval {low:.3g} to {high:.3g}"]
        rows.append(row | {"beyond": beyond})
    return rows
