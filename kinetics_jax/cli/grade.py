"""`kinetics grade`: stored samples graded again, or cut after n tokens and graded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from kinetics_jax.cli.arguments import JsonArg, Positional
from kinetics_jax.cli.checks import require
from kinetics_jax.cli.run_summary import run_summary
from kinetics_jax.cli.task_arguments import DEFAULT_JUDGED, JudgedArgs
from kinetics_jax.cli.terminal import count_bar, print_table, sample_bar

if TYPE_CHECKING:
    from kinetics_jax.analysis.samples import RunData


def grade(
    runs: Positional[tuple[Path, ...]],
    *,
    caps: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="TOKENS …")] = None,
    tokenizer: Path | None = None,
    workers: int | None = None,
    judged: JudgedArgs = DEFAULT_JUDGED,
    overwrite: bool = False,
    skip_unreadable: bool = False,
    as_json: JsonArg = False,
) -> None:
    """Grades the stored samples of a run folder again; the old grades are replaced once all new ones are made. With
    --score alone the grades stay, and the samples are scored.

    With --caps, instead, as if every sample had been cut after that many tokens (Long-CoT): accuracy and mean tokens
    for each cap; of run folders, of the paper's traces (.jsonl), or of directories of them. The grades are stored
    beside the samples, which stay as they are; the same command continues where it was stopped, and `kinetics frontier`
    uses them.

    Args:
        runs: Run folder; with --caps also trace files, directories, and several of all.
        caps: Tokens of a sample at most, one or more caps: 2048 4096 8192.
        tokenizer: The tokenizer.json of the run's model, or its directory, if its name is not enough (with --caps).
        workers: Grading processes (with --caps); default: one per CPU.
        overwrite: Replace grades or scores that your own functions, or somebody by hand, made.
        skip_unreadable: Leave samples undecided whose known answer cannot be graded, instead of refusing the run.
        as_json: Print the changed grades, or the table, as JSON.
    """
    require(runs != (), "grade: name a run folder")
    require(
        caps is None or (caps != () and min(caps) >= 1),
        f"--caps takes whole numbers of tokens, 1 or more; got {' '.join(map(str, caps or ())) or 'none'}",
    )
    require(caps is not None or not (tokenizer or workers), "--tokenizer and --workers go with --caps")
    judged.check()
    if caps is not None:
        require(judged.score is None, "--score scores whole samples; leave it out with --caps")
        require(not overwrite, "--overwrite goes without --caps, which leave the samples' own grades as they are")
        how: dict[str, Any] = {"tokenizer": tokenizer, "workers": workers, "skip_unreadable": skip_unreadable}
        how |= {"grader": judged.grader, "grader_seconds": judged.grader_seconds}
        _grade_cuts(runs, list(caps), how, as_json)
        return
    require(len(runs) == 1, "grade: one run folder at a time; several go with --caps")
    (run,) = runs
    require(
        run.is_dir() or run.suffix.lower() != ".jsonl",
        f"{run}: a trace keeps the grades that it came with; --caps cuts and grades its texts",
    )
    from kinetics_jax.runs.grade_again import grade_again

    with sample_bar(f"grade {run}") as on_progress:
        graded, changed = grade_again(
            run,
            grader=judged.grader,
            score=judged.score,
            grader_seconds=judged.grader_seconds,
            overwrite=overwrite,
            skip_unreadable=skip_unreadable,
            on_progress=on_progress,
        )
    if as_json:
        print(json.dumps([{"problem": problem, "sample": sample} for problem, sample in changed], indent=1))
    else:
        print(f"{run}: {run_summary(graded)}; {len(changed)} grades changed")


def _grade_cuts(runs: tuple[Path, ...], caps: list[int], how: dict[str, Any], as_json: bool) -> None:
    from kinetics_jax.analysis.ablations import length_ablation
    from kinetics_jax.analysis.readers import sources

    graded = [_with_cuts(source, caps, how) for path in runs for source in sources(path)]
    print_table(length_ablation(graded, caps=caps), as_json)


def _with_cuts(source: Path, caps: list[int], how: dict[str, Any]) -> RunData:
    """A run folder or a trace, its cut texts graded."""
    from kinetics_jax.analysis.paper_traces import parse_trace
    from kinetics_jax.analysis.readers import read_samples, read_trace_rows
    from kinetics_jax.analysis.samples import run_data
    from kinetics_jax.analysis.trace_grading import grade_cut_texts
    from kinetics_jax.runs.truncation import grade_cuts

    how = dict(how)
    with count_bar(f"grade {source}", "sample") as on_progress:
        if source.is_dir():
            return run_data(grade_cuts(source, caps, **how, on_progress=on_progress))
        require(how.pop("grader") is None, f"{source}: --grader grades run folders; a trace holds too little for it")
        del how["grader_seconds"]
        trace = parse_trace(source, read_trace_rows(source))
        require(
            trace.attention is not None,
            f"{source}: does not say its attention in its first line (attn_local …); add it",
        )
        grade_cut_texts(trace, caps, **how, on_progress=on_progress)
    return read_samples(source, model=None if trace.model else source.stem)
