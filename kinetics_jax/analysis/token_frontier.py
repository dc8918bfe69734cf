"""Accuracy against generated tokens, for models whose architecture, and so cost, is not public; or against the seconds
that samples took by their source.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from kinetics_jax.analysis.defaults import check_trials, default_trials, rounded_accuracy
from kinetics_jax.analysis.frontier import pareto
from kinetics_jax.analysis.picked import with_rule
from kinetics_jax.analysis.problem_samples import ProblemSamples
from kinetics_jax.analysis.rules import rule_accuracy
from kinetics_jax.analysis.samples import Pool, RunData, SamplesError, pooled
from kinetics_jax.stats.estimators import cluster_bootstrap
from kinetics_jax.stats.intervals import accuracy_interval

if TYPE_CHECKING:
    import pandas as pd

Amount = Literal["tokens", "seconds"]


def token_frontier(
    runs: Iterable[RunData] | Iterable[Pool],
    *,
    trials: Sequence[int] | None = None,
    rule: str = "pass",
    amount: Amount = "tokens",
) -> pd.DataFrame:
    """Accuracy and output tokens of every (model, attention, N): a table with one row each, in the order of the runs.

    Columns: `model`, its `parameters` (NaN where not known), `attention`, `N`; `problems`, `samples`, `undecided`; the
    decision `rule` (`rules.Rule`), its `accuracy`, mean over problems, with the 95 % interval `low` … `high` from
    redrawing problems; under `pass` also `majority` and the like, see `picked.with_picks`; `tokens`, generated for N
    samples of a problem, mean over problems, with `tokens_low` … `tokens_high` from the same redrawing; `on_frontier`,
    see `frontier.pareto`. Tokens of unlike models are unlike in cost: nothing here says which model is cheaper to run.

    `amount="seconds"`: the seconds that the samples' source states take the place of tokens, those of N samples one
    after another. `trials` defaults to the powers of two up to the fewest graded samples of the problems of each run.
    Raises SamplesError as `samples.pooled` does, for missing token counts or seconds, and for what the rule needs;
    EstimateError for more trials than graded samples.
    """
    import pandas as pd

    rows, pools = [], pooled(runs)
    for pool in pools:
        spent_by_one = {name: _spent(problem, amount) for name, problem in pool.problems.items()}
        if missing := [name for name, spent in spent_by_one.items() if np.isnan(spent)]:
            what, cure = {
                "tokens": ("token counts", "give the tokenizer that counts them (--tokenizer), or fill them in"),
                "seconds": ("seconds", "fill in a column seconds of its table"),
            }[amount]
            raise SamplesError(
                f"{pool.where}: {what} are missing for {len(missing)} of {len(spent_by_one)} problems (such as "
                f"{missing[0]!r:.60}); {cure}"
            )
        counts = np.array(default_trials(pool) if trials is None else trials)
        check_trials(pool, counts)
        solved = rule_accuracy(pool, rule, counts.tolist())
        spent = np.array(list(spent_by_one.values()))[:, None] * counts
        accuracy = rounded_accuracy(np.mean(solved, axis=0))
        low, high = accuracy_interval(solved)
        least, most = cluster_bootstrap(spent)
        rows += [
            {
                "model": pool.model,
                "parameters": pool.parameters,
                "attention": str(pool.attention),
                "N": int(n),
                **pool.counts,
                "rule": rule,
                "accuracy": float(accuracy[i]),
                "low": float(low[i]),
                "high": float(high[i]),
                amount: float(np.mean(spent[:, i])),
                f"{amount}_low": float(least[i]),
                f"{amount}_high": float(most[i]),
            }
            for i, n in enumerate(counts)
        ]
    table = pd.DataFrame(rows)
    table["on_frontier"] = pareto(table[amount].to_numpy(), table["accuracy"].to_numpy())
    table.attrs = {"rule": rule}
    return with_rule(table, pools, rule)


def _spent(problem: ProblemSamples, amount: Amount) -> float:
    """Mean of a problem's samples; NaN where one is missing."""
    amounts = problem.lengths if amount == "tokens" else problem.own.get("seconds", [np.nan])
    return float(np.mean(amounts))
