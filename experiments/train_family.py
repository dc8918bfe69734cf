"""Trains the ledger family of kinetics_jax/assets/ledger: every size with several seeds; the median one is shipped.

    python experiments/train_family.py problems                         # the held-out problems, to assets
    python experiments/train_family.py train --work family              # every size with seed 0, then with seed 1, …
    python experiments/train_family.py train --work family --only ledger-37k --seeds 0 1
    python experiments/train_family.py score --work family              # samples what is trained, prints scores.json
    python experiments/train_family.py ship --work family               # the median seeds and the problems, to assets

Every command can be stopped and given again: `train` goes on at most 25 steps before, `score` at the last finished
sample. A batch is a function of seed and step, so that one thread (`taskset -c 0`, and XLA_FLAGS=
--xla_cpu_multi_thread_eigen=false) gives the same weights to the bit, stopped or not, on the same machine.

In the folder --work: `state/NAME-sSEED.npz` (step, parameters, moments), `models/NAME-sSEED/` (a finished checkpoint),
`runs/TASK-PROBLEMSxN/NAME-sSEED-ATTENTION` (run folders, of family_law.py too), `scores.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm
from training.checkpoint import write_checkpoint
from training.ledger_data import make_batch
from training.ledger_init import initial
from training.loop import Progress, Schedule, train

from kinetics_jax.assets import FAMILIES, LEDGER
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.dense import DENSE
from kinetics_jax.attention.policies.registry import slug
from kinetics_jax.cli.demo_grid import SLOTS
from kinetics_jax.cli.terminal import sample_bar
from kinetics_jax.config import ModelConfig
from kinetics_jax.files import write_atomic
from kinetics_jax.language_model import LanguageModel, load
from kinetics_jax.runs.best_of_n import best_of_n
from kinetics_jax.runs.folder import Run
from kinetics_jax.settings import EngineSettings, Sampling
from kinetics_jax.tasks import ledger
from kinetics_jax.tasks.problems import Problem

SEEDS = 5
PROBLEMS = 128  # held out, of each task
SCORED = 32, 8  # problems of each task, and samples of each
TASKS = (ledger.LEDGER, ledger.ROUTE)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Shape of one size and how long it is trained. One KV head everywhere: the KV cache grows with the layers alone,
    twofold over the family, as parameters grow more than twentyfold; query heads grow from two to eight.
    """

    hidden: int
    ffn: int
    layers: int
    heads: int
    schedule: Schedule

    def config(self) -> ModelConfig:
        """The decoder's configuration."""
        return ModelConfig(
            vocab_size=len(ledger.vocabulary()),
            hidden_size=self.hidden,
            intermediate_size=self.ffn,
            num_layers=self.layers,
            num_heads=self.heads,
            num_kv_heads=1,
            head_dim=32,
            tie_word_embeddings=True,
            max_position_embeddings=2048,
            eos_token_ids=(0,),
            dtype="float32",
        )


FAMILY = {
    "ledger-23k": Recipe(24, 64, 2, 2, Schedule(1500)),
    "ledger-37k": Recipe(32, 96, 2, 2, Schedule(700)),
    "ledger-100k": Recipe(48, 144, 3, 2, Schedule(450)),
    "ledger-204k": Recipe(64, 224, 3, 4, Schedule(350)),
    "ledger-684k": Recipe(96, 384, 4, 8, Schedule(250, rate=2e-3)),
}


def member(name: str, seed: int) -> str:
    """What a size trained with a seed is called."""
    return f"{name}-s{seed}"


def train_member(work: Path, name: str, seed: int, held_out: frozenset[str]) -> None:
    """Trains one, unless it is there already, and writes its checkpoint."""
    recipe, full = FAMILY[name], member(name, seed)
    folder = work / "models" / full
    if folder.exists():
        return
    config, steps, started = recipe.config(), recipe.schedule.steps, time.process_time()
    with tqdm(total=steps, desc=full, mininterval=5.0) as bar:

        def on_step(progress: Progress) -> None:
            bar.n = progress.step
            bar.set_postfix(loss=f"{progress.loss:.3f}", right=f"{progress.right:.4f}", refresh=False)
            bar.update(0)

        params = train(
            config,
            recipe.schedule,
            lambda: initial(config, seed),
            lambda step: make_batch(seed, step, steps, held_out),
            work / "state" / f"{full}.npz",
            on_step,
        )
    write_checkpoint(folder, config, ledger.vocabulary(), ledger.EOS, ledger.UNK, params)
    print(
        f"{full}: {config.active_parameters:,} parameters, {time.process_time() - started:.0f} s of CPU time",
        flush=True,
    )


def problems_of(task: str, count: int) -> list[Problem]:
    """The first held-out problems, as `load_problems` gives them."""
    answer = "question" if task == ledger.ROUTE else "answer"
    return [Problem(record["id"], record["question"], record[answer]) for record in records_of(task)[:count]]


