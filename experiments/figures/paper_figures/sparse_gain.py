"""Sparse against dense attention: both frontiers, and the largest gain and saving between them; figures 1b and 14."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from kinetics_jax.errors import UserError
from paper_figures.common import Table, note
from paper_figures.frontiers import Curve, Split, budgets_of, by_model, frontier_table, is_dense, kinds

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


@dataclasses.dataclass(frozen=True, eq=False)
class Side:
    """What one kind of attention achieves, problem by problem, arrays [budgets, problems].

    `solved` is the accuracy of the model that the frontier chooses, 0 where a problem affords nothing. `affordable` is
    that of the best model in which every problem affords a whole sample (one trial, not cut); NaN at budgets where
    there is no such model.
    """

    solved: np.ndarray
    affordable: np.ndarray


def sparse_and_dense(splits: Sequence[Split], law: str, sparse: np.ndarray) -> tuple[pd.DataFrame, dict[str, Side]]:
    """Every model's frontier under both kinds of attention, with `kind`, and both sides at equal budgets."""
    first = splits[0].select
    budgets = budgets_of(splits, law)
    tables, sides = [], {}
    for kind, members in (("sparse", sparse), ("dense", is_dense(first))):
        table: Table
        table, curves = frontier_table(splits, law, by_model(first, members), budgets=budgets)
        best = np.zeros((len(budgets), len(first.problems)))
        for row in table[table["chosen"]].itertuples():
            i = int(np.searchsorted(budgets, row.budget))
            best[i] = curves[row.group].accuracy[i]
        groups = by_model(first, members)
        enough = np.stack([budgets >= whole_sample(splits, law, groups[name]) for name in curves])
        sides[kind] = Side(best, _affordable(list(curves.values()), enough))
        tables.append(table.rename(columns={"group": "model"}).assign(kind=kind))
    return pd.concat(tables, ignore_index=True).sort_values(by=["kind", "model", "budget"]), sides


def whole_sample(splits: Sequence[Split], law: str, members: np.ndarray) -> float:
    """From what cost on every problem affords one sample that is not cut, in some configuration of `members` (bool).

    Of a sample of mean length; with one configuration for all problems their mean counts, as it is what must fit.
    """
    most = 0.0
    for split in splits:
        table = split.select.configurations
        longest = table.groupby(["model", "attention"])["cap"].transform("max")
        whole = members & ((table["N"] == 1) & (table["cap"] == longest)).to_numpy()
        spent = split.select.spent(law)[whole]
        most = max(most, float(spent.mean(axis=1).min() if split.fixed else spent.min(axis=0).max()))
    return most


def _affordable(curves: Sequence[Curve], enough: np.ndarray) -> np.ndarray:
    """Accuracies of the best curve at every budget, of those affordable there (`enough`, bool [curves, budgets])."""
    accuracy = np.stack([curve.accuracy for curve in curves])  # [curves, budgets, problems]
    best = np.argmax(np.where(enough, accuracy.mean(axis=2), -1.0), axis=0)
    some = np.any(enough, axis=0)
    return np.where(some[:, None], accuracy[best, np.arange(len(best))], np.nan)


