"""`kinetics grade`: stored samples graded again, or cut after n tokens and graded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from kinetics_jax.cli.terminal import count_bar, print_table, sample_bar
from kinetics_jax.errors import UserError

if TYPE_CHECKING:
    from kinetics_jax.runs.folder import Run


def grade(
    run: tyro.conf.Positional[Path],
    *,
    caps: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="TOKENS …")] = None,
    tokenizer: Path | None = None,
    workers: int | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Grades the stored samples of a run folder again; the old grades stand until all new ones are there.

    With --caps, instead, as if every sample had been cut after so many tokens (Long-CoT): accuracy and mean tokens for
    each cap. The grades stay beside the run, the same command goes on where it was stopped, and `kinetics frontier`
    takes them up.

    Args:
        run: Run folder.
        caps: Most tokens of a sample, several: 2048 4096 8192.
        tokenizer: The tokenizer.json of the run's model, or its directory, where its name does not tell (with --caps).
        workers: Processes that grade side by side (with --caps); by default one a CPU.
        as_json: Print the changed grades, or the table, as JSON.
    """
    if caps is not None:
        if not caps or min(caps) < 1:
            raise UserError(
                f"--caps takes whole numbers of tokens, 1 or more; got {' '.join(map(str, caps)) or 'none'}"
            )
        _grade_cuts(run, list(caps), tokenizer, workers, as_json)
        return
    if tokenizer or workers:
        raise UserError("--tokenizer and --workers go with --caps")
    from kinetics_jax.runs.best_of_n import grade_again

    with sample_bar(f"grade {run}") as on_progress:
        graded, changed = grade_again(run, on_progress=on_progress)
    if as_json:
        print(json.dumps([{"problem": problem, "sample": sample} for problem, sample in changed], indent=1))
    else:
        print(f"{run}: {run_summary(graded)}; {len(changed)} grades changed")


def _grade_cuts(path: Path, caps: list[int], tokenizer: Path | None, workers: int | None, as_json: bool) -> None:
    from kinetics_jax.analysis.ablations import length_ablation
    from kinetics_jax.analysis.samples import run_data
    from kinetics_jax.runs.truncation import grade_cuts

    with count_bar(f"grade {path}", "sample") as on_progress:
        run = grade_cuts(path, caps, tokenizer=tokenizer, workers=workers, on_progress=on_progress)
    print_table(length_ablation([run_data(run)], caps=caps), as_json)


def run_totals(run: Run) -> dict[str, Any]:
    """Samples, how many have a grade and which share of those is correct (None without any), mean tokens."""
    grades = [record["correct"] for record in run.samples if record["correct"] is not None]
    tokens = sum(len(record["output_tokens"]) for record in run.samples)
    return {
        "samples": len(run.samples),
        "graded": len(grades),
        "correct": sum(grades) / len(grades) if grades else None,
        "mean_output_tokens": tokens / len(run.samples) if run.samples else None,
    }


def run_summary(run: Run) -> str:
    """The same in words."""
    totals = run_totals(run)
    parts = [f"{totals['samples']} samples"]
    if totals["graded"]:
        parts.append(f"{totals['correct']:.3f} correct")
    if ungraded := totals["samples"] - totals["graded"]:
        parts.append(f"{ungraded} that the grader could not decide")
    if run.samples:
        parts.append(f"{totals['mean_output_tokens']:.1f} tokens each")
    return ", ".join(parts)
