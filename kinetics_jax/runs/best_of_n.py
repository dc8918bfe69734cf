"""One Best-of-N run: a checkpoint, a task and a policy go in, a run folder comes out. The same call continues it."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kinetics_kernels.backends import ATTENTION_OPS, used_backend

from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.registry import stored_policy
from kinetics_jax.engine.engine import Request
from kinetics_jax.files import FileError, read_json
from kinetics_jax.language_model import LanguageModel
from kinetics_jax.runs.folder import Run, RunWriter, TraceError, read_run, regrade
from kinetics_jax.runs.records import NONFINITE
from kinetics_jax.settings import EngineSettings, Sampling
from kinetics_jax.sharding.mesh import mesh_spelling
from kinetics_jax.tasks.answers import completed
from kinetics_jax.tasks.grading import Grade
from kinetics_jax.tasks.math_grading import grader_for
from kinetics_jax.tasks.problems import Problem
from kinetics_jax.tasks.prompts import adds_special_tokens, render_prompts

DIGEST = "every stored byte"  # what `weights` of run.json is a digest of
# The grade of a sample whose logits are not finite: what it would have said is not known.
UNDECIDED = Grade(correct=None, answer=None, grader=NONFINITE)
VERSIONED = ("kinetics_jax", "jax", "flax", "numpy", "transformers", "math-verify")


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is: samples finished (earlier ones included) of the total; since this process began it, tokens
    drawn and how often a sample was preempted because the pool ran dry.
    """

    finished: int
    total: int
    tokens: int
    preempted: int = 0


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
    add_special_tokens: bool | None = None,
    settings: EngineSettings = EngineSettings(),
    command: str = "",
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Run:
    """Draws `n` samples of every problem, grades them and appends each to the run folder `out` as it finishes.

    `prompts` are the problems' texts by id, by default what `render_prompts` makes of them; `task` chooses the grader.
    `add_special_tokens` is as in `LanguageModel.encode`; None: not to the chats that `render_prompts` makes, else as
    the model was loaded.

    What the folder already holds is kept and not drawn again. Returns the whole run as read back. Raises TraceError if
    `out` holds another configuration, RequestError if a prompt cannot fit, GradingError for a known answer that cannot
    be graded; an exception from `on_progress`, which is called after each chunk, ends the run cleanly.
    """
    policy = stored_policy(policy)
    added = lm.add_special_tokens if add_special_tokens is None else add_special_tokens
    if prompts is None:
        prompts = render_prompts(problems, lm.directory, task=task)
        added = added and (add_special_tokens is not None or adds_special_tokens(lm.directory, task))
    answers = {problem.id: problem.answer for problem in problems}
    ids = {problem.id: lm.encode(prompts[problem.id], add_special_tokens=added) for problem in problems}
    requests = [Request(problem, prompt, range(n)) for problem, prompt in ids.items()]
    engine = lm.engine(sampling=sampling, attention=policy, settings=settings)
    # Before the folder is touched. A run that is continued shares prefixes as it began, since that rounds differently;
    # where this engine cannot, the writer says how it differs from the run in the folder.
    begun = _begun(Path(out))
    began_sharing = None if begun is None else begun.get("shared_prefix") is True
    job = engine.check(requests, began_sharing=began_sharing)
    settings = dataclasses.replace(settings, shared_prefix=job.shared_prefix)
    description = describe(lm, task=task, n=n, policy=policy, sampling=sampling, settings=settings, command=command)
    description |= _identity(lm, ids, added, begun)
    snapshot = [{**dataclasses.asdict(problem), "prompt": prompts[problem.id]} for problem in problems]
    with grader_for(task, answers) as grader, RunWriter(out, description, snapshot) as writer:
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

            for sample in decoding.run(on_chunk):
                text = lm.decode(sample.output_tokens)
                grade = (
                    UNDECIDED
                    if sample.finish_reason == NONFINITE
                    else grader(completed(prompts[sample.problem], text), answers[sample.problem])
                )
                writer.append(
                    {
                        **dataclasses.asdict(sample),
                        **dataclasses.asdict(grade),
                        "text": text,
                        "seed": sampling.seed,
                        "seconds": round(sample.seconds, 6),
                    }
                )
                finished += 1
        return writer.read_back()


def grade_again(
    path: str | Path,
    *,
    skip_unreadable: bool = False,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> tuple[Run, list[tuple[str, int]]]:
    """Grades the stored samples of a run folder anew, as its task is graded now.

    Returns the run and the (problem, sample) of every grade that changed. The old grades stay until all new ones are
    written. Raises TraceError for a sample without text or a run that another process is writing; GradingError for
    known answers that cannot be graded, whose samples become undecided, with a warning, under `skip_unreadable`.
    """
    stored = read_run(path)
    if "task" not in stored.header:
        raise TraceError(f"{stored.path / 'run.json'}: names no task, which chooses the grader")
    done = 0

    def grade(record: dict[str, Any], answer: str) -> dict[str, Any]:
        nonlocal done
        if record["text"] is None:
            raise TraceError(f"{path}: problem {record['problem']!r} sample {record['sample']} has no text to grade")
        if record["finish_reason"] == NONFINITE:
            return dataclasses.asdict(UNDECIDED)
        prompt = stored.problems[record["problem"]]["prompt"]
        fields = dataclasses.asdict(grader(completed(prompt, record["text"]), answer))
        done += 1
        on_progress(Progress(done, len(stored.samples), 0))
        return fields

    answers = {name: problem["answer"] for name, problem in stored.problems.items()}
    with grader_for(stored.header["task"], answers, skip_unreadable=skip_unreadable) as grader:
        before, after = regrade(path, grade)
    changed = [
        (new["problem"], new["sample"])
        for old, new in zip(before.samples, after.samples, strict=True)
        if (old["correct"], old["grader"]) != (new["correct"], new["grader"])
    ]
    return after, changed


def _begun(out: Path) -> dict[str, Any] | None:
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
        "backends": {op: used_backend(op, lm.backend, policy.cache_summary) for op in ATTENTION_OPS},
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
