"""Sparse against dense attention: both frontiers, and the largest gain and saving between them; figures 1b and 14."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kinetics_jax.errors import UserError
from kinetics_jax.stats.intervals import difference_interval
from paper_figures.common import Table, note
from paper_figures.frontiers import Split, budgets_of, by_model, frontier_table, is_dense, kinds

KINDS = {"sparse": ("o", "-"), "dense": ("^", (0, (4, 1.5)))}  # marker, dashes
RESAMPLES = 2000


def sparse_members(splits: Sequence[Split], kind: str | None) -> np.ndarray:
    """Which configurations are sparse (of `kind`, if given), bool. Raises UserError unless there are dense ones too."""
    kind_of = kinds(splits[0].select)
    sparse = kind_of == kind if kind else kind_of != "dense"
    if not sparse.any() or not (kind_of == "dense").any():
        present = ", ".join(sorted(set(kind_of)))
        raise UserError(f"runs of dense and of {kind or 'sparse'} attention are wanted; these are of {present}")
    return sparse


def sparse_and_dense(
    splits: Sequence[Split], law: str, sparse: np.ndarray
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Every model's frontier under both kinds of attention, with `kind`, and the chosen ones' accuracy per problem."""
    first = splits[0].select
    budgets = budgets_of(splits, law)
    tables, solved = [], {}
    for kind, members in (("sparse", sparse), ("dense", is_dense(first))):
        table: Table
        table, curves = frontier_table(splits, law, by_model(first, members), budgets=budgets)
        best = np.zeros((len(budgets), len(first.problems)))
        for row in table[table["chosen"]].itertuples():
            i = int(np.searchsorted(budgets, row.budget))
            best[i] = curves[row.group].accuracy[i]
        solved[kind] = best
        tables.append(table.rename(columns={"group": "model"}).assign(kind=kind))
    return pd.concat(tables, ignore_index=True).sort_values(by=["kind", "model", "budget"]), solved


def gain(table: pd.DataFrame, solved: Mapping[str, np.ndarray], *, seed: int = 0) -> dict[str, float]:
    """The largest gain in accuracy at equal cost, and the largest saving at equal accuracy, each with its interval.

    `table`: the chosen rows; `solved`: their accuracy per problem, [budgets, problems], at equal budgets for both
    kinds. A saving is taken between the least budgets that reach an accuracy.
    """
    problems = solved["dense"].shape[1]
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(problems, np.full(problems, 1 / problems), size=RESAMPLES) / problems
    budgets = np.unique(table["budget"])
    means = {kind: np.vstack([np.full(problems, 1 / problems), draws]) @ solved[kind].T for kind in KINDS}
    apart = means["sparse"] - means["dense"]
    at = int(np.argmax(apart[0]))
    low, high = difference_interval(solved["sparse"][at], solved["dense"][at])
    gains = {"gain": apart[0, at], "gain_low": low, "gain_high": high, "gain_budget": budgets[at]}
    levels = np.arange(0.1, 1, 0.01)
    least = {
        kind: np.where(means[kind][:, None, :] >= levels[None, :, None] - 1e-12, budgets, np.inf).min(axis=2)
        for kind in KINDS
    }
    with np.errstate(invalid="ignore"):
        ratios = least["dense"] / least["sparse"]
    known = np.flatnonzero(np.isfinite(ratios[0]))
    if len(known):
        level = known[np.argmax(ratios[0, known])]
        drawn = ratios[1:, level][
            ~np.isnan(ratios[1:, level])
        ]  # infinite if dense attention never reaches the accuracy
        low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
        gains |= {"saving": ratios[0, level], "saving_low": low, "saving_high": high}
        gains |= {"saving_accuracy": levels[level], "saving_budget": least["sparse"][0, level]}
    return gains


def arrows(axes: Axes, table: Table, gains: Mapping[str, float], scale: float) -> None:
    """Draws the gain and the saving of `gain` with their intervals, unless these include no gain."""
    arrow = {"arrowstyle": "<->", "color": "#222222", "lw": 1.0, "shrinkA": 0, "shrinkB": 0}
    here = table[table["chosen"] & np.isclose(table["budget"], gains["gain_budget"])].set_index("kind")["accuracy"]
    ends = [100 * here.get(kind, 0.0) for kind in ("dense", "sparse")]
    x = scale * gains["gain_budget"]
    if gains["gain_low"] > 0:
        axes.annotate("", (x, ends[0]), (x, ends[1]), arrowprops=arrow, zorder=6)
        text = f"+{100 * gains['gain']:.0f} points\n[{100 * gains['gain_low']:.0f}, {100 * gains['gain_high']:.0f}]"
        note(axes, text, (x, sum(ends) / 2), (4, 0), va="center")
    if gains.get("saving_low", 0) > 1:
        y, start = 100 * gains["saving_accuracy"], scale * gains["saving_budget"]
        axes.annotate("", (start, y), (start * gains["saving"], y), arrowprops=arrow, zorder=6)
        text = f"{gains['saving']:.1f}× [{gains['saving_low']:.1f}, {gains['saving_high']:.1f}]"
        note(axes, text, (start * gains["saving"], y), (-3, -4), va="top", ha="right")
