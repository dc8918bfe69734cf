"""`kinetics sample`: a Best-of-N run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.cli.grade import run_summary, run_totals
from kinetics_jax.cli.terminal import command_line, sample_bar
from kinetics_jax.errors import UserError
from kinetics_jax.tasks.problems import BUILTIN, load_problem_file, load_problems
from kinetics_jax.tasks.prompts import PromptStyle, render_prompts

if TYPE_CHECKING:
    pass
from kinetics_jax.cli.arguments import (
    DEFAULT_DRAW,
    AttentionArg,
    BackendArg,
    CompileCacheArg,
    DrawArgs,
    MeshArg,
    ModelArg,
    Positional,
    _at_least_one,
    _load,
)


def sample(
    model: Positional[ModelArg],
    *,
    out: Path,
    task: str | None = None,
    problems: Path | None = None,
    question_column: str | None = None,
    answer_column: str | None = None,
    limit: int | None = None,
    template: Literal["auto", "chat", "plain", "bare"] = "auto",
    thinking: bool = True,
    n: int = 8,
    attention: AttentionArg = "dense",
    draw: DrawArgs = DEFAULT_DRAW,
    slots: int = 32,
    chunk: int = 32,
    num_pages: int | None = None,
    shared_prefix: Literal["auto", "on", "off"] = "auto",
    dtype: str | None = None,
    backend: BackendArg = None,
    mesh: MeshArg = None,
    compile_cache: CompileCacheArg = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Best-of-N: n graded samples of every problem of a task, into a run folder that the same command continues.

    Args:
        out: Run folder (new, or one that this command began).
        task: Problem set: builtin (the default), aime24, aime25, amc23, math500 or gsm8k.
        problems: Problems from a file instead: .jsonl, .json, .csv or .parquet.
        question_column: The file's column of questions, where its name does not tell.
        answer_column: The file's column of answers, where its name does not tell.
        limit: Only the first so many problems.
        template: How questions are put: chat (the checkpoint's chat template), plain, bare, or what suits (auto).
        thinking: Whether a chat template that knows the difference lets the model think first.
        n: Samples of each problem.
        slots: Sequences decoded side by side.
        chunk: Decode steps between two looks of the host.
        num_pages: KV pages in the pool; by default enough for the longest sample in every slot.
        shared_prefix: Whether dense layers read a prompt's KV once for all its samples; auto: where it pays.
        dtype: float32, bfloat16 or float16; by default what the device likes.
        as_json: Print the totals as JSON, with what was compiled.
    """
    policy = parse_policy(attention)
    draw.check()
    style = PromptStyle(template, thinking)
    _at_least_one("n", n)
    if problems is None:
        if question_column or answer_column:
            raise UserError("--question-column and --answer-column go with --problems FILE")
        name = task or BUILTIN
        chosen = load_problems(name, limit=limit)
    elif task is None:
        name = problems.name  # with its ending: never the name of a task
        chosen = load_problem_file(problems, question_column=question_column, answer_column=answer_column, limit=limit)
    else:
        raise UserError("give --task or --problems, not both")
    lm = _load(model, dtype, backend, mesh, compile_cache)
    prompts = render_prompts(chosen, lm.directory, task=name, style=style)
    sampling = draw.sampling(lm, list(prompts.values()))
    from kinetics_jax.compile_cache import watch_compiles
    from kinetics_jax.runs.best_of_n import best_of_n
    from kinetics_jax.settings import EngineSettings

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
            settings=EngineSettings(
                slots=slots,
                chunk=chunk,
                num_pages=num_pages,
                shared_prefix=None if shared_prefix == "auto" else shared_prefix == "on",
            ),
            command=command_line(),
            on_progress=on_progress,
        )
    if as_json:
        print(json.dumps({"out": str(out), **run_totals(run), "compiled": compiled.record()}, indent=1))
    else:
        print(f"{out}: {run_summary(run)}")
