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
    agree in to be pooled. Raises FrontierError when the parallel fields' lengths differ.
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
            f"cost are off",
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

    Columns: `model`, `attention` (its spelling), `N`; `problems`, `samples`, `ungraded` behind the row; `accuracy`,
    the mean over problems of pass@N, and the 95 % interval `low` … `high` from redrawing problems (a fixed seed; NaN
    for one problem); `mean_output_tokens` of a sample, mean over problems; `compute`, `memory` and `cost`, the mean
    Tera-eFLOPs per problem of N trials over the measured lengths (equation 10); `on_frontier`, see `pareto`.
    `attrs` says how cost was counted: `convention`, `hardware` (None with an intensity), `intensity`.

    Runs of one model and attention are pooled; the order of samples does not matter. `trials` defaults to the powers
    of two up to the fewest graded samples of a problem. Ungraded samples count towards lengths and cost, not towards
    accuracy; `ungraded` says how many there were. Raises FrontierError when there is nothing to compare, the runs'
    problems differ, a sample is there twice, or a problem has no graded sample; EstimateError for more trials than
    graded samples; CostError and HardwareError for costs that cannot be computed.
    """
    import pandas as pd

    pooled: dict[tuple[str, str], list[RunData]] = collections.defaultdict(list)
    for run in runs:
        pooled[run.model, str(run.attention)].append(run)
    if not pooled:
        raise FrontierError("no runs to compare")
    groups = {key: _by_problem(" ".join(key), members) for key, members in pooled.items()}
    _same_problems(groups)
    costs = {"convention": convention, "hardware": hardware, "intensity": intensity}
    rows = [
        {"model": model, "attention": attention, **row}
        for (model, attention), problems in groups.items()
        for row in _rows(pooled[model, attention][0], problems, trials, costs)
    ]
    table = pd.DataFrame(rows)
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
class _Problem:
    """The samples of one problem: prompt length, output lengths, grades of those that have one."""

    prompt_tokens: int
    lengths: list[int]
    grades: list[bool]


def _by_problem(where: str, runs: list[RunData]) -> dict[str, _Problem]:
    problems: dict[str, _Problem] = {}
    seen: set[tuple[str, Hashable]] = set()
    for run in runs:
        if other := [name for name in run.settings if run.settings[name] != runs[0].settings.get(name)]:
            raise FrontierError(
                f"{where}: runs that differ in {', '.join(other)} cannot be pooled; compare them one at a time"
            )
        prompts, lengths = np.asarray(run.prompt_tokens), np.asarray(run.output_tokens)
        for problem, sample, i in sorted(zip(run.problem, run.sample, range(len(run.problem)), strict=True)):
            if (problem, sample) in seen:
                raise FrontierError(f"{where}: problem {problem!r} sample {sample} is there twice; give each run once")
            seen.add((problem, sample))
            entry = problems.setdefault(problem, _Problem(int(prompts[i]), [], []))
            if entry.prompt_tokens != prompts[i]:
                raise FrontierError(
                    f"{where}: problem {problem!r} has prompts of {entry.prompt_tokens} and {prompts[i]} tokens; "
                    "the runs were made with different prompts"
                )
            entry.lengths.append(int(lengths[i]))
            correct = run.correct[i]
            if correct is not None:
                entry.grades.append(bool(correct))
    if not problems:
        raise FrontierError(f"{where}: the run holds no samples yet")
    bare = [problem for problem, entry in problems.items() if not entry.grades]
    if bare:
        raise FrontierError(
            f"{where}: problem {bare[0]!r} has no graded sample ({len(bare)} such); grade the run again"
        )
    return dict(sorted(problems.items()))


def _same_problems(groups: dict[tuple[str, str], dict[str, _Problem]]) -> None:
    """Accuracies over different problems do not compare: an unfinished run would win by its easy beginning."""
    (first, expected), *others = groups.items()
    for key, problems in others:
        odd = sorted(expected.keys() ^ problems.keys())
        if odd:
            raise FrontierError(
                f"{' '.join(first)} has {len(expected)} problems, {' '.join(key)} has {len(problems)}, and they differ "
                f"({odd[0]!r}, say); finish the runs, or compare runs of one task"
            )


def _rows(
    run: RunData, problems: dict[str, _Problem], trials: Sequence[int] | None, costs: dict[str, Any]
) -> Iterable[dict[str, Any]]:
    graded = np.array([len(entry.grades) for entry in problems.values()])
    right = np.array([sum(entry.grades) for entry in problems.values()])
    if trials is None:
        trials = [2**i for i in range(int(graded.min()).bit_length())]
    solved = pass_at_k(graded[:, None], right[:, None], np.array(trials)[None])  # [problems, trials]
    low, high = cluster_bootstrap(solved)
    spent = [
        best_of_n_cost(
            run.config,
            prompt_tokens=entry.prompt_tokens,
            output_lengths=entry.lengths,
            trials=trials,
            attention=run.attention,
            **costs,
        )
        for entry in problems.values()
    ]
    compute = np.mean([cost.compute for cost in spent], axis=0)
    memory = np.mean([cost.memory for cost in spent], axis=0)
    samples = sum(len(entry.lengths) for entry in problems.values())
    for i, n in enumerate(trials):
        yield {
            "N": int(n),
            "problems": len(problems),
            "samples": samples,
            "ungraded": samples - int(graded.sum()),
            "accuracy": round(float(np.mean(solved[:, i])), 12),  # equal accuracies tie, rounding errors or not
            "low": float(low[i]),
            "high": float(high[i]),
            "mean_output_tokens": float(np.mean([np.mean(entry.lengths) for entry in problems.values()])),
            "compute": float(compute[i]),
            "memory": float(memory[i]),
            "cost": float(compute[i] + memory[i]),
        }
