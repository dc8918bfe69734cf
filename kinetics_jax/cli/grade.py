"""`kinetics grade`: stored samples graded again, or cut after n tokens and graded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import tyro

from kinetics_jax.cli.arguments import JsonArg, Positional
from kinetics_jax.cli.checks import require
from kinetics_jax.cli.run_summary import run_summary
from kinetics_jax.cli.terminal import count_bar, print_table, sample_bar


def grade(
    run: Positional[Path],
    *,
    caps: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="TOKENS …")] = None,
    tokenizer: Path | None = None,
    workers: int | None = None,
    skip_unreadable: bool = False,
    as_json: JsonArg = False,
) -> None:
    """Grades the stored samples of a run folder again; the old grades are replaced once all new ones are made.

    With --caps, instead, as if every sample had been cut after that many tokens (Long-CoT): accuracy and mean tokens
    for each cap. The grades are stored beside the run, the same command continues where it was stopped, and `kinetics
    frontier` uses them.

    Args:
        run: Run folder.
        caps: Tokens of a sample at most, one or more caps: 2048 4096 8192.
        tokenizer: The tokenizer.json of the run's model, or its directory, if its name is not enough (with --caps).
        workers: Grading processes (with --caps); default: one per CPU.
        skip_unreadable: Leave samples undecided whose known answer cannot be graded, instead of refusing the run.
        as_json: Print the changed grades, or the table, as JSON.
    """
    require(
        caps is None or (caps != () and min(caps) >= 1),
        f"--caps takes whole numbers of tokens, 1 or more; got {' '.join(map(str, caps or ())) or 'none'}",
    )
    require(caps is not None or not (tokenizer or workers), "--tokenizer and --workers go with --caps")
    if caps is not None:
        _grade_cuts(run, list(caps), tokenizer, workers, skip_unreadable, as_json)
        return
    from kinetics_jax.runs.best_of_n import grade_again

    with sample_bar(f"grade {run}") as on_progress:
        graded, changed = grade_again(run, skip_unreadable=skip_unreadable, on_progress=on_progress)
    if as_json:
        print(json.dumps([{"problem": problem, "sample": sample} for problem, sample in changed], indent=1))
    else:
        print(f"{run}: {run_summary(graded)}; {len(changed)} grades changed")


def _grade_cuts(
    path: Path, caps: list[int], tokenizer: Path | None, workers: int | None, skip_unreadable: bool, as_json: bool
) -> None:
    from kinetics_jax.analysis.ablations import length_ablation
    from kinetics_jax.analysis.samples import run_data
    from kinetics_jax.runs.truncation import grade_cuts

    with count_bar(f"grade {path}", "sample") as on_progress:
        run = grade_cuts(
            path,
            caps,
            tokenizer=tokenizer,
            workers=workers,
            skip_unreadable=skip_unreadable,
            on_progress=on_progress,
        )
    print_table(length_ablation([run_data(run)], caps=caps), as_json)
