"""Both laws on one chip at one price of the weights: at equal accuracy and at equal cost, seen and unseen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kinetics_jax.stats.intervals import accuracy_interval, difference_interval
from real_models import laws
from real_models.data import Stratum
from real_models.prices import CAPS, CHIPS, cells_of

LEVELS = np.round(np.arange(0.50, 0.96, 0.01), 2)
OVERALL = (0.50, 0.90)  # the accuracies over which a mean ratio is taken, whatever the ratios are
LIMITS = 48
LEAST = 0.3  # accuracy from which on a configuration counts where costs are equal
SURE = 0.975  # of redraws, or of halves, must reach an accuracy for it to be compared


def comparison(stratum: Stratum, chip: str, weights: str, caps: Sequence[int] = CAPS) -> dict[str, Any]:
    """What both laws choose: `levels` at equal accuracy and, on the first chip, `limits` at equal cost, by columns; the
    geometric mean of the ratios over the accuracies OVERALL; the mean gain and the largest at equal cost.
    """
    cells = cells_of(stratum, CHIPS[chip], weights, caps)
    names = [pool.model for pool in stratum.pools]
    found, unseen = laws.compare_levels(cells, LEVELS), laws.honest_levels(cells, LEVELS)
    known = np.isfinite(found.ratios[0]) & (np.mean(np.isfinite(found.ratios), axis=0) >= SURE)
    told = _unseen_levels(unseen)
    levels = [_level(cells, names, found, i) | told[i] for i in np.flatnonzero(known).tolist()]
    inside = known & (OVERALL[0] - 1e-9 <= LEVELS) & (OVERALL[1] + 1e-9 >= LEVELS)
    limits, equal_cost = _limits(cells, names)
    return {
        "levels": columns_of(levels),
        **({"limits": columns_of(limits)} if chip == next(iter(CHIPS)) else {}),
        "equal_cost": equal_cost,
        "overall": {
            "levels": int(inside.sum()),
            "levels_that_differ": int(np.sum(found.models[0, 0, inside] != found.models[1, 0, inside])),
            **with_ends(np.exp(np.nanmean(np.log(found.ratios[:, inside]), axis=1))),
            "unseen": _overall(unseen, inside),
        },
    }


def curves(stratum: Stratum, chip: str, weights: str) -> dict[str, list[Any]]:
    """Every (model, cap): what it solves, with its interval, and what it costs; for the figure."""
    cells = cells_of(stratum, CHIPS[chip], weights)
    low, high = accuracy_interval(cells.accuracy.T)
    return {
        "model": [stratum.pools[model].model for model in cells.model],
        "cap": cells.cap.tolist(),
        "accuracy": cells.accuracy.mean(axis=1).tolist(),
        "low": low.tolist(),
        "high": high.tolist(),
        "eflops": cells.eflops.mean(axis=1).tolist(),
    }


def rows_of(columns: Mapping[str, list[Any]]) -> list[dict[str, Any]]:
    """A table that is kept by columns, row by row."""
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def columns_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """A table by columns, as the JSON keeps it."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def with_ends(draws: np.ndarray) -> dict[str, float]:
    """The first ratio, and the middle 95 % of the others; draws in which it does not exist are left out."""
    low, high = np.nanquantile(draws[1:], [0.025, 0.975])
    return {"ratio": float(draws[0]), "low": float(low), "high": float(high)}


def _chosen(cells: laws.Cells, names: list[str], law: str, row: int) -> dict[str, Any]:
    return {law: names[int(cells.model[row])], f"{law}_cap": int(cells.cap[row])}


def _level(cells: laws.Cells, names: list[str], found: laws.Levels, i: int) -> dict[str, Any]:
    models = found.models[:, 1:, i]
    reached = models[0] >= 0
    return {
        "accuracy": float(LEVELS[i]),
        **_chosen(cells, names, "by_flops", int(found.by_flops[i])),
        **_chosen(cells, names, "by_eflops", int(found.by_eflops[i])),
        **with_ends(found.ratios[:, i]),
        "redraws_that_differ": float(np.mean((models[0] != models[1])[reached])),
        "redraws_larger": float(np.mean((models[1] > models[0])[reached])),
    }


