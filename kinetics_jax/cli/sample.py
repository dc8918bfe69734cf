"""`kinetics sample`: a Best-of-N run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.cli.arguments import (
    DEFAULT_DRAW,
    MAX_SAMPLES,
    AttentionArg,
    BackendArg,
    CompileCacheArg,
    DrawArgs,
    DtypeArg,
    JsonArg,
    MeshArg,
    ModelArg,
    Positional,
    SpecialTokensArg,
    load_model,
)
from kinetics_jax.cli.checks import require, require_between
from kinetics_jax.cli.run_summary import run_summary, run_totals
from kinetics_jax.cli.terminal import command_line, sample_bar
from kinetics_jax.settings import EngineSettings
from kinetics_jax.tasks.problems import BUILTIN, load_problem_file, load_problems
from kinetics_jax.tasks.prompts import PromptStyle, adds_special_tokens, render_prompts


def sample(
    model: Positional[ModelArg],
    *,
    out: Path,
    task: str | None = None,
    problems: Path | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    limit: int | None = None,
    skip_unreadable: bool = False,
    template: Literal["auto", "chat", "plain", "bare"] = "auto",
    thinking: bool = True,
    special_tokens: SpecialTokensArg = True,
    n: int = 8,
    attention: AttentionArg = "dense",
    draw: DrawArgs = DEFAULT_DRAW,
    slots: int = 32,
    chunk: int = 32,
    num_pages: int | None = None,
    shared_prefix: Literal["auto", "on", "off"] = "auto",
    dtype: DtypeArg = None,
    backend: BackendArg = None,
    mesh: MeshArg = None,
    compile_cache: CompileCacheArg = None,
    as_json: JsonArg = False,
) -> None:
    """Best-of-N: n graded samples of every problem of a task, into a run folder that the same command continues.

    Args:
        out: Run folder (new, or one that this command began).
        task: Problem set: builtin (the default), ledger, route, aime24, aime25, amc23, math500 or gsm8k.
        problems: Problems from a file instead: .jsonl, .json, .csv or .parquet.
        question_column: The file's column of questions, if it is not called by a usual name.
        answer_column: The file's column of answers, if it is not called by a usual name.
        limit: Use only the first N problems.
        skip_unreadable: Leave out problems whose known answer cannot be graded, instead of refusing them all.
        template: Form of a prompt: chat (the checkpoint's chat template), plain, bare, or auto.
        thinking: Whether the model thinks first, if its chat template has that switch.
        n: Samples of each problem.
        slots: Sequences decoded side by side.
        chunk: Decode steps per chunk; the host intervenes between chunks.
        num_pages: KV pages in the pool; default: enough for the longest sample in every slot.
        shared_prefix: Whether dense layers read a prompt's KV once for all its samples; auto: where that is faster.
        as_json: Print the totals as JSON, with what was compiled.
    """
    policy = parse_policy(attention)
    draw.check()
    style = PromptStyle(template, thinking)
    require_between("--n", n, 1, MAX_SAMPLES)
    settings = EngineSettings(
        slots=slots,
        chunk=chunk,
        num_pages=num_pages,
        shared_prefix=None if shared_prefix == "auto" else shared_prefix == "on",
    )
    require(
        problems is not None or not (question_column or answer_column),
        "--question-column and --answer-column go with --problems FILE",
    )
    require(problems is None or task is None, "give --task or --problems, not both")
    if problems is None:
        name = task or BUILTIN
        chosen = load_problems(name, limit=limit)
    else:
        name = problems.name  # with its ending: never the name of a task
        chosen = load_problem_file(problems, question_column=question_column, answer_column=answer_column, limit=limit)
    from kinetics_jax.tasks.math_grading import readable_problems

    chosen = readable_problems(chosen, name, skip_unreadable=skip_unreadable)  # before a model is loaded
    lm = load_model(model, dtype, backend, mesh, compile_cache)
    prompts = render_prompts(chosen, lm.directory, task=name, style=style)
    add = special_tokens and adds_special_tokens(lm.directory, name, style)
    sampling = draw.sampling(lm, list(prompts.values()), add_special_tokens=add)
    from kinetics_jax.compile_cache import watch_compiles
    from kinetics_jax.runs.best_of_n import best_of_n

    with watch_compiles() as compiled, sample_bar(f"{lm.config.name} {policy}") as on_progress:
        run = best_of_n(
            lm,
            chosen,
            task=name,
            n=n,
            policy=policy,
            sampling=sampling,
            out=out,
            prompts=prompts,
            add_special_tokens=add,
            settings=settings,
            command=command_line(),
            on_progress=on_progress,
        )
    if as_json:
        print(json.dumps({"out": str(out), **run_totals(run), "compiled": compiled.record()}, indent=1))
    else:
        print(f"{out}: {run_summary(run)}")
