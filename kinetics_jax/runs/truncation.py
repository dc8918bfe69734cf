"""Long-CoT from stored samples: cut after n tokens, and graded again.

The paper's way to accuracy against length: what a sample holds in its first n output tokens is decoded and graded as if
generation had been stopped there. In several processes; the grades are kept in the run folder (cut_grades.py), so that
a command that was interrupted goes on where it was.
"""

from __future__ import annotations

import concurrent.futures
import concurrent.futures.process
import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import multiprocessing
import multiprocessing.util
import os
import signal
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from kinetics_jax.assets import builtin_folders
from kinetics_jax.errors import CheckpointError, spelled
from kinetics_jax.files import encode_utf8, lock_file, read_regular
from kinetics_jax.hub import HubError, download_file
from kinetics_jax.runs.cut_grades import CAP, NAME, SCHEMA, read_cut_grades, sample_digest, sample_key
from kinetics_jax.runs.folder import Run, TraceError, read_run, require_regular, require_same
from kinetics_jax.runs.records import MAX_TOKENS
from kinetics_jax.tasks import choice_grading, ledger, math_grading
from kinetics_jax.tasks import grading as grading_module
from kinetics_jax.tasks.answers import completed
from kinetics_jax.tasks.choice_grading import CHOICE
from kinetics_jax.tasks.graders import AS_TASK, NAMED, Grading, grading, open_grader
from kinetics_jax.tasks.grading import Grader
from kinetics_jax.tasks.math_grading import UNGRADED, unreadable_answers
from kinetics_jax.tasks.own_functions import SECONDS, OwnFunction
from kinetics_jax.tasks.problems import PACKAGED, problem_fields
from kinetics_jax.tokenizer import TOKENIZER, TOKENIZER_BYTES, read_tokenizer, tokenizer_file

if TYPE_CHECKING:
    from tokenizers import Tokenizer


MAX_WORKERS = 256  # grading processes


@dataclasses.dataclass(frozen=True)
class Cut:
    """One sample to be graded at caps shorter than it is; `digest` is its `sample_digest`."""

    key: tuple[str, int, int]
    digest: str
    tokens: list[int]
    text: str | None
    prompt: str
    answer: str | None  # None where the known answer cannot be graded, and is left out
    problem: dict[str, Any]
    caps: tuple[int, ...]


