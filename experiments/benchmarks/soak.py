"""Soak: thousands of samples through many slots, killed at random and short of pages, equal those of a calm run.

    python experiments/benchmarks/soak.py --work soak --json experiments/benchmarks/results/cpu/soak.json

Prompts of 4 to 64 statements of the built-in problems, samples of 2 to 72 tokens, several models and policies. Each run
is drawn three times, in processes of its own: calmly, with pages for all samples; with a quarter of the pages, so that
samples are preempted (set aside) and resumed, and with SIGKILL at random moments after which the same command
continues; and with several times the samples in one long process that has the small pool. The exit code is 1 unless:

- every sample is there once, and every record except its seconds equals the calm run's;
- what was on disk at a kill stays as it is, byte for byte;
- kills landed, and samples were preempted (else nothing was tested);
- memory does not grow: between the middle and the last third of the long process's chunks, the largest total of live
  jax buffers and the median resident memory grow by 1 % at most. The first third is warm-up.

The same seed gives the same problems, and kills at the same numbers of records.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kinetics_jax.assets import builtin_models
from kinetics_jax.attention.policies.registry import parse_policy, slug
from kinetics_jax.files import write_atomic
from kinetics_jax.runs.folder import read_lines
from kinetics_jax.settings import Sampling
from kinetics_jax.tasks.problems import Problem, load_problems

if TYPE_CHECKING:
    import pandas as pd

MAX_GROWTH = 0.01  # of memory after warm-up: more is a leak, less is noise
CHUNK = 4
MAX_PROMPT = 68
SLOTS = 64


@dataclasses.dataclass(frozen=True)
class Spec:
    """One run. `num_pages` None: pages for all samples. `log`: gets a line per chunk. `compiled`: the folder of the
    compilation cache.
    """

    model: str
    policy: str
    max_tokens: int
    n: int
    problems: int
    seed: int
    slots: int
    num_pages: int | None
    out: str
    log: str
    compiled: str


def mixed_problems(count: int, seed: int) -> list[Problem]:
    """Built-in problems with 4 to 64 of their 64 statements, in their order: prompts of mixed lengths."""
    rng = np.random.default_rng(seed)
    problems = []
    for problem in load_problems("builtin", limit=count):
        *statements, start, first, at, node = problem.question.split()
        kept = np.sort(rng.permutation(len(statements))[: rng.integers(4, len(statements) + 1)])
        question = " ".join([*(statements[i] for i in kept), start, first, at, node])
        problems.append(dataclasses.replace(problem, question=question))
    return problems


def work(spec: Spec) -> None:
    """The worker: draws the run, or what is left of it, into its folder and logs its memory after every chunk."""
    import jax

    from kinetics_jax.compile_cache import use_compile_cache
    from kinetics_jax.language_model import load
    from kinetics_jax.runs.best_of_n import Progress, best_of_n
    from kinetics_jax.settings import EngineSettings

    use_compile_cache(spec.compiled)
    with open(spec.log, "a") as log:

        def on_progress(progress: Progress) -> None:
            live = sum(array.nbytes for array in jax.live_arrays())
            line = {"pid": os.getpid(), "resident": resident_bytes(), "live": live, **dataclasses.asdict(progress)}
            print(json.dumps(line), file=log, flush=True)

        best_of_n(
            load(spec.model),
            mixed_problems(spec.problems, spec.seed),
            task="builtin",
            n=spec.n,
            policy=parse_policy(spec.policy),
            sampling=Sampling(temperature=1.0, max_tokens=spec.max_tokens, seed=spec.seed),
            settings=EngineSettings(slots=spec.slots, chunk=CHUNK, num_pages=spec.num_pages),
            out=spec.out,
            on_progress=on_progress,
        )


def resident_bytes() -> int:
    """Resident memory of this process in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def start_worker(spec: Spec) -> subprocess.Popen:
    """Starts a worker process for a run."""
    command = [sys.executable, __file__, "--worker", json.dumps(dataclasses.asdict(spec))]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def finish_worker(process: subprocess.Popen) -> None:
    """Waits for a worker. Raises RuntimeError with its standard error if it failed."""
    _, stderr = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a worker ended with {process.returncode}: {stderr.strip()}")


