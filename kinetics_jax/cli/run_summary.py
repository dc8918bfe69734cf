"""A run in a line: how many samples it holds, how many are right, how long they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kinetics_jax.runs.folder import Run


def run_totals(run: Run) -> dict[str, Any]:
    """Samples, how many have a grade, which share of those is correct (None without any), mean tokens of a sample."""
    grades = [record["correct"] for record in run.samples if record["correct"] is not None]
    tokens = sum(len(record["output_tokens"]) for record in run.samples)
    return {
        "samples": len(run.samples),
        "graded": len(grades),
        "correct": sum(grades) / len(grades) if grades else None,
        "mean_output_tokens": tokens / len(run.samples) if run.samples else None,
    }


def run_summary(run: Run) -> str:
    """`run_totals` in words."""
    totals = run_totals(run)
    parts = [f"{totals['samples']} samples"]
    if totals["graded"]:
        parts.append(f"{totals['correct']:.3f} correct")
    if ungraded := totals["samples"] - totals["graded"]:
        parts.append(f"{ungraded} that the grader could not decide")
    if run.samples:
        parts.append(f"{totals['mean_output_tokens']:.1f} tokens each")
    return ", ".join(parts)
