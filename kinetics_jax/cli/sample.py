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
from kinetics_jax.cli.checks import require_between
from kinetics_jax.cli.run_summary import run_summary, run_totals
from kinetics_jax.cli.task_arguments import DEFAULT_ASKED, DEFAULT_JUDGED, AskedArgs, JudgedArgs
from kinetics_jax.cli.terminal import command_line, sample_bar
from kinetics_jax.settings import EngineSettings
from kinetics_jax.tasks.prompts import adds_special_tokens, render_prompts


def sample(
    model: Positional[ModelArg],
    *,
    out: Path,
    asked: AskedArgs = DEFAULT_ASKED,
    special_tokens: SpecialTokensArg = True,
    judged: JudgedArgs = DEFAULT_JUDGED,
    n: int = 8,
    attention: AttentionArg = "dense",
    draw: DrawArgs = DEFAULT_DRAW,
    slots: int = 32,
    chunk: int = 32,
    num_pages: int | None = None,
    shared_prefix: Literal["auto", "on", "off"] = "auto",
    speculate: int = 0,
    agreement: bool = False,
    dtype: DtypeArg = None,
    backend: BackendArg = None,
    mesh: MeshArg = None,
    compile_cache: CompileCacheArg = None,
    as_json: JsonArg = False,
) -> None:
    """Best-of-N: n graded samples of every problem of a task, into a run folder that the same command continues.

    Args:
        out: Run folder (new, or one that this command began).
        n: Samples of each problem.
        slots: Sequences decoded side by side.
        chunk: Decode steps per chunk; the host intervenes between chunks.
        num_pages: KV pages in the pool; default: enough for the longest sample in every slot.
        shared_prefix: Whether dense layers read a prompt's KV once for all its samples; auto: where that is faster.
        speculate: Tokens that the attention drafts before one dense pass verifies them: samples are the dense model's;
            0: none.
        agreement: Record, token by token, how far the attention agrees with dense attention, once all is drawn.
        as_json: Print the totals as JSON, with what was compiled.
    """
    policy = parse_policy(attention)
    draw.check()
    require_between("--n", n, 1, MAX_SAMPLES)
    settings = EngineSettings(
        slots=slots,
        chunk=chunk,
        num_pages=num_pages,
        shared_prefix=None if shared_prefix == "auto" else shared_prefix == "on",
        speculate=speculate,
    )
    asked.check()
    judged.check()
    judged.grading.check()  # before a model is loaded, as what follows
    name, chosen = asked.load(judged.grading)
    style = asked.style
    lm = load_model(model, dtype, backend, mesh, compile_cache)
    prompts = render_prompts(chosen, lm.directory, task=name, style=style)
    add = special_tokens and adds_special_tokens(lm.directory, name, style)
    from kinetics_jax.compile_cache import watch_compiles
    from kinetics_jax.runs.best_of_n import begun_run, best_of_n

    sampling, recommended = draw.made(lm, list(prompts.values()), add_special_tokens=add, begun=begun_run(out))

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
            style=style,
            add_special_tokens=add,
            settings=settings,
            grader=judged.grader,
            score=judged.score,
            grader_seconds=judged.grader_seconds,
            agreement=agreement,
            identity=asked.identity | ({} if recommended is None else {"recommended": recommended}),
            command=command_line(),
            on_progress=on_progress,
        )
    if as_json:
        print(json.dumps({"out": str(out), **run_totals(run), "compiled": compiled.record()}, indent=1))
    else:
        print(f"{out}: {run_summary(run)}")