def gain(
    budgets: np.ndarray, sides: Mapping[str, Side], *, unaffordable_as_zero: bool = False, seed: int = 0
) -> dict[str, float]:
    """The largest gain in accuracy at equal cost, and the largest saving at equal accuracy, each with its interval.

    `gain`, between `gain_dense` and `gain_sparse` at `gain_budget`, is taken over the budgets [budgets] at which both
    sides afford a whole sample of every problem; absent where there are none. With `unaffordable_as_zero` the paper's
    own stands beside it, `paper_gain` and so on: over all budgets, what cannot be afforded counting 0. A `saving` is
    taken between the least budgets that reach an accuracy.
    """
    problems = sides["dense"].solved.shape[1]
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(problems, np.full(problems, 1 / problems), size=RESAMPLES) / problems
    weights = np.vstack([np.full(problems, 1 / problems), draws])
    both = np.flatnonzero(~np.isnan(sides["sparse"].affordable + sides["dense"].affordable).any(axis=1))
    gains: dict[str, float] = {}
    sparse, dense = (sides[kind] for kind in KINDS)
    if len(both):
        gains |= _largest("gain", weights, sparse.affordable[both], dense.affordable[both], budgets[both])
    if unaffordable_as_zero:
        gains |= _largest("paper_gain", weights, sparse.solved, dense.solved, budgets)
    means = {kind: weights @ sides[kind].solved.T for kind in KINDS}
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
        drawn = ratios[1:, level]
        drawn = drawn[~np.isnan(drawn)]  # infinite if dense attention never reaches the accuracy
        low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
        found = {"saving": ratios[0, level], "saving_low": low, "saving_high": high}
        found |= {"saving_accuracy": levels[level], "saving_budget": least["sparse"][0, level]}
        gains |= {name: float(value) for name, value in found.items()}
    return gains


def _largest(
    name: str, weights: np.ndarray, sparse: np.ndarray, dense: np.ndarray, budgets: np.ndarray
) -> dict[str, float]:
    """The largest difference of two sides [budgets, problems], its interval over `weights [1 + redraws, problems]`."""
    apart = weights @ (sparse - dense).T
    at = int(np.argmax(apart[0]))
    low, high = np.quantile(apart[1:, at], [0.025, 0.975])
    return {
        name: float(apart[0, at]),
        f"{name}_low": float(low),
        f"{name}_high": float(high),
        f"{name}_budget": float(budgets[at]),
        f"{name}_sparse": float(sparse[at].mean()),
        f"{name}_dense": float(dense[at].mean()),
    }


def arrows(axes: Axes, gains: Mapping[str, float], scale: float) -> None:
    """Draws the gain and the saving of `gain` with their intervals, unless these include no gain; the paper's own gain,
    where it was asked for, in grey and by that name.
    """
    for name, ink, words in (("paper_gain", "#777777", " (unaffordable as 0)"), ("gain", "#222222", "")):
        if gains.get(f"{name}_low", 0) > 0:
            arrow = {"arrowstyle": "<->", "color": ink, "lw": 1.0, "shrinkA": 0, "shrinkB": 0}
            ends = [100 * gains[f"{name}_{kind}"] for kind in ("dense", "sparse")]
            x = scale * gains[f"{name}_budget"]
            axes.annotate("", (x, ends[0]), (x, ends[1]), arrowprops=arrow, zorder=6)
            low, high = (100 * gains[f"{name}_{side}"] for side in ("low", "high"))
            text = f"+{100 * gains[name]:.0f} points{words}\n[{low:.0f}, {high:.0f}]\n{ends[0]:.0f} → {ends[1]:.0f} %"
            if name == "gain":
                below = min(ends[0], 100 * gains.get("saving_accuracy", 1))  # the saving's words stand under its arrow
                note(axes, text, (x, below), (-6, -15), va="top", ha="right", color=ink)
            else:
                note(axes, text, (x, ends[0]), (5, 4), va="bottom", color=ink)
    if gains.get("saving_low", 0) > 1:
        arrow = {"arrowstyle": "<->", "color": "#222222", "lw": 1.0, "shrinkA": 0, "shrinkB": 0}
        y, start = 100 * gains["saving_accuracy"], scale * gains["saving_budget"]
        axes.annotate("", (start, y), (start * gains["saving"], y), arrowprops=arrow, zorder=6)
        text = f"{gains['saving']:.1f}× [{gains['saving_low']:.1f}, {gains['saving_high']:.1f}]"
        note(axes, text, (start, y), (5, -4), va="top", ha="left")


def gain_flag(made: argparse.ArgumentParser) -> None:
    """Adds the flag of the paper's own definition of a gain."""
    made.add_argument(
        "--paper-gain",
        action="store_true",
        help="state beside the gain at costs that both sides afford the paper's own, to which what cannot be afforded "
        "counts as 0 (paper_gain)",
    )