def records_of(task: str) -> list[dict[str, str]]:
    """The held-out problems as their file keeps them; a route's answer is its question."""
    problems = ledger.held_out_problems(task, PROBLEMS)
    return [
        {"id": f"{task}-{index:03d}", "question": problem.question}
        | ({"answer": problem.answer} if task == ledger.LEDGER else {})
        for index, problem in enumerate(problems)
    ]


def sample_member(
    work: Path, folder: Path, task: str, count: int, n: int, policy: AttentionPolicy, lm: LanguageModel | None = None
) -> Run:
    """Samples of a checkpoint on the first problems: a run folder in `work`, continued where it is. `lm`: the
    checkpoint, where it is loaded already.
    """
    with sample_bar(f"{task} {folder.name} {policy}") as on_progress:
        return best_of_n(
            lm or load(folder),
            problems_of(task, count),
            task=task,
            n=n,
            policy=policy,
            sampling=Sampling(temperature=ledger.TEMPERATURE, max_tokens=ledger.MAX_OUTPUT, seed=0),
            out=work / "runs" / f"{task}-{count}x{n}" / f"{folder.name}-{slug(policy)}",
            settings=EngineSettings(slots=SLOTS),
            command="experiments/train_family.py",
            on_progress=on_progress,
        )


def pass_at_1(run: Run) -> float:
    """Mean grade; every problem has as many samples."""
    grades = [bool(sample["correct"]) for sample in run.samples]
    return sum(grades) / len(grades)


def score(work: Path, names: list[str], seeds: list[int], count: int, n: int) -> dict[str, dict[str, Any]]:
    """pass@1 of every finished member on both tasks, written to scores.json."""
    scores: dict[str, dict[str, Any]] = {}
    for name in names:
        for seed in seeds:
            full = member(name, seed)
            if (work / "models" / full).exists():
                each = {
                    task: round(pass_at_1(sample_member(work, work / "models" / full, task, count, n, DENSE)), 4)
                    for task in TASKS
                }
                scores.setdefault(name, {})[str(seed)] = each
    settings = {
        "problems": count,
        "samples": n,
        "temperature": ledger.TEMPERATURE,
        "slots": SLOTS,
        "jax": jax.__version__,
    }
    document = {
        "settings": settings,
        "pass@1": scores,
        "median_seed": {name: median_seed(scores[name]) for name in scores},
    }
    write_atomic(work / "scores.json", json.dumps(document, indent=1) + "\n")
    return document


def median_seed(scores: dict[str, dict[str, float]]) -> int:
    """The seed whose mean over the tasks is the median of all; of an even number, the lower in the middle."""
    means = {seed: statistics.fmean(each.values()) for seed, each in scores.items()}
    return int(sorted(means, key=lambda seed: (means[seed], int(seed)))[(len(means) - 1) // 2])


def ship(work: Path, seeds: int) -> None:
    """Copies each size's median seed to the package, with the problems and the scores of all.

    Raises SystemExit unless every size has been scored with that many seeds.
    """
    document = json.loads((work / "scores.json").read_text())
    missing = [name for name in FAMILY if len(document["pass@1"].get(name, {})) < seeds]
    if missing:
        raise SystemExit(
            f"{work}: {', '.join(missing)}: fewer than {seeds} seeds are scored; train and score them first"
        )
    target = FAMILIES[LEDGER]
    for name, seed in document["median_seed"].items():
        shutil.rmtree(target / name, ignore_errors=True)
        shutil.copytree(work / "models" / member(name, seed), target / name)
    write_problems()
    write_atomic(target / "seeds.json", json.dumps(document, indent=1) + "\n")


def write_problems() -> None:
    """The held-out problems of both tasks, to the package."""
    for task in TASKS:
        lines = "".join(json.dumps(record) + "\n" for record in records_of(task))
        write_atomic(FAMILIES[LEDGER] / f"{task}.jsonl", lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains, scores and ships the ledger family.")
    parser.add_argument("command", choices=("problems", "train", "score", "ship"))
    parser.add_argument("--work", type=Path, default=Path("family"), help="folder of states, models, runs and scores")
    parser.add_argument("--only", nargs="+", choices=FAMILY, default=list(FAMILY), help="sizes to work on")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(SEEDS)))
    parser.add_argument("--problems", type=int, default=SCORED[0], help="held-out problems of each task to score on")
    parser.add_argument("--n", type=int, default=SCORED[1], help="samples of each problem to score with")
    arguments = parser.parse_args()
    if arguments.command == "problems":
        write_problems()
    elif arguments.command == "train":
        held_out = frozenset(record["question"] for task in TASKS for record in records_of(task))
        for seed in arguments.seeds:
            for name in arguments.only:
                train_member(arguments.work, name, seed, held_out)
    elif arguments.command == "score":
        document = score(arguments.work, arguments.only, arguments.seeds, arguments.problems, arguments.n)
        print(json.dumps(document, indent=1))
    else:
        ship(arguments.work, len(arguments.seeds))


if __name__ == "__main__":
    main()
