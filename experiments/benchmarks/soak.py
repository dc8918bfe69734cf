"""Soak: thousands of samples through many slots, killed at random and short of pages, come out as if nothing was.

    python experiments/benchmarks/soak.py --work soak --json experiments/benchmarks/results/cpu/soak.json

Prompts of 4 to 64 statements of the built-in problems, samples of 2 to 72 tokens, several models and policies. Each run
is drawn thrice, in processes of its own: calmly, with a page for everything; with a pool a quarter as large, so that
samples are set aside and come back, and with SIGKILL at random moments, the same command continuing; and, its samples
several times over, in one long process with the small pool. Demanded, or the exit code is 1:

- every sample once, and every record but for its seconds equal to the calm run's;
- what was on disk at a kill is there afterwards, byte for byte;
- kills landed, and samples were set aside (else nothing was tested);
- no growth: of the chunks of the long process, the last third against the middle one: the largest total of live jax
  buffers at most 1 % more, the median resident memory at most 1 % more. The first third is warm-up.

The same seed gives the same problems and the same moments, in records, of the kills.
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
from kinetics_jax.files import write_whole
from kinetics_jax.runs.folder import read_lines
from kinetics_jax.settings import Sampling
from kinetics_jax.tasks.problems import Problem, load_problems

if TYPE_CHECKING:
    import pandas as pd

GROWTH = 0.01  # of memory after warm-up that passes for noise
CHUNK = 4
LONGEST_PROMPT = 68
SLOTS = 64


@dataclasses.dataclass(frozen=True)
class Spec:
    """One run: `num_pages` None is a pool with a page for everything; `log` gets a line a chunk; `compiled` is
    the folder of the compilation cache.
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
    found = []
    for problem in load_problems("builtin", limit=count):
        *statements, start, first, at, node = problem.question.split()
        kept = np.sort(rng.permutation(len(statements))[: rng.integers(4, len(statements) + 1)])
        question = " ".join([*(statements[i] for i in kept), start, first, at, node])
        found.append(dataclasses.replace(problem, question=question))
    return found


def work(spec: Spec) -> None:
    """The worker: draws one run into its folder, or what is left of it, and logs its memory after every chunk."""
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
    """Resident memory of this process (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def start(spec: Spec) -> subprocess.Popen:
    """A worker in a process of its own."""
    command = [sys.executable, __file__, "--worker", json.dumps(dataclasses.asdict(spec))]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    """Waits for a worker. Raises RuntimeError with what it said when it failed."""
    _, says = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a worker ended with {process.returncode}: {says.strip()}")


def killed(spec: Spec, moments: Sequence[int], rng: random.Random) -> tuple[int, list[str]]:
    """Draws a run, killing its worker whenever so many more records are on disk; kills that landed, and faults."""
    samples, finished, landed, faults = Path(spec.out) / "samples.jsonl", b"", 0, []
    for more in moments:
        wanted = finished.count(b"\n") + more
        process = start(spec)
        while process.poll() is None and (not samples.exists() or samples.read_bytes().count(b"\n") < wanted):
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        process.kill()
        finish_code = process.wait()
        if process.stderr:
            process.stderr.close()
        if finish_code not in (0, -signal.SIGKILL):
            raise RuntimeError(f"a worker ended with {finish_code} before it was killed")
        landed += finish_code == -signal.SIGKILL
        data = samples.read_bytes() if samples.exists() else b""
        if not data.startswith(finished):
            faults.append(f"{spec.out}: what was finished before kill {landed} has changed")
        finished = data[: data.rfind(b"\n") + 1]
    finish(start(spec))
    if not samples.read_bytes().startswith(finished):
        faults.append(f"{spec.out}: what was finished before the last kill has changed")
    return landed, faults


def records(folder: str) -> list[dict[str, Any]]:
    """The finished samples of a run, without their wall times."""
    found, _ = read_lines(Path(folder) / "samples.jsonl", {})
    return [{name: value for name, value in record.items() if name != "seconds"} for record in found]


def differences(found: list[dict[str, Any]], calm: list[dict[str, Any]], expected: set[tuple[str, int]]) -> list[str]:
    """What is lost, doubled, or not as in the calm run, a line each; of `calm` only what is expected counts."""

    def name(record: dict[str, Any]) -> tuple[str, int]:
        return record["problem"], record["sample"]

    names = [name(record) for record in found]
    faults = [
        f"sample {each} is there {names.count(each)} times" for each in sorted(set(names)) if names.count(each) > 1
    ]
    faults += [f"sample {each} is lost" for each in sorted(expected - set(names))]
    faults += [f"sample {each} was not asked for" for each in sorted(set(names) - expected)]
    reference = {name(record): record for record in calm}
    return faults + [
        f"sample {name(record)} is another" for record in found if reference.get(name(record), record) != record
    ]


def growth(chunks: pd.DataFrame) -> dict[str, float]:
    """Relative growth of memory after warm-up, in a process's log: the last third of its chunks to the middle one."""
    third = len(chunks) // 3
    middle, last = chunks.iloc[third : 2 * third], chunks.iloc[2 * third :]
    return {
        "live": float(last["live"].max() / middle["live"].max() - 1),
        "resident": float(last["resident"].median() / middle["resident"].median() - 1),
    }