def _unseen_levels(unseen: laws.Unseen) -> list[dict[str, Any]]:
    """For every accuracy, on questions that the choice has not seen; None where too few halves reach it."""
    names = ("unseen", "unseen_low", "unseen_high", "halves_that_differ", "unseen_gain", "gain_low", "gain_high")
    use = unseen.reached >= SURE
    ratios = laws.redrawn_ratios(unseen.paid_by_flops[use], unseen.paid_by_eflops[use])
    right = unseen.right_by_eflops[use], unseen.right_by_flops[use]
    found = np.stack(
        [
            ratios[0],
            *np.quantile(ratios[1:], [0.025, 0.975], axis=0),
            unseen.differ[use],
            (right[0] - right[1]).mean(axis=1),
            *difference_interval(right[0].T, right[1].T),
        ],
        axis=1,
    )
    rows: list[dict[str, Any]] = [dict.fromkeys(names) for _ in LEVELS]
    for i, values in zip(np.flatnonzero(use), found.tolist(), strict=True):
        rows[i] = dict(zip(names, values, strict=True))
    return rows


def _overall(unseen: laws.Unseen, inside: np.ndarray) -> dict[str, Any]:
    """The geometric mean of the unseen ratios, of the accuracies that enough halves reach."""
    use = inside & (unseen.reached >= SURE)
    ratios = laws.redrawn_ratios(unseen.paid_by_flops[use], unseen.paid_by_eflops[use])
    return {"levels": int(use.sum()), **with_ends(np.exp(np.mean(np.log(ratios), axis=1)))}


def _limits(cells: laws.Cells, names: list[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Both laws at every cost limit, from the cheapest configuration that solves LEAST to the dearest: LIMITS of them
    evenly in the logarithm, and where the frontier of eFLOPs has a step. And what the eFLOPs law gains on unseen
    questions, the mean over the even limits that all halves afford, beside the row of the largest gain.
    """
    accuracy, _, means = (values[0] for values in cells.means(laws.whole(cells)))
    least = means[accuracy >= LEAST].min()
    even = np.geomspace(least, means.max() * (1 + 1e-9), LIMITS)
    steps = means[laws.staircase(accuracy[None], means[None]).members()[0]]
    limits = np.unique(np.concatenate([even, steps[steps >= least]]))
    found = laws.compare_limits(cells, limits)
    by_flops, by_eflops = laws.honest_limits(cells, limits)
    unseen = (by_eflops - by_flops).mean(axis=1)
    scored = np.isfinite(unseen)
    ends = np.full((2, len(limits)), np.nan)
    ends[:, scored] = difference_interval(by_eflops[scored].T, by_flops[scored].T)
    rows = []
    for i in np.flatnonzero(np.isfinite(found.gains[0])):
        low, high = np.nanquantile(found.gains[1:, i], [0.025, 0.975])
        rows.append(
            {
                "limit": float(limits[i]),
                **_chosen(cells, names, "by_flops", int(found.by_flops[i])),
                **_chosen(cells, names, "by_eflops", int(found.by_eflops[i])),
                "solved": float(cells.accuracy[found.by_eflops[i]].mean()),
                "gain": float(found.gains[0, i]),
                "low": float(low),
                "high": float(high),
                "unseen": float(unseen[i]) if scored[i] else None,
                "unseen_low": float(ends[0, i]) if scored[i] else None,
                "unseen_high": float(ends[1, i]) if scored[i] else None,
            }
        )
    use = scored & np.isin(limits, even)
    low, high = difference_interval(by_eflops[use].mean(axis=0), by_flops[use].mean(axis=0))
    summary = {"limits": int(use.sum()), "unseen": float(unseen[use].mean()), "low": float(low), "high": float(high)}
    return rows, summary | {"largest": max(rows, key=lambda row: row["gain"])}