def draw_killed(spec: Spec, moments: Sequence[int], rng: random.Random) -> tuple[int, list[str]]:
    """Draws a run, killing its worker each time so many more records are on disk; kills that landed, and faults."""
    samples, finished, landed, faults = Path(spec.out) / "samples.jsonl", b"", 0, []
    for more in moments:
        wanted = finished.count(b"\n") + more
        process = start_worker(spec)
        while process.poll() is None and (not samples.exists() or samples.read_bytes().count(b"\n") < wanted):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        process.kill()
        exit_code = process.wait()
        if process.stderr:
            process.stderr.close()
        if exit_code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"a worker ended with {exit_code} before it was killed")
        landed += exit_code == -signal.SIGKILL
        data = samples.read_bytes() if samples.exists() else b""
        if not data.startswith(finished):
            faults.append(f"{spec.out}: what was finished before kill {landed} has changed")
        finished = data[: data.rfind(b"\n") + 1]
    finish_worker(start_worker(spec))
    if not samples.read_bytes().startswith(finished):
        faults.append(f"{spec.out}: what was finished before the last kill has changed")
    return landed, faults


def records(folder: str) -> list[dict[str, Any]]:
    """The finished samples of a run, without their wall times."""
    lines = read_lines(Path(folder) / "samples.jsonl", {}, may_be_torn=True).records
    return [{name: value for name, value in record.items() if name != "seconds"} for record in lines]


def differences(drawn: list[dict[str, Any]], calm: list[dict[str, Any]], expected: set[tuple[str, int]]) -> list[str]:
    """A line for every record lost, doubled, not asked for or other than in `calm`, which may hold fewer samples."""

    def name(record: dict[str, Any]) -> tuple[str, int]:
        return record["problem"], record["sample"]

    names = [name(record) for record in drawn]
    faults = [
        f"sample {each} is stored {names.count(each)} times" for each in sorted(set(names)) if names.count(each) > 1
    ]
    faults += [f"sample {each} is lost" for each in sorted(expected - set(names))]
    faults += [f"sample {each} was not asked for" for each in sorted(set(names) - expected)]
    reference = {name(record): record for record in calm}
    return faults + [
        f"sample {name(record)} differs from the calm run"
        for record in drawn
        if reference.get(name(record), record) != record
    ]


def growth(chunks: pd.DataFrame) -> dict[str, float]:
    """Relative growth of memory in a process's log after warm-up: from the middle third of its chunks to the last."""
    third = len(chunks) // 3
    middle, last = chunks.iloc[third : 2 * third], chunks.iloc[2 * third :]
    return {
        "live": float(last["live"].max() / middle["live"].max() - 1),
        "resident": float(last["resident"].median() / middle["resident"].median() - 1),
    }


