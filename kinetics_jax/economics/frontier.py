"""From graded samples to accuracy against cost: a row per (model, attention, N), and which rows pay."""

from __future__ import annotations

import collections
import dataclasses
import warnings
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kinetics_jax.config import ModelConfig
from kinetics_jax.economics.cost import best_of_n_cost
from kinetics_jax.economics.estimators import cluster_bootstrap, pass_at_k
from kinetics_jax.economics.hardware import Hardware
from kinetics_jax.errors import UserError
from kinetics_jax.policies import Policy, parse_policy
from kinetics_jax.traces import Run

if TYPE_CHECKING:
    import pandas as pd


class FrontierError(UserError):
    """Runs that cannot be compared as they are; the message names the run and the cure."""


@dataclasses.dataclass(frozen=True, eq=False)
class RunData:
    """What a frontier needs of one run. The fields from `problem` to `correct` are parallel, one entry per sample.

    `problem`: ids. `sample`: what tells a problem's samples apart, its index or (seed, index). `prompt_tokens`,
    `output_tokens`: counts. `correct`: True, False, or None where the sample was not graded. `settings`: what runs must
    agree in to be pooled. `task`: its name, for messages. `asked`: by problem id what was asked, (question, answer),
    so that problems of one id are known to be one; `prompts`: by problem id the text that put it to the model. Raises
    FrontierError when the parallel fields' lengths differ.
    """

    model: str
    attention: Policy
    config: ModelConfig
    problem: Sequence[str]
    sample: Sequence[Hashable]
    prompt_tokens: npt.ArrayLike
    output_tokens: npt.ArrayLike
    correct: Sequence[bool | None]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    task: str = ""
    asked: Mapping[str, Hashable] = dataclasses.field(default_factory=dict)
    prompts: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        counts = {
            field: len(np.atleast_1d(np.asarray(getattr(self, field), object)))
            for field in ("problem", "sample", "prompt_tokens", "output_tokens", "correct")
        }
        if len(set(counts.values())) > 1:
            raise FrontierError(f"run of {self.model} {self.attention}: fields of different lengths, {counts}")


def run_data(run: Run) -> RunData:
    """A run folder as read, for `frontier`. Raises FrontierError naming the folder and what run.json lacks."""
    missing = [field for field in ("model", "config", "policy") if not run.run.get(field)]
    if missing:
        raise FrontierError(f"{run.path / 'run.json'}: missing {', '.join(missing)}")
    try:
        config = dict(run.run["config"])
        shape = ModelConfig(**{**config, "eos_token_ids": tuple(config.get("eos_token_ids", ()))})
        attention = parse_policy(run.run["policy"])
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise FrontierError(f"{run.path / 'run.json'}: config or policy cannot be read ({error})") from error
    settings = {**run.run.get("sampling", {}), "dtype": run.run.get("dtype"), "weights": run.run.get("weights")}
    wanted = run.run.get("n", 0) * len(run.problems)
    if len(run.samples) < wanted:
        warnings.warn(
            f"{run.path}: unfinished, {len(run.samples)} of {wanted} samples; short samples end first, so accuracy and "
            f"cost are off; the command that began the run finishes it",
            stacklevel=2,
        )
    return RunData(
        model=run.run["model"],
        attention=attention,
        config=shape,
        problem=[record["problem"] for record in run.samples],
        sample=[(record["seed"], record["sample"]) for record in run.samples],
        prompt_tokens=[record["prompt_tokens"] for record in run.samples],
        output_tokens=[len(record["output_tokens"]) for record in run.samples],
        correct=[record["correct"] for record in run.samples],
        settings={name: value for name, value in settings.items() if name != "seed"},
        task=run.run.get("task") or "",
        asked={name: (problem.get("question"), problem.get("answer")) for name, problem in run.problems.items()},
        prompts={name: problem.get("prompt", "") for name, problem in run.problems.items()},
    )


