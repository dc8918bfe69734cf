"""What shorter answers and smaller attention budgets cost in accuracy: tables with a row per setting. No jax."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kinetics_jax.economics.estimators import cluster_bootstrap
from kinetics_jax.economics.samples import Pool, Problem, RunData, pooled
from kinetics_jax.errors import UserError
from kinetics_jax.policies import Policy

if TYPE_CHECKING:
    import pandas as pd

STEPS = 16  # caps in the default grid


class AblationError(UserError):
    """An ablation that the samples at hand cannot give; the message says why."""


def length_ablation(runs: Iterable[RunData], *, caps: Sequence[int] | None = None) -> pd.DataFrame:
    """Accuracy had generation been capped at n tokens, from the samples as they are: a row per (model, attention, n).

    An answer not finished within n tokens counts as wrong: a sample counts as right under the cap n when it is right
    and has at most n tokens (the end token included), and it is charged min(its length, n) tokens. Right answers that
    stand in the first n tokens of a longer sample are not looked for, so the paper's way, truncating texts and grading
    again, can only give more.

    Columns: `model`, its `parameters` (used per token), `attention`, `cap` (tokens); `problems`, `samples`,
    `ungraded`; `accuracy`, the mean over problems of the share of right samples among graded ones, with the 95 %
    interval `low` … `high` from redrawing problems (NaN for one problem); `mean_tokens` charged per sample, ungraded
    ones included, mean over problems.

    `caps` defaults to sixteenths of the longest sample. A cap above a run's own `max_tokens` says nothing that it
    measured; its rows end at that length. Raises AblationError for caps that are not whole numbers from 1 up,
    SamplesError as `samples.pooled` does.
    """
    import pandas as pd

    pools = pooled(runs)
    most = [_max_tokens(pool) for pool in pools]
    if caps is None:
        longest = max(map(_longest, pools))
        caps = [-(-longest * step // STEPS) for step in range(1, STEPS + 1)]
    if not caps or any(cap < 1 or cap != int(cap) for cap in caps):
        raise AblationError(f"caps must be whole numbers of tokens, at least 1, got {list(caps)}")
    rows = []
    for pool, longest in zip(pools, most, strict=True):
        grid = np.array(sorted({min(cap, longest) for cap in caps}))
        right = np.stack([_right_within(problem, grid) for problem in pool.problems.values()])
        charged = np.stack([_mean_tokens(problem, grid) for problem in pool.problems.values()])
        low, high = cluster_bootstrap(right)
        rows += [
            {
                **_named(pool),
                "cap": int(cap),
                **pool.counts,
                "accuracy": float(np.mean(right[:, i])),
                "low": float(low[i]),
                "high": float(high[i]),
                "mean_tokens": float(np.mean(charged[:, i])),
            }
            for i, cap in enumerate(grid)
        ]
    return pd.DataFrame(rows)


def budget_ablation(runs: Iterable[RunData]) -> pd.DataFrame:
    """Pass@1 against the attention budget: a row per (model, attention), dense attention included.

    Columns: `model`, its `parameters` (used per token), `attention`; `kind` of policy, its `budget` in tokens attended
    per step and KV head (NaN for dense) and its other `options` as spelled; `problems`, `samples`, `ungraded`;
    `accuracy`, the mean over problems of the share of right samples among graded ones, with the 95 % interval `low` …
    `high`; `difference` from the model's dense accuracy over the same problems, and its paired interval
    `difference_low` … `difference_high` (problems are redrawn for both at once; NaN where the model has no dense run,
    or one with other settings, of which a warning tells); `mean_output_tokens` of a sample, mean over problems.
    Intervals are NaN for one problem.

    Raises SamplesError as `samples.pooled` does, AblationError for a policy without a budget.
    """
    import pandas as pd

    pools = pooled(runs)
    right = [np.array([problem.right / problem.graded for problem in pool.problems.values()]) for pool in pools]
    dense = {pool.model: (pool, r) for pool, r in zip(pools, right, strict=True) if pool.attention.kind == "dense"}
    rows = []
    for pool, mine in zip(pools, right, strict=True):
        low, high = cluster_bootstrap(mine)
        sparse = pool.attention.kind != "dense"
        apart = np.full_like(mine, np.nan)
        if sparse and pool.model in dense:
            other, theirs = dense[pool.model]
            if differ := pool.settings_apart(other):
                warnings.warn(
                    f"{pool}: not compared with dense attention, which was run with other {differ}", stacklevel=2
                )
            else:
                apart = mine - theirs  # pools hold the same problems in the same order, so that differences pair
        apart_low, apart_high = cluster_bootstrap(apart)
        rows.append(
            {
                **_named(pool),
                "kind": pool.attention.kind,
                "budget": attention_budget(pool.attention) if sparse else np.nan,
                "options": _other_options(pool.attention),
                **pool.counts,
                "accuracy": float(np.mean(mine)),
                "low": float(low),
                "high": float(high),
                "difference": float(np.mean(apart)),
                "difference_low": float(apart_low),
                "difference_high": float(apart_high),
                "mean_output_tokens": float(np.mean([np.mean(problem.lengths) for problem in pool.problems.values()])),
            }
        )
    return pd.DataFrame(rows)


def attention_budget(policy: Policy) -> int:
    """Tokens that a sparse policy attends to per step and KV head; for policies of pages, pages × page size.

    Raises AblationError for a policy that has none.
    """
    budget = getattr(policy, "budget", 0) or getattr(policy, "pages", 0) * getattr(policy, "page_size", 0)
    if not budget:
        raise AblationError(f"attention {policy} has no budget in tokens")
    return int(budget)


def _named(pool: Pool) -> dict[str, Any]:
    return {"model": pool.model, "parameters": pool.config.active_parameters, "attention": str(pool.attention)}


def _max_tokens(pool: Pool) -> int:
    """How long a sample could have become; where the run does not say, the longest."""
    return max(int(pool.settings.get("max_tokens") or 0), _longest(pool))


def _longest(pool: Pool) -> int:
    return max(1, *(length for problem in pool.problems.values() for length in problem.lengths))


def _right_within(problem: Problem, caps: np.ndarray) -> np.ndarray:
    """The share of graded samples that are right and end within each of `caps [caps]`; float64 [caps]."""
    lengths = [n for n, grade in zip(problem.lengths, problem.grades, strict=True) if grade]
    return np.sum(np.array(lengths, np.int64)[:, None] <= caps, axis=0) / problem.graded


def _mean_tokens(problem: Problem, caps: np.ndarray) -> np.ndarray:
    return np.mean(np.minimum(np.array(problem.lengths)[:, None], caps), axis=0)


def _other_options(policy: Policy) -> str:
    """What the spelling says besides kind and budget: `page_size=2,dense_layers=none`."""
    options = str(policy).partition(":")[2].split(",")
    return ",".join(option for option in options if not option.startswith(("budget=", "pages=")))