def soak(model: str, policy: str, max_tokens: int, arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Draws one run three times: its row of the table, and its faults, one line each."""
    import pandas as pd

    began, rng = time.perf_counter(), random.Random(f"{arguments.seed} {model} {policy}")
    folder = arguments.work / f"{model}-{slug(parse_policy(policy))}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    problems = mixed_problems(arguments.problems, arguments.seed)
    n = max(1, arguments.samples // (len(problems) * len(configurations())))
    worst = -(-(MAX_PROMPT + max_tokens) // parse_policy(policy).page_size) + 1
    small = max(worst, arguments.slots * worst // 4)

    def spec(leg: str, n: int, num_pages: int | None) -> Spec:
        out, log = str(folder / leg), str(folder / f"{leg}.jsonl")
        sizes = {"max_tokens": max_tokens, "n": n, "problems": len(problems), "slots": arguments.slots}
        rest = {"seed": arguments.seed, "num_pages": num_pages, "compiled": str(arguments.work / "compiled")}
        return Spec(model, policy, **sizes, **rest, out=out, log=log)

    calm, torn, long = spec("calm", n, None), spec("killed", n, small), spec("long", arguments.long * n, small)
    finish_worker(start_worker(calm))
    wanted = {(problem.id, sample) for problem in problems for sample in range(n)}
    moments = [rng.randint(1, len(wanted) // (arguments.kills + 1)) for _ in range(arguments.kills)]
    kills, faults = draw_killed(torn, moments, rng)
    finish_worker(start_worker(long))

    reference = records(calm.out)
    more = {(problem.id, sample) for problem in problems for sample in range(long.n)}
    for leg, expected in ((calm, wanted), (torn, wanted), (long, more)):
        faults += [f"{leg.out}: {fault}" for fault in differences(records(leg.out), reference, expected)]
    torn_log: Any
    long_log: Any
    torn_log, long_log = (pd.read_json(leg.log, lines=True) for leg in (torn, long))
    set_aside = int(torn_log.groupby("pid")["preempted"].max().sum())
    memory = growth(long_log)
    faults += [f"{long.out}: {kind} memory grew by {100 * by:.2f} %" for kind, by in memory.items() if by > MAX_GROWTH]
    if kills < arguments.kills:
        faults.append(f"{torn.out}: {kills} of {arguments.kills} kills landed")
    for leg, count in ((torn, set_aside), (long, long_log["preempted"].iloc[-1])):
        if not count:
            faults.append(f"{leg.out}: no sample was preempted")
    prompts = [record["prompt_tokens"] for record in reference]
    outputs = [len(record["output_tokens"]) for record in reference]
    row = {
        "model": model,
        "attention": policy,
        "max_tokens": max_tokens,
        "pages": small,
        "samples": len(wanted),
        "prompt_tokens": f"{min(prompts)}-{max(prompts)}",
        "output_tokens": f"{min(outputs)}-{max(outputs)}",
        "kills": kills,
        "set_aside": set_aside,
        "long_samples": len(more),
        "long_chunks": len(long_log),
        "long_set_aside": int(long_log["preempted"].iloc[-1]),
        "resident_bytes": int(long_log["resident"].iloc[-1]),
        "resident_growth": memory["resident"],
        "live_bytes": int(long_log["live"].iloc[-1]),
        "live_growth": memory["live"],
        "faults": len(faults),
        "seconds": round(time.perf_counter() - began, 1),
    }
    return row, faults


def configurations() -> list[tuple[str, str, int]]:
    """Model, attention and max_tokens of the runs."""
    small, *_, large = builtin_models()
    middle = builtin_models()[1:3]
    return [
        (large, "dense", 72),
        (small, "block_topk:budget=32,page_size=2", 72),
        (middle[0], "random_blocks:budget=64,page_size=4", 40),
        (middle[1], "sliding_window:budget=48", 72),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path("soak"), help="folder of the runs; replaced if it exists (%(default)s)"
    )
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--samples", type=int, default=2000, help="of all runs together, without the long ones (%(default)s)"
    )
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--kills", type=int, default=4, help="per run (%(default)s)")
    parser.add_argument("--long", type=int, default=4, help="times as many samples in the long processes (%(default)s)")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(Spec(**json.loads(arguments.worker)))
        return
    import pandas as pd  # not at the top: workers start without it

    rows, faults = [], []
    for model, policy, max_tokens in configurations():
        row, faults_of_run = soak(model, policy, max_tokens, arguments)
        rows.append(row)
        faults += faults_of_run
    print(pd.DataFrame(rows).T.to_string(header=False))
    result = {"seed": arguments.seed, "slots": arguments.slots, "chunk": CHUNK, "growth_allowed": MAX_GROWTH}
    if arguments.json:
        write_atomic(arguments.json, json.dumps({**result, "runs": rows, "faults": faults}, indent=1) + "\n")
    for fault in faults:
        print(f"FAULT {fault}", file=sys.stderr)
    print(f"{sum(row['samples'] for row in rows)} samples, {sum(row['kills'] for row in rows)} kills, "
          f"{len(faults)} faults")  # fmt: skip
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