def grade_cuts(
    path: str | Path,
    caps: Sequence[int],
    *,
    tokenizer: str | Path | None = None,
    workers: int | None = None,
    grader: str | Callable[..., Any] | None = None,
    grader_seconds: float = SECONDS,
    skip_unreadable: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Run:
    """Grades the samples of a run folder as if they had been cut after each of `caps` tokens; returns the run.

    What is graded already is not graded again. Grades by another grader or tokenizer, or of other samples, are
    discarded. `tokenizer` is the path of a tokenizer.json or of the directory that holds it, by default that of the
    run's model, built-in or from the hub. `workers` is the number of processes: by default one per CPU, or only this
    one for the built-in task, whose grading is cheap. `grader`, as in `best_of_n`, is that of the run: one of the
    user's own has to be named again, since code is never run because a folder names it. `on_progress(samples done,
    samples to do)` is called after each sample; an exception from it ends the grading cleanly. Raises TraceError for a
    folder that is no run or has another grader, caps that are not whole numbers from 1 up, a tokenizer that does not
    give the samples' texts, or while another process grades the same run; CheckpointError without a tokenizer;
    GradingError for known answers that cannot be graded, whose samples stay undecided, with a warning, under
    `skip_unreadable`.
    """
    run = read_run(path)
    wanted = wanted_caps(path, caps, workers)
    task = run.header.get("task")
    if not task:
        raise TraceError(f"{run.path / 'run.json'}: names no task, which chooses the grader")
    how = run_grading(run, grader, grader_seconds)
    # Known answers that cannot be graded are reported at once.
    answers = {name: problem["answer"] for name, problem in run.problems.items()}
    if isinstance(how.grader, OwnFunction) or how.grader == CHOICE:
        left_out = {}
    else:
        left_out = unreadable_answers(how.grader or task, answers, skip=skip_unreadable)
    file = run_tokenizer(run, tokenizer)
    maker = {"schema": SCHEMA, "grader": cut_grader(task, how), "tokenizer": file_digest(file)}
    with locked(run.path / NAME) as target:
        done = _begin(run, target, maker, wanted)
        cuts = list(_missing(run, wanted, done, left_out))
        on_progress(0, len(cuts))
        for count, lines in enumerate(grade_each(_graded, cuts, task, file, workers, how), start=1):
            require_same(target, run.path / NAME)
            append_records(target, lines)
            on_progress(count, len(cuts))
        require_same(target, run.path / NAME)
    return run


def wanted_caps(path: str | Path, caps: Sequence[int], workers: int | None) -> list[int]:
    """Caps in ascending order. Raises TraceError for caps, or a number of processes, that cannot be."""
    wanted = sorted({int(cap) for cap in caps})
    if not wanted or not all(map(CAP.holds, wanted)) or any(cap != int(cap) for cap in caps):
        raise TraceError(f"{path}: caps must be whole numbers of tokens in 1 … {MAX_TOKENS}, got {spelled(list(caps))}")
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise TraceError(f"workers must be in 1 … {MAX_WORKERS}, got {workers}")
    return wanted


def run_tokenizer(run: Run, given: str | Path | None = None) -> Path:
    """The tokenizer.json that made a run's texts: the one given, or that of the run's model.

    Raises CheckpointError if it cannot be found.
    """
    return model_tokenizer(run.path, str(run.header.get("model")), given)


def model_tokenizer(path: Path, model: str, given: str | Path | None = None) -> Path:
    """The tokenizer.json given, or that of a model, built-in or from the hub; `path` is whose texts it made.

    Raises CheckpointError if it cannot be found.
    """
    if given is not None:
        return tokenizer_file(given)
    if model in (folders := builtin_folders()):
        return folders[model] / TOKENIZER
    if model.count("/") == 1:
        try:
            return download_file(model, TOKENIZER)
        except HubError as error:
            raise CheckpointError(f"{error}; or name its tokenizer (--tokenizer)") from error
    raise CheckpointError(f"{path}: no tokenizer is known for model {model!r}; name it (--tokenizer)")


def run_grading(run: Run, grader: str | Callable[..., Any] | None, seconds: float = SECONDS) -> Grading:
    """How a run is graded. Raises TraceError for another grader than its samples have, and where it has its user's own,
    which is not named here.
    """
    stored = run.header.get("grader")
    before = (stored or {}).get("function")
    how = grading(grader, seconds=seconds)
    if grader is None and (before is None or before in NAMED):
        return dataclasses.replace(how, grader=before)
    if grader is None:
        raise TraceError(f"{run.path}: its samples are graded by your own {before}; name it: --grader {before}")
    if how.identity.get("grader") != stored:
        raise TraceError(
            f"{run.path}: its samples are graded by {before or 'the grader of its task'}"
            f"{' as it was then' if str(how.grader) == before else ''}, and their cuts would be by {how.grader}; grade "
            "the samples by it first (kinetics grade RUN --grader …)"
        )
    return how


def cut_grader(task: str, how: Grading) -> str:
    """What identifies the grader of cut samples."""
    if isinstance(how.grader, OwnFunction):
        return f"{how.grader} {how.grader.fingerprint}"
    if how.grader == CHOICE:
        return hashlib.blake2b(Path(choice_grading.__file__).read_bytes(), digest_size=8).hexdigest()
    return grader_fingerprint(how.grader or task)


def grader_fingerprint(task: str) -> str:
    """What identifies a task's grader: a hash of its code and, for mathematics, the version of math-verify."""
    own = (Path(ledger.__file__),) if task in (ledger.LEDGER, ledger.ROUTE) else ()
    files = [Path(grading_module.__file__), *(own if task in PACKAGED else math_grading.SOURCES)]
    sources = b"".join(file.read_bytes() for file in files)
    code = hashlib.blake2b(sources, digest_size=8).hexdigest()
    return code if task in PACKAGED else f"{code} math-verify {importlib.metadata.version('math-verify')}"


def file_digest(path: Path) -> str:
    return hashlib.blake2b(read_regular(path, at_most=TOKENIZER_BYTES), digest_size=8).hexdigest()


@contextlib.contextmanager
def locked(path: Path) -> Iterator[IO[bytes]]:
    """The file of grades, open for reading and appending, and held for this process alone."""
    require_regular(path)
    try:
        opened = open(path, "a+b", buffering=0)  # noqa: SIM115  (closed below)
    except OSError as error:
        raise TraceError(f"{path}: cannot be written ({error.strerror}); grade a copy in a folder that can") from error
    with opened as file:
        try:
            lock_file(file)
        except BlockingIOError as error:
            raise TraceError(f"{path}: another process is grading this run; wait for it to end") from error
        yield file


def _begin(run: Run, file: IO[bytes], maker: dict[str, Any], caps: list[int]) -> set[tuple[str, int, int, int]]:
    """Prepares the file for appending and returns what is graded already. Drops grades by another maker."""
    earlier = read_cut_grades(run) if os.fstat(file.fileno()).st_size else None
    if earlier is not None and earlier.grades and earlier.maker != maker:
        what = "grader" if earlier.maker.get("grader") != maker["grader"] else "tokenizer"
        warnings.warn(f"{run.path / NAME}: made with another {what}; its samples are graded again", stacklevel=3)
    if earlier is None or earlier.maker != maker:
        file.truncate(0)
        append_records(file, [maker])
        earlier = None
    else:
        file.truncate(os.fstat(file.fileno()).st_size - earlier.torn)
        if not earlier.ended:
            file.write(b"\n")
    if earlier is None or not set(caps) <= set(earlier.caps):
        append_records(file, [{"caps": caps}])
    return set(earlier.grades) if earlier else set()


def append_records(file: IO[bytes], records: list[dict[str, Any]]) -> None:
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    left = memoryview(encode_utf8(data))
    while left:
        left = left[file.write(left) :]


def _missing(
    run: Run, caps: Sequence[int], done: set[tuple[str, int, int, int]], left_out: Collection[str]
) -> Iterator[Cut]:
    for record in run.samples:
        key, tokens = sample_key(record), record["output_tokens"]
        left = tuple(cap for cap in caps if cap < len(tokens) and (*key, cap) not in done)
        if left:
            problem = run.problems[record["problem"]]
            answer = None if record["problem"] in left_out else problem["answer"]
            asked = problem_fields(problem)
            yield Cut(key, sample_digest(run, record), tokens, record["text"], problem["prompt"], answer, asked, left)


def grade_each(
    grade: Callable[[Any, Tokenizer, Grader], Any],
    items: Sequence[Any],
    task: str,
    tokenizer: Path,
    workers: int | None = None,
    how: Grading = AS_TASK,
) -> Iterator[Any]:
    """What `grade(item, tokenizer, grader)`, a function of a module, gives for every item, in the order that they end.

    `workers` is the number of processes: by default one per CPU, or only this one for the built-in tasks, whose grading
    is cheap. Raises TraceError if a process dies.
    """
    processes = min(workers or (1 if task in PACKAGED else os.cpu_count() or 1), len(items))
    if processes > 1:
        yield from _in_processes(grade, items, (task, str(tokenizer), how), processes)
        return
    decoder = read_tokenizer(tokenizer)
    with open_grader(task, {}, how) as grader:
        for item in items:
            yield grade(item, decoder, grader)


def _in_processes(
    grade: Callable[[Any, Tokenizer, Grader], Any],
    items: Sequence[Any],
    grades_with: tuple[str, str, Grading],
    processes: int,
) -> Iterator[Any]:
    context = multiprocessing.get_context("spawn")  # a fork would take locks of other threads along
    pool = concurrent.futures.ProcessPoolExecutor(processes, context, initializer=_start_worker, initargs=grades_with)
    try:
        jobs = [pool.submit(_in_worker, grade, item) for item in items]
        for job in concurrent.futures.as_completed(jobs):
            yield job.result()
    except concurrent.futures.process.BrokenProcessPool as error:
        raise TraceError("a grading process died; what it had graded is kept: the same command continues") from error
    finally:
        pool.shutdown(cancel_futures=True)


# What a worker process grades with, for as long as it lives: an executor's initializer has no other place to keep it.
_worker: tuple[Tokenizer, Grader] | None = None


def _start_worker(task: str, tokenizer: str, how: Grading) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked stops the work
    held = contextlib.ExitStack()
    _worker = read_tokenizer(tokenizer), held.enter_context(open_grader(task, {}, how))
    multiprocessing.util.Finalize(held, held.close, exitpriority=1)  # ends the grader's own process


def _in_worker(grade: Callable[[Any, Tokenizer, Grader], Any], item: Any) -> Any:
    assert _worker is not None
    return grade(item, *_worker)


def _graded(cut: Cut, tokenizer: Tokenizer, grader: Grader) -> list[dict[str, Any]]:
    """The lines of one sample. Raises TraceError where the tokenizer does not give its text: it is another model's."""
    problem, seed, sample = cut.key
    if cut.text is not None and tokenizer.decode(cut.tokens, skip_special_tokens=True) != cut.text:
        raise TraceError(
            f"problem {problem!r} sample {sample}: this tokenizer does not give its text; name that of the run's model "
            "(--tokenizer)"
        )
    lines = []
    for cap in cut.caps:
        text = tokenizer.decode(cut.tokens[:cap], skip_special_tokens=True)
        grade = UNGRADED if cut.answer is None else grader(completed(cut.prompt, text), cut.answer, cut.problem)
        fields = {name: getattr(grade, name) for name in ("correct", "answer", "grader")}
        lines.append({"problem": problem, "seed": seed, "sample": sample, "of": cut.digest, "cap": cap, **fields})
    return lines
