"""Frontiers as the paper draws them, from a grid of configurations: the best one per task under a budget, by one law.

A law is what counts as cost: "FLOPs" is arithmetic alone (the previous scaling law), "eFLOPs" adds memory reads times
the hardware's intensity (the paper's), "max" takes the larger of the two. Whatever the law, eFLOPs are paid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from kinetics_jax.analysis.ablations import attention_budget
from kinetics_jax.analysis.allocation import best_for_all, best_per_problem
from kinetics_jax.analysis.defaults import default_caps, trials_of_halves
from kinetics_jax.analysis.grid import Grid, grid, split_in_halves
from kinetics_jax.analysis.samples import Pool
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.stats.intervals import accuracy_interval

BUDGETS = 96  # along a cost axis
HALVINGS = 4  # of the samples; each half chooses once and scores once


@dataclasses.dataclass(frozen=True)
class Split:
    """Grids of equal configurations: choices are made on `select` and scored on `score`.

    `fixed`: one configuration for all problems instead of one for each.
    """

    select: Grid
    score: Grid
    fixed: bool


@dataclasses.dataclass(frozen=True)
class Choice:
    """How configurations are chosen: on the samples that score them or on others, for every problem or for all."""

    in_sample: bool = False
    fixed: bool = False


def best_of_n(pools: Sequence[Pool], choice: Choice, costs: Mapping[str, Any]) -> list[Split]:
    """Grids over N at full length (the paper's Algorithm 1): powers of two, up to each pool's own samples in-sample, up
    to half of them where halves choose and score.
    """
    return _splits(pools, choice, {"trials": None if choice.in_sample else trials_of_halves(pools)}, costs)


def long_cot(pools: Sequence[Pool], choice: Choice, costs: Mapping[str, Any]) -> list[Split]:
    """Grids over the cap on generated tokens, one trial (Algorithm 2)."""
    return _splits(pools, choice, {"trials": [1], "caps": default_caps(pools)}, costs)


def _splits(pools: Sequence[Pool], choice: Choice, axes: Mapping[str, Any], costs: Mapping[str, Any]) -> list[Split]:
    if choice.in_sample:
        whole = _with_budgets(grid(pools, **axes, **costs))
        return [Split(whole, whole, choice.fixed)]
    splits = []
    for seed in range(HALVINGS):
        first, second = (_with_budgets(grid(part, **axes, **costs)) for part in split_in_halves(pools, seed))
        splits += [Split(first, second, choice.fixed), Split(second, first, choice.fixed)]
    return splits


def _with_budgets(cells: Grid) -> Grid:
    """The grid with a column `kv_budget`, tokens attended per step; NaN for dense attention."""
    policies = [parse_policy(spelling) for spelling in cells.configurations["attention"]]
    budgets = [np.nan if policy.kind == "dense" else float(attention_budget(policy)) for policy in policies]
    return dataclasses.replace(cells, configurations=cells.configurations.assign(kv_budget=budgets))


def budgets_of(splits: Sequence[Split], law: str, count: int = BUDGETS) -> np.ndarray:
    """Costs, evenly in logarithm, from the cheapest configuration of any problem to where every problem affords all."""
    costs = np.stack([split.select.spent(law) for split in splits])  # [splits, configurations, problems]
    if splits[0].fixed:
        costs = costs.mean(axis=2)
    costs = costs[np.isfinite(costs)]  # without what does not fit the hardware
    return np.geomspace(costs.min(), costs.max() * (1 + 1e-9), count)


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """One group's frontier: arrays [budgets, problems], means over the splits, 0 where nothing is affordable."""

    accuracy: np.ndarray
    flops: np.ndarray
    eflops: np.ndarray
    tokens: np.ndarray
    values: Mapping[str, np.ndarray]  # columns of the configurations, NaN where none is affordable


def curve(splits: Sequence[Split], law: str, budgets: np.ndarray, members: np.ndarray, columns: Sequence[str]) -> Curve:
    """The frontier of the configurations `members` (bool) under a law: chosen on `select`, scored on `score`."""
    parts_of: dict[str, list[np.ndarray]] = {name: [] for name in ("accuracy", "flops", "eflops", "tokens", *columns)}
    index = np.flatnonzero(members)
    for split in splits:
        select, score = split.select.rows(index), split.score
        choose = best_for_all if split.fixed else best_per_problem
        chosen = choose(select, budgets, law=law).choice
        none, rows = chosen < 0, index[np.maximum(chosen, 0)]
        at = np.arange(chosen.shape[1])
        trials = score.configurations["N"].to_numpy()[rows]
        for name, values in (
            ("accuracy", score.accuracy[rows, at]),
            ("flops", score.compute[rows, at]),
            ("eflops", score.cost[rows, at]),
            ("tokens", trials * score.tokens[rows, at]),
        ):
            parts_of[name].append(np.where(none, 0.0, values))
        for name in columns:
            values = score.configurations[name].to_numpy(np.float64)[rows]
            parts_of[name].append(np.where(none, np.nan, values))
    means = {name: np.mean(parts, axis=0) for name, parts in parts_of.items()}
    values = {name: means.pop(name) for name in columns}
    return Curve(**means, values=values)


def frontier_table(
    splits: Sequence[Split],
    law: str,
    groups: Mapping[str, np.ndarray],
    *,
    budgets: np.ndarray | None = None,
    columns: Sequence[str] = ("N", "cap", "kv_budget"),
) -> tuple[pd.DataFrame, dict[str, Curve]]:
    """Every group's frontier, a row per (group, budget), and its curve per problem.

    Columns: `law`, `group`, `budget` (Tera, by the law); `accuracy`, the mean over problems, with its 95 % interval
    `low` … `high` from redrawing problems; `flops`, `eflops` paid and `tokens` generated per problem (all trials);
    `columns` of the configurations, means over the problems that the budget affords; `chosen`: the group with the
    highest accuracy at that budget, the cheapest of equals.
    """
    budgets = budgets_of(splits, law) if budgets is None else budgets
    curves = {name: curve(splits, law, budgets, members, columns) for name, members in groups.items()}
    tables = []
    for name, one_curve in curves.items():
        low, high = accuracy_interval(one_curve.accuracy.T)
        afforded = {key: _mean_of_known(values) for key, values in one_curve.values.items()}
        means = {key: getattr(one_curve, key).mean(axis=1) for key in ("accuracy", "flops", "eflops", "tokens")}
        tables.append(
            pd.DataFrame(
                {"law": law, "group": name, "budget": budgets, "accuracy": means.pop("accuracy").round(12)}
                | {"low": low, "high": high, **means, **afforded}
            )
        )
    table = pd.concat(tables, ignore_index=True)
    paid = table["flops"] if law == "FLOPs" else table["eflops"]
    ranked = table.assign(paid=paid).sort_values(
        by=["budget", "accuracy", "paid"], ascending=[True, False, True], kind="stable"
    )
    solving: Any = ranked[ranked["accuracy"] > 0]
    chosen = solving.drop_duplicates("budget").index
    return table.assign(chosen=table.index.isin(chosen)), curves


def _mean_of_known(values: np.ndarray) -> np.ndarray:
    known = ~np.isnan(values)
    return np.where(known, values, 0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)


def by_model(cells: Grid, where: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The configurations of every model, smallest first; of those in `where`, if given."""
    table = cells.configurations.sort_values(by=["parameters", "model"])
    groups = {str(name): (cells.configurations["model"] == name).to_numpy() for name in table["model"].unique()}
    return groups if where is None else {name: g & where for name, g in groups.items() if (g & where).any()}


def is_dense(cells: Grid) -> np.ndarray:
    return (cells.configurations["attention"] == "dense").to_numpy()


def kinds(cells: Grid) -> np.ndarray:
    """The kind of attention of every configuration: `dense`, `block_topk` and so on."""
    return cells.configurations["attention"].str.partition(":")[0].to_numpy(str)