def soak(model: str, policy: str, max_tokens: int, arguments: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """The three legs of one run: its row of the table, and its faults, one line each."""
    import pandas as pd

    began, rng = time.perf_counter(), random.Random(f"{arguments.seed} {model} {policy}")
    folder = arguments.work / f"{model}-{slug(parse_policy(policy))}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    problems = mixed_problems(arguments.problems, arguments.seed)
    n = max(1, arguments.samples // (len(problems) * len(configurations())))
    worst = -(-(LONGEST_PROMPT + max_tokens) // parse_policy(policy).page_size) + 1
    small = max(worst, arguments.slots * worst // 4)

    def spec(leg: str, n: int, num_pages: int | None) -> Spec:
        out, log = str(folder / leg), str(folder / f"{leg}.jsonl")
        sizes = {"max_tokens": max_tokens, "n": n, "problems": len(problems), "slots": arguments.slots}
        rest = {"seed": arguments.seed, "num_pages": num_pages, "compiled": str(arguments.work / "compiled")}
        return Spec(model, policy, **sizes, **rest, out=out, log=log)

    calm, torn, long = spec("calm", n, None), spec("killed", n, small), spec("long", arguments.long * n, small)
    finish(start(calm))
    wanted = {(problem.id, sample) for problem in problems for sample in range(n)}
    moments = [rng.randint(1, len(wanted) // (arguments.kills + 1)) for _ in range(arguments.kills)]
    kills, faults = killed(torn, moments, rng)
    finish(start(long))

    reference = records(calm.out)
    more = {(problem.id, sample) for problem in problems for sample in range(long.n)}
    for leg, expected in ((calm, wanted), (torn, wanted), (long, more)):
        faults += [f"{leg.out}: {fault}" for fault in differences(records(leg.out), reference, expected)]
    torn_log: Any
    long_log: Any
    torn_log, long_log = (pd.read_json(leg.log, lines=True) for leg in (torn, long))
    set_aside = int(torn_log.groupby("pid")["preempted"].max().sum())
    memory = growth(long_log)
    faults += [f"{long.out}: {kind} memory grew by {100 * by:.2f} %" for kind, by in memory.items() if by > GROWTH]
    if kills < arguments.kills:
        faults.append(f"{torn.out}: {kills} of {arguments.kills} kills landed")
    for leg, count in ((torn, set_aside), (long, long_log["preempted"].iloc[-1])):
        if not count:
            faults.append(f"{leg.out}: no sample was set aside")
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
    parser.add_argument("--work", type=Path, default=Path("soak"), help="folder of the runs; what it holds is replaced")
    parser.add_argument("--json", type=Path, help="where the result is written")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=2000, help="of all runs together, the long ones left out")
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--slots", type=int, default=SLOTS)
    parser.add_argument("--kills", type=int, default=4, help="of each run")
    parser.add_argument("--long", type=int, default=4, help="how many times as many samples the long processes draw")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(Spec(**json.loads(arguments.worker)))
        return
    import pandas as pd  # not at the top: workers start without it

    rows, faults = [], []
    for model, policy, max_tokens in configurations():
        row, found = soak(model, policy, max_tokens, arguments)
        rows.append(row)
        faults += found
    print(pd.DataFrame(rows).T.to_string(header=False))
    result = {"seed": arguments.seed, "slots": arguments.slots, "chunk": CHUNK, "growth_allowed": GROWTH}
    if arguments.json:
        write_whole(arguments.json, json.dumps({**result, "runs": rows, "faults": faults}, indent=1) + "\n")
    for fault in faults:
        print(f"FAULT {fault}", file=sys.stderr)
    print(f"{sum(row['samples'] for row in rows)} samples, {sum(row['kills'] for row in rows)} kills, "
          f"{len(faults)} faults")  # fmt: skip
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