def frontier(
    runs: Iterable[RunData],
    *,
    convention: str = "traffic",
    hardware: str | Hardware | None = None,
    intensity: float | None = None,
    trials: Sequence[int] | None = None,
) -> pd.DataFrame:
    """Accuracy and cost of every (model, attention, N): a table with one row each, in the order of the runs.

    Columns: `model`, its `parameters` (used per token), `attention` (its spelling), `N`; `problems`, `samples`,
    `ungraded` behind the row; `accuracy`, the mean over problems of pass@N, and the 95 % interval `low` … `high` from
    redrawing problems (a fixed seed; NaN for one problem); `mean_output_tokens` of a sample, mean over problems;
    `compute`, `memory` and `cost`, the mean Tera-eFLOPs per problem of N trials over the measured lengths (equation
    10); `on_frontier`, see `pareto`. `attrs` says how cost was counted: `convention`, `hardware` (None with an
    intensity), `intensity`.

    Runs of one model and attention are pooled; the order of samples does not matter. `trials` defaults to the powers
    of two up to the fewest graded samples of a problem. Ungraded samples count towards lengths and cost, not towards
    accuracy; `ungraded` says how many there were, and a warning. How a sample ended does not matter: one that was cut
    off or repeated itself counts by its grade and its length like any other. Raises FrontierError as `pooled` does;
    EstimateError for more trials than graded samples; CostError and HardwareError for costs that cannot be computed.
    """
    import pandas as pd

    costs = {"convention": convention, "hardware": hardware, "intensity": intensity}
    table = pd.DataFrame([row for group in pooled(runs) for row in _rows(group, trials, costs)])
    table["on_frontier"] = pareto(table["cost"].to_numpy(), table["accuracy"].to_numpy())
    name = hardware.name if isinstance(hardware, Hardware) else hardware
    table.attrs = {
        "convention": convention,
        "hardware": name if intensity is not None or name else "h100",
        "intensity": intensity,
    }
    return table


def pareto(cost: npt.ArrayLike, accuracy: npt.ArrayLike) -> np.ndarray:
    """Which of `cost [rows]`, `accuracy [rows]` no other row beats: at least as accurate, at most as costly, and
    strictly one of the two. Equal rows stand or fall together. Returns bool [rows]; NaN never stands.
    """
    cost, accuracy = np.asarray(cost, np.float64), np.asarray(accuracy, np.float64)
    standing = np.zeros(len(cost), bool)
    best, best_cost = -np.inf, np.nan
    for row in np.lexsort((-accuracy, cost)):  # by cost; the most accurate first among equals
        if accuracy[row] > best and not np.isnan(cost[row]):
            best, best_cost = accuracy[row], cost[row]
        standing[row] = accuracy[row] == best and cost[row] == best_cost
    return standing


@dataclasses.dataclass
class Problem:
    """The samples of one problem: prompt length in tokens; output lengths and grades, parallel, a grade None where
    the sample has none.
    """

    prompt_tokens: int
    lengths: list[int]
    grades: list[bool | None]

    @property
    def graded(self) -> int:
        return sum(grade is not None for grade in self.grades)

    @property
    def right(self) -> int:
        return sum(grade is True for grade in self.grades)


@dataclasses.dataclass(frozen=True)
class Pool:
    """All samples of one model under one attention, by problem id in ascending order."""

    model: str
    attention: Policy
    config: ModelConfig
    settings: Mapping[str, Any]
    problems: dict[str, Problem]

    def __str__(self) -> str:
        return f"{self.model} {self.attention}"

    def settings_apart(self, other: Pool) -> str:
        """Names of the settings in which two pools differ; empty for none."""
        names = dict.fromkeys((*self.settings, *other.settings))
        return ", ".join(name for name in names if self.settings.get(name) != other.settings.get(name))

    @property
    def counts(self) -> dict[str, int]:
        """What a table says of the pool: `problems`, `samples`, `ungraded`."""
        samples = sum(len(problem.lengths) for problem in self.problems.values())
        graded = sum(problem.graded for problem in self.problems.values())
        return {"problems": len(self.problems), "samples": samples, "ungraded": samples - graded}


def pooled(runs: Iterable[RunData]) -> list[Pool]:
    """Runs of one model and attention made one, in the order of the runs; every pool holds the same problems.

    Raises FrontierError when there is nothing to compare, the runs' tasks or problems differ, runs of one pool differ
    in their settings, a sample is there twice, or a problem has no graded sample.
    """
    members: dict[tuple[str, str], list[RunData]] = collections.defaultdict(list)
    for run in runs:
        members[run.model, str(run.attention)].append(run)
    if not members:
        raise FrontierError("no runs to compare")
    _one_task([run for group in members.values() for run in group])
    pools = [_pool(group) for group in members.values()]
    _same_problems(pools)
    return pools


def _one_task(runs: list[RunData]) -> None:
    """Accuracies over different tasks do not compare; nor do problems that share nothing but their id."""
    tasks: dict[str, set[str]] = collections.defaultdict(set)
    for run in runs:
        tasks[run.task].update(run.problem)
    if len({frozenset(problems) for task, problems in tasks.items() if task}) > 1:
        raise FrontierError(
            f"runs of several tasks ({', '.join(sorted(filter(None, tasks)))}): accuracies over different problems do "
            "not compare; give the runs of one task at a time"
        )
    asked: dict[str, tuple[Hashable, RunData]] = {}
    for run in runs:
        for problem, what in run.asked.items():
            there, other = asked.setdefault(problem, (what, run))
            if there != what:
                raise FrontierError(
                    f"problem {problem!r} is not the same in {other.model} {other.attention} (task {other.task}) and "
                    f"{run.model} {run.attention} (task {run.task}); compare runs of one problem set"
                )
    prompts: dict[tuple[str, str], tuple[str, RunData]] = {}
    for run in runs:
        for problem, text in run.prompts.items():
            there, other = prompts.setdefault((run.model, problem), (text, run))
            if there != text:
                raise FrontierError(
                    f"{run.model}: problem {problem!r} was put to it in different words under {other.attention} and "
                    f"{run.attention} (another template, or thinking on and off); compare runs of one kind of prompt"
                )


