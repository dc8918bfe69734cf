"""One Best-of-N run: a checkpoint, a task and a policy go in, a run folder comes out. The same call continues it."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kinetics_kernels.backends import ATTENTION_OPS, chosen_backend

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.registry import stored_policy
from kinetics_jax.engine.engine import Request
from kinetics_jax.engine.replays import NO_MESH
from kinetics_jax.engine.setup import Finished
from kinetics_jax.engine.speculative_decoding import Speculated
from kinetics_jax.files import FileError, read_json
from kinetics_jax.language_model import LanguageModel
from kinetics_jax.runs.dense_model import add_agreement, speculate_header, speculation_record
from kinetics_jax.runs.folder import Run, RunWriter, TraceError
from kinetics_jax.runs.grade_again import UNDECIDED, Progress
from kinetics_jax.runs.grade_again import grade_again as grade_again  # it goes with a run
from kinetics_jax.runs.records import NONFINITE
from kinetics_jax.settings import EngineSettings, RequestError, Sampling
from kinetics_jax.sharding.mesh import mesh_spelling
from kinetics_jax.tasks.answers import completed
from kinetics_jax.tasks.graders import grading, open_grader
from kinetics_jax.tasks.own_functions import SECONDS
from kinetics_jax.tasks.problems import Problem, problem_fields
from kinetics_jax.tasks.prompts import PromptStyle, adds_special_tokens, prompt_identity, render_prompts

DIGEST = "every stored byte"  # what `weights` of run.json is a digest of
VERSIONED = ("kinetics_jax", "jax", "flax", "numpy", "transformers", "math-verify")


def best_of_n(
    lm: LanguageModel,
    problems: Sequence[Problem],
    *,
    task: str,
    n: int,
    policy: AttentionPolicy | str,
    sampling: Sampling,
    out: str | Path,
    prompts: Mapping[str, str] | None = None,
    style: PromptStyle | None = None,
    add_special_tokens: bool | None = None,
    settings: EngineSettings = EngineSettings(),
    grader: str | Callable[..., Any] | None = None,
    score: str | Callable[..., Any] | None = None,
    grader_seconds: float = SECONDS,
    identity: Mapping[str, Any] | None = None,
    agreement: bool = False,
    command: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Run:
    """Draws `n` samples of every problem, grades them and appends each to the run folder `out` as it finishes.

    `prompts` are the problems' texts by id, by default what `render_prompts` makes of them in `style`; given both, the
    style is what run.json says of them.
    `task` chooses the grader (problems with choices have their own), unless `grader` is one: `math`, `choice`, or a
    function `grade(text, answer)` or `grade(text, answer, problem)` that returns True, False, (correct, score) or a
    mapping of `correct`, `score`, `answer`, itself or spelled `module:function` or `file.py:function`. `score` is a
    function alike that returns a number, a verifier's or judge's. Both run in processes of their own; what one of them
    gets wrong, or does not do within `grader_seconds`, is null in the record, with the reason in `why`.
    `identity` holds more fields of run.json that say what the run is. `agreement`: whether records get the agreement of
    the policy with dense attention, once all samples are drawn. With `settings.speculate` the policy drafts, and the
    samples are the dense model's.
    `add_special_tokens` is as in `LanguageModel.encode`; None: not to the chats that `render_prompts` makes, else as
    the model was loaded.

    What the folder already holds is kept and not drawn again. Returns the whole run as read back. Raises TraceError if
    `out` holds another configuration, RequestError if a prompt cannot fit, GradingError for a known answer that cannot
    be graded, FunctionError for a function that cannot be called; an exception from `on_progress`, called after
    each chunk, ends the run cleanly.
    """
    policy = stored_policy(policy)
    if agreement and lm.mesh is not None:
        raise RequestError(NO_MESH.format("agreement"))
    added = lm.add_special_tokens if add_special_tokens is None else add_special_tokens
    how = grading(grader, score, seconds=grader_seconds).of(problems)
    if prompts is None:
        style = style or PromptStyle()
        prompts = render_prompts(problems, lm.directory, task=task, style=style)
        added = added and (add_special_tokens is not None or adds_special_tokens(lm.directory, task, style))
    answers = {problem.id: problem.answer for problem in problems}
    ids = {problem.id: lm.encode(prompts[problem.id], add_special_tokens=added) for problem in problems}
    requests = [Request(problem, prompt, range(n)) for problem, prompt in ids.items()]
    engine = lm.engine(sampling=sampling, attention=policy, settings=settings)
    # Before the folder is touched. A run that is continued shares prefixes as it began, since that rounds differently;
    # where this engine cannot, the writer says how it differs from the run in the folder.
    begun = begun_run(Path(out))
    began_sharing = None if begun is None else begun.get("shared_prefix") is True
    job = engine.check(requests, began_sharing=began_sharing)
    settings = dataclasses.replace(settings, shared_prefix=job.shared_prefix)
    description = describe(lm, task=task, n=n, policy=policy, sampling=sampling, settings=settings, command=command)
    description |= _identity(lm, ids, added, begun) | how.identity | dict(identity or {})
    description |= speculate_header(settings, policy)
    description |= {} if style is None else prompt_identity(style, lm.directory, task)
    snapshot = [problem.stored(prompts[problem.id]) for problem in problems]
    asked = {stored["id"]: problem_fields(stored) for stored in snapshot}
    with open_grader(task, answers, how) as graded, RunWriter(out, description, snapshot) as writer:
        for problem, count in writer.prompt_tokens.items():
            if count != len(ids[problem]):
                raise TraceError(
                    f"{out}: holds another run (the prompt of problem {problem!r} had {count} tokens, and now has "
                    f"{len(ids[problem])}: special tokens or the tokenizer differ); give another folder"
                )
        finished, total, tokens = len(writer.done), n * len(problems), 0
        on_progress(Progress(finished, total, tokens))
        left = job.without(writer.done)
        if left.samples:  # else no pool is needed
            decoding = engine.start(left)

            def on_chunk(drawn: int) -> None:
                nonlocal tokens
                tokens += drawn
                on_progress(Progress(finished, total, tokens, decoding.counts.preempted))

            def speculation(sample: Finished) -> dict[str, Any]:
                if not isinstance(sample, Speculated):
                    return {}
                of = {"draft": policy, "ahead": settings.speculate, "max_tokens": sampling.max_tokens}
                record = speculation_record(lm.config, sample, itemsize=lm.dtype.itemsize, **of)
                return {"speculation": record}

            for sample in decoding.run(on_chunk):
                text = lm.decode(sample.output_tokens)
                grade = (
                    UNDECIDED
                    if sample.finish_reason == NONFINITE
                    else graded(
                        completed(prompts[sample.problem], text), answers[sample.problem], asked[sample.problem]
                    )
                )
                writer.append(
                    {
                        **dataclasses.asdict(sample),
                        **dataclasses.asdict(grade),
                        "text": text,
                        "seed": sampling.seed,
                        "seconds": round(sample.seconds, 6),
                        **speculation(sample),
                    }
                )
                finished += 1
        run = writer.read_back()
    if agreement:
        drawn = Progress(finished, total, tokens)
        add = functools.partial(add_agreement, lm, out, policy=policy, prompts=ids, seed=sampling.seed)
        run = add(on_sample=lambda *_: on_progress(drawn))
    return run


def begun_run(out: Path) -> dict[str, Any] | None:
    """run.json of the run in `out`; None if there is no run that can be read."""
    try:
        return read_json(out / "run.json")
    except (FileNotFoundError, FileError):  # no run, or RunWriter says what is wrong with it
        return None


def _identity(
    lm: LanguageModel, ids: Mapping[str, Sequence[int]], added: bool, begun: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What tells weights and prompts from others of the same names, in the way that the run in the folder began.

    Earlier versions added nothing to prompts, took a sample of the weights' bytes, and no digest of the prompts' ids.
    """
    before, after = lm.added_tokens if added else ([], [])
    special = {"special_tokens": {"before": before, "after": after}} if before or after else {}
    if begun is not None and "weights" in begun and "digest" not in begun:
        return {"weights": lm.sampled_fingerprint, **special}
    prompts = hashlib.blake2b(json.dumps(list(ids.items())).encode(), digest_size=16).hexdigest()
    return {"weights": lm.fingerprint, "digest": DIGEST, **special, "prompt_ids": prompts}


def describe(
    lm: LanguageModel,
    *,
    task: str,
    n: int,
    policy: AttentionPolicy,
    sampling: Sampling,
    settings: EngineSettings,
    command: str,
) -> dict[str, Any]:
    """run.json: what the samples are a function of, then where they were made."""
    return {
        "model": lm.config.name,
        "config": dataclasses.asdict(lm.config),
        "dtype": str(lm.dtype),
        "policy": str(policy),
        "sampling": dataclasses.asdict(sampling),
        "task": task,
        "n": n,
        "slots": settings.slots,
        "chunk": settings.chunk,
        "prefill_chunk": settings.prefill_chunk,
        **({"shared_prefix": True} if settings.shared_prefix else {}),  # it rounds differently
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in VERSIONED}},
        "device": lm.device.device_kind,
        "mesh": mesh_spelling(lm.mesh) if lm.mesh else None,
        "backends": {op: lm.backend or chosen_backend(op)[0] for op in ATTENTION_OPS},
        "git_revision": _git_revision(),
        "command": command,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """The commit of the checkout this package runs from; None when it does not run from one."""
    root = Path(__file__).resolve().parent.parent.parent
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return None
    return done.stdout.strip() or None
