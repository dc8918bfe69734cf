"""From graded samples to accuracy against cost: a row per (model, attention, N), and which rows pay."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from kinetics_jax.economics.cost import best_of_n_cost
from kinetics_jax.economics.estimators import cluster_bootstrap, pass_at_k
from kinetics_jax.economics.hardware import Hardware
from kinetics_jax.economics.samples import Pool, RunData, pooled

if TYPE_CHECKING:
    import pandas as pd


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
    off or repeated itself counts by its grade and its length like any other. Raises SamplesError as `pooled` does, and
    for a run without the architecture or the token counts that a cost needs; EstimateError for more trials than graded
    samples; CostError and HardwareError for costs that cannot be computed.
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


def _rows(pool: Pool, trials: Sequence[int] | None, costs: dict[str, Any]) -> Iterable[dict[str, Any]]:
    config, problems = pool.priced(), pool.problems.values()
    graded = np.array([problem.graded for problem in problems])
    right = np.array([problem.right for problem in problems])
    if trials is None:
        trials = [2**i for i in range(int(graded.min()).bit_length())]
    _warn_of_ungraded(pool, max(trials, default=0))
    solved = pass_at_k(graded[:, None], right[:, None], np.array(trials)[None])  # [problems, trials]
    low, high = cluster_bootstrap(solved)
    spent = [
        best_of_n_cost(
            config,
            prompt_tokens=int(problem.prompt_tokens),
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
            "parameters": config.active_parameters,
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