def _pool(runs: list[RunData]) -> Pool:
    run = runs[0]
    pool = Pool(run.model, run.attention, run.config, run.settings, {})
    problems, seen = pool.problems, set[tuple[str, Hashable]]()
    for run in runs:
        if other := [name for name in run.settings if run.settings[name] != pool.settings.get(name)]:
            raise FrontierError(
                f"{pool}: runs that differ in {', '.join(other)} cannot be pooled; compare them one at a time"
            )
        prompts, lengths = np.asarray(run.prompt_tokens), np.asarray(run.output_tokens)
        for problem, sample, i in sorted(zip(run.problem, run.sample, range(len(run.problem)), strict=True)):
            if (problem, sample) in seen:
                raise FrontierError(f"{pool}: problem {problem!r} sample {sample} is there twice; give each run once")
            seen.add((problem, sample))
            entry = problems.setdefault(problem, Problem(int(prompts[i]), [], []))
            if entry.prompt_tokens != prompts[i]:
                raise FrontierError(
                    f"{pool}: problem {problem!r} has prompts of {entry.prompt_tokens} and {prompts[i]} tokens; "
                    "the runs were made with different prompts"
                )
            entry.lengths.append(int(lengths[i]))
            correct = run.correct[i]
            entry.grades.append(None if correct is None else bool(correct))
    if not problems:
        raise FrontierError(f"{pool}: the run holds no samples yet")
    bare = [problem for problem, entry in problems.items() if not entry.graded]
    if bare:
        raise FrontierError(
            f"{pool}: problem {bare[0]!r} has no graded sample ({len(bare)} such), the grader gave up on all of them; "
            "grade the run again (kinetics grade RUN)"
        )
    return dataclasses.replace(pool, problems=dict(sorted(problems.items())))


def _same_problems(pools: list[Pool]) -> None:
    """Accuracies over different problems do not compare: an unfinished run would win by its easy beginning."""
    first, *others = pools
    for pool in others:
        odd = sorted(first.problems.keys() ^ pool.problems.keys())
        if odd:
            raise FrontierError(
                f"{first} has {len(first.problems)} problems, {pool} has {len(pool.problems)}, and they differ "
                f"({odd[0]!r}, say); finish the runs, or give runs over the same problems"
            )


def _rows(pool: Pool, trials: Sequence[int] | None, costs: dict[str, Any]) -> Iterable[dict[str, Any]]:
    problems = pool.problems.values()
    graded = np.array([problem.graded for problem in problems])
    right = np.array([problem.right for problem in problems])
    if trials is None:
        trials = [2**i for i in range(int(graded.min()).bit_length())]
    _warn_of_ungraded(pool, max(trials, default=0))
    solved = pass_at_k(graded[:, None], right[:, None], np.array(trials)[None])  # [problems, trials]
    low, high = cluster_bootstrap(solved)
    spent = [
        best_of_n_cost(
            pool.config,
            prompt_tokens=problem.prompt_tokens,
            output_lengths=problem.lengths,
            trials=trials,
            attention=pool.attention,
            **costs,
        )
        for problem in problems
    ]
    compute = np.mean([cost.compute for cost in spent], axis=0)
    memory = np.mean([cost.memory for cost in spent], axis=0)
    for i, n in enumerate(trials):
        yield {
            "model": pool.model,
            "parameters": pool.config.active_parameters,
            "attention": str(pool.attention),
            "N": int(n),
            **pool.counts,
            "accuracy": round(float(np.mean(solved[:, i])), 12),  # equal accuracies tie, rounding errors or not
            "low": float(low[i]),
            "high": float(high[i]),
            "mean_output_tokens": float(np.mean([np.mean(problem.lengths) for problem in problems])),
            "compute": float(compute[i]),
            "memory": float(memory[i]),
            "cost": float(compute[i] + memory[i]),
        }


def _warn_of_ungraded(pool: Pool, most: int) -> None:
    counts = pool.counts
    if not counts["ungraded"]:
        return
    name, problem = min(pool.problems.items(), key=lambda item: item[1].graded)
    short = f"; N ends at {most}, since problem {name!r} has {problem.graded} of {len(problem.lengths)} graded"
    warnings.warn(
        f"{pool}: {counts['ungraded']} of {counts['samples']} samples have no grade (the grader gave up); they count "
        f"for cost, not for accuracy{short if 2 * most <= len(problem.lengths) else ''}",
        stacklevel=4,
    )
