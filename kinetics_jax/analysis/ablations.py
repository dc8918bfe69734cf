"""What shorter answers and smaller attention budgets cost in accuracy: tables with a row per setting."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kinetics_jax.analysis.defaults import default_caps, max_sample_tokens
from kinetics_jax.analysis.samples import Pool, ProblemSamples, RunData, pooled
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.errors import UserError
from kinetics_jax.stats.intervals import accuracy_interval, difference_interval

if TYPE_CHECKING:
    import pandas as pd


class AblationError(UserError):
    """An ablation that these samples cannot give; the message says why."""


def length_ablation(runs: Iterable[RunData] | Iterable[Pool], *, caps: Sequence[int] | None = None) -> pd.DataFrame:
    """Accuracy had generation been capped at n tokens, from the samples as they are: a row per (model, attention, n).

    Where the cut texts were graded (`RunData.caps`, as `kinetics grade --caps` leaves them), those grades count: the
    paper's Long-CoT. Elsewhere an answer not finished within n tokens counts as wrong: a sample counts as right under
    the cap n when it is right and has at most n tokens (the end token included). Right answers that stand in the first
    n tokens of a longer sample are then not looked for, so cutting and grading again can only give more. A table holds
    one rule for all its rows, the second unless all runs have grades at all its caps; `attrs["rule"]` says which:
    "cut" or "finished". Either way a sample is charged min(its length, n) tokens.

    Columns: `model`, its `parameters` (used per token), `attention`, `cap` (tokens); `problems`, `samples`,
    `undecided`; `accuracy`, the mean over problems of the share of right samples, with the 95 % interval `low` … `high`
    from redrawing problems; `mean_tokens` charged per sample, mean over problems (NaN if token
    counts are missing).

    `caps` defaults to `defaults.default_caps`. A cap above a run's own `max_tokens` says nothing that it measured; its
    rows end at that length. Raises AblationError for caps that are not whole numbers from 1 up, SamplesError as
    `samples.pooled` does, and if the second rule or the default caps need a token count that is missing.
    """
    import pandas as pd

    pools = pooled(runs)
    if caps is None:
        caps = default_caps(pools)
    if not caps or any(cap < 1 or cap != int(cap) for cap in caps):
        raise AblationError(f"caps must be whole numbers of tokens, at least 1, got {list(caps)}")
    cut = all(problem.knows(cap) for pool in pools for problem in pool.problems.values() for cap in caps)
    if not cut and any(pool.caps for pool in pools):
        warnings.warn(
            "cut texts were not graded at all of these caps in all runs, so an answer counts only where it is finished "
            "within the cap; grade all runs at the same caps (kinetics grade RUN --caps …)",
            stacklevel=2,
        )
    rows = []
    for pool in pools:
        grid = np.array(sorted({min(cap, max_sample_tokens(pool)) for cap in caps}))
        right = np.stack([_right_within(problem, grid, cut) for problem in pool.problems.values()])
        charged = np.stack([np.mean(problem.tokens_under(grid), axis=0) for problem in pool.problems.values()])
        low, high = accuracy_interval(right)
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
    table = pd.DataFrame(rows)
    table.attrs["rule"] = "cut" if cut else "finished"
    return table


def budget_ablation(runs: Iterable[RunData] | Iterable[Pool]) -> pd.DataFrame:
    """Pass@1 against the attention budget: a row per (model, attention), dense attention included.

    Columns: `model`, its `parameters` (used per token), `attention`; `kind` of policy, its `budget` in tokens attended
    per step and KV head (NaN for dense) and its other `options` as spelled; `problems`, `samples`, `undecided`;
    `accuracy`, the mean over problems of the share of right samples, with the 95 % interval `low` …
    `high`; `difference` from the model's dense accuracy over the same problems, and its paired interval
    `difference_low` … `difference_high` (problems are redrawn for both at once; NaN where the model has no dense run,
    or, with a warning, one with other settings); `mean_output_tokens` of a sample, mean over problems.

    Raises SamplesError as `samples.pooled` does, AblationError for a policy without a budget.
    """
    import pandas as pd

    pools = pooled(runs)
    right = [np.array([problem.right / problem.graded for problem in pool.problems.values()]) for pool in pools]
    dense = {pool.model: (pool, r) for pool, r in zip(pools, right, strict=True) if pool.attention.kind == "dense"}
    rows = []
    for pool, mine in zip(pools, right, strict=True):
        low, high = accuracy_interval(mine)
        sparse = pool.attention.kind != "dense"
        apart, apart_low, apart_high = np.nan, np.nan, np.nan
        if sparse and pool.model in dense:
            other, theirs = dense[pool.model]
            if differ := pool.settings_apart(other):
                warnings.warn(
                    f"{pool}: not compared with dense attention, which was run with other {differ}", stacklevel=2
                )
            else:
                # pools hold the same problems in the same order, so that differences pair
                apart = np.mean(mine - theirs)
                apart_low, apart_high = difference_interval(mine, theirs)
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
                "difference": float(apart),
                "difference_low": float(apart_low),
                "difference_high": float(apart_high),
                "mean_output_tokens": float(np.mean([np.mean(problem.lengths) for problem in pool.problems.values()])),
            }
        )
    return pd.DataFrame(rows)


def attention_budget(policy: AttentionPolicy) -> int:
    """Tokens that a sparse policy attends to per step and KV head; for policies of pages, pages × page size.

    Raises AblationError for a policy that has none.
    """
    if not policy.nominal_budget:
        raise AblationError(f"attention {policy} has no budget in tokens")
    return policy.nominal_budget


def _named(pool: Pool) -> dict[str, Any]:
    return {"model": pool.model, "parameters": pool.parameters, "attention": str(pool.attention)}


def _right_within(problem: ProblemSamples, caps: np.ndarray, cut: bool) -> np.ndarray:
    """The share of graded samples that are right within each of `caps [caps]`; float64 [caps], NaN if none is graded.

    `cut`: by the grades of the cut texts, where they were recorded.
    """
    if not cut:
        problem = dataclasses.replace(problem, caps=(), correct_within=[])
    grades = problem.grades_under(caps)
    graded = np.sum(~np.isnan(grades), axis=0)
    return np.divide(np.nansum(grades, axis=0), graded, out=np.full(len(caps), np.nan), where=graded > 0)


def _other_options(policy: AttentionPolicy) -> str:
    """What the spelling says besides kind and budget: `page_size=2,dense_layers=none`."""
    options = str(policy).partition(":")[2].split(",")
    return ",".join(option for option in options if not option.startswith(("budget=", "pages=")))
