"""Accuracy against generated tokens: for models whose architecture, and so cost, is not public."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kinetics_jax.analysis.defaults import check_trials, default_trials, rounded_accuracy
from kinetics_jax.analysis.frontier import pareto
from kinetics_jax.analysis.picked import with_picks
from kinetics_jax.analysis.samples import Pool, RunData, SamplesError, pooled
from kinetics_jax.stats.estimators import cluster_bootstrap, pass_at_k
from kinetics_jax.stats.intervals import accuracy_interval

if TYPE_CHECKING:
    import pandas as pd


def token_frontier(runs: Iterable[RunData] | Iterable[Pool], *, trials: Sequence[int] | None = None) -> pd.DataFrame:
    """Accuracy and output tokens of every (model, attention, N): a table with one row each, in the order of the runs.

    Columns: `model`, its `parameters` (NaN where not known), `attention`, `N`; `problems`, `samples`, `undecided`;
    `accuracy`, the mean over problems of pass@N, with the 95 % interval `low` … `high` from redrawing problems;
    `majority` and the like, see `picked.with_picks`; `tokens`, generated for N samples of a problem, mean over
    problems, with `tokens_low` … `tokens_high` from the same redrawing; `on_frontier`, see `frontier.pareto`. Tokens of
    unlike models are unlike in cost: nothing here says which model is cheaper to run.

    `trials` defaults to the powers of two up to the fewest graded samples of the problems of each run. Raises
    SamplesError as `samples.pooled` does, and for missing token counts, EstimateError for more trials than graded
    samples.
    """
    import pandas as pd

    rows, pools = [], pooled(runs)
    for pool in pools:
        problems = pool.problems.values()
        if uncounted := [name for name, problem in pool.problems.items() if np.isnan(problem.longest)]:
            raise SamplesError(
                f"{pool}: token counts are missing for {len(uncounted)} of {len(problems)} problems "
                f"(such as {uncounted[0]!r})"
            )
        graded = np.array([problem.graded for problem in problems])
        right = np.array([problem.right for problem in problems])
        counts = np.array(default_trials(pool) if trials is None else trials)
        check_trials(pool, counts)
        solved = pass_at_k(graded[:, None], right[:, None], counts[None])  # [problems, trials]
        spent = np.array([np.mean(problem.lengths) for problem in problems])[:, None] * counts
        accuracy = rounded_accuracy(np.mean(solved, axis=0))
        low, high = accuracy_interval(solved)
        tokens_low, tokens_high = cluster_bootstrap(spent)
        rows += [
            {
                "model": pool.model,
                "parameters": pool.parameters,
                "attention": str(pool.attention),
                "N": int(n),
                **pool.counts,
                "accuracy": float(accuracy[i]),
                "low": float(low[i]),
                "high": float(high[i]),
                "tokens": float(np.mean(spent[:, i])),
                "tokens_low": float(tokens_low[i]),
                "tokens_high": float(tokens_high[i]),
            }
            for i, n in enumerate(counts)
        ]
    table = pd.DataFrame(rows)
    table["on_frontier"] = pareto(table["tokens"].to_numpy(), table["accuracy"].to_numpy())
    return with_picks(table, pools)
