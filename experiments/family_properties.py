"""What a family of sizes, each trained with several seeds, shows of the scaling law: three properties, with intervals.

Intervals redraw problems, the same for all configurations, and the seeds of every size by themselves. Whatever is
chosen (a pair of configurations, an accuracy) is chosen on one half of the problems and measured on the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from kinetics_jax.analysis.grid import Grid, grid
from kinetics_jax.analysis.samples import Pool
from kinetics_jax.attention.policies.dense import Dense

RESAMPLES = 1000
ROUNDING = 1e-12  # values that differ by less are equal
BUDGETS = 200  # points of a cost range
LEVELS = np.arange(0.05, 1.0, 0.01)  # accuracies at which the two laws are compared


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, eq=False)
class Family:
    """`configurations`: `model` (a size), `parameters`, `attention`, `N`, smallest size first. Of each seed and
    problem: `accuracy`, pass@N, and `compute` and `memory` in Tera-eFLOPs, all [seeds, configurations, problems].
    """

    configurations: pd.DataFrame
    accuracy: np.ndarray
    compute: np.ndarray
    memory: np.ndarray

    @property
    def dense(self) -> np.ndarray:
        """Which configurations attend densely, bool [configurations]."""
        return (self.configurations["attention"] == str(Dense())).to_numpy()

    @property
    def sizes(self) -> int:
        """How many sizes there are."""
        return len(set(self.configurations["model"]))

    def half(self, which: int) -> Family:
        """Every other problem, from the first (0) or the second (1) on."""
        parts = (array[..., which::2] for array in (self.accuracy, self.compute, self.memory))
        return Family(self.configurations, *parts)

    def means(self, draw: Draw) -> Means:
        """Of every configuration, over the seeds and problems of a draw."""
        seeds = draw.seeds[pd.factorize(self.configurations["model"])[0]]  # [configurations, seeds]
        accuracy, compute, memory = (
            np.einsum("scp,cs,p->c", array, seeds, draw.problems)
            for array in (self.accuracy, self.compute, self.memory)
        )
        return Means(accuracy, compute, compute + memory)


class Draw(NamedTuple):
    """Weights that sum to 1: `problems` [problems], and `seeds` [sizes, seeds] of every size."""

    problems: np.ndarray
    seeds: np.ndarray


class Means(NamedTuple):
    """Of every configuration: accuracy, FLOPs (what the earlier law counts) and cost (FLOPs and reads), 1e12 each."""

    accuracy: np.ndarray
    flops: np.ndarray
    cost: np.ndarray


class Pair(NamedTuple):
    """Two configurations by their rows, and the larger one's accuracy minus the smaller one's, of the other half."""

    smaller: int
    larger: int
    difference: Interval
    cost_ratio: float


class Laws(NamedTuple):
    """At an accuracy: the rows that the earlier law (FLOPs) and this one (cost) choose; on the other half, what the
    first costs over the second, and what it gains in accuracy.
    """

    level: float
    flops: int
    cost: int
    ratio: Interval
    gain: Interval


def family_of(pools: Mapping[int, Sequence[Pool]], name: Callable[[str], str], **costs: Any) -> Family:
    """The family of runs, pools by seed in the same order of sizes and policies; `name` makes a size's name of a
    model's.

    `costs` and errors as in `analysis.grid.grid`. Raises ValueError where seeds have other configurations or problems.
    """
    grids: list[Grid] = [grid(some, **costs) for some in pools.values()]
    tables = [one.configurations.assign(model=one.configurations["model"].map(name)) for one in grids]
    for seed, table, one in zip(pools, tables, grids, strict=True):
        if not table.equals(tables[0]) or one.problems != grids[0].problems:
            raise ValueError(f"seed {seed} holds other configurations or problems than seed {next(iter(pools))}")
    arrays = (np.stack([getattr(one, part) for one in grids]) for part in ("accuracy", "compute", "memory"))
    order = np.argsort(tables[0]["parameters"].to_numpy(), kind="stable")
    return Family(tables[0].iloc[order].reset_index(drop=True), *(array[:, order] for array in arrays))


def whole(family: Family) -> Draw:
    """Every seed and problem once."""
    seeds, _, problems = family.accuracy.shape
    return Draw(np.full(problems, 1 / problems), np.full((family.sizes, seeds), 1 / seeds))


def redraws(family: Family, count: int = RESAMPLES, seed: int = 0) -> list[Draw]:
    """Problems, and the seeds of every size by themselves, drawn with replacement."""
    rng = np.random.default_rng(seed)
    seeds, _, problems = family.accuracy.shape

    def shares(rows: int, of: int) -> np.ndarray:
        return rng.multinomial(of, np.full(of, 1 / of), size=rows) / of

    return [Draw(shares(1, problems)[0], shares(family.sizes, seeds)) for _ in range(count)]


def interval(family: Family, statistic: Callable[[Means], float], *, of_accuracy: bool = False) -> Interval:
    """A statistic of the means, and the percentiles of its redraws.

    `of_accuracy`: the statistic is a difference of accuracies. Where all redraws agree, its interval is then that of P
    problems that may have missed a share q = 1 - 0.025^(1/P) unlike them, at either bound (as `cluster_bootstrap`).
    """
    value = float(statistic(family.means(whole(family))))
    values = [statistic(family.means(draw)) for draw in redraws(family)]
    low, high = (float(end) for end in np.nanquantile(values, [0.025, 0.975]))
    if of_accuracy and high - low < ROUNDING:
        unseen = 1 - 0.025 ** (1 / family.accuracy.shape[-1])
        low, high = ((1 - unseen) * value + unseen * bound for bound in (-1, 1))
    return Interval(value, low, high)


def envelope(means: Means, members: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """The best accuracy of the members within each budget; -inf where none is affordable."""
    order = np.argsort(means.cost[members], kind="stable")
    costs = means.cost[members][order]
    best = np.concatenate([[-np.inf], np.maximum.accumulate(means.accuracy[members][order])])
    return best[np.searchsorted(costs, budgets, side="right")]


def dominance(family: Family) -> tuple[Interval, Interval]:
    """Of the range of costs (in logarithms) from the cheapest dense configuration to the dearest, the share in which
    the sparse frontier is at least as accurate as the dense one; and how far below the dense one it ends.
    """
    dense = family.dense

    def frontiers(means: Means) -> tuple[np.ndarray, np.ndarray]:
        costs = means.cost[dense]
        budgets = np.geomspace(costs.min(), costs.max(), BUDGETS)
        return envelope(means, dense, budgets), envelope(means, ~dense, budgets)

    def share(means: Means) -> float:
        of_dense, of_sparse = frontiers(means)
        return float(np.mean(of_sparse >= of_dense))

    def behind(means: Means) -> float:
        of_dense, of_sparse = frontiers(means)
        return float(of_dense[-1] - of_sparse[-1])

    return interval(family, share), interval(family, behind, of_accuracy=True)


def larger_sparse(family: Family) -> Pair | None:
    """A sparse configuration of a larger size against a dense one of a smaller size that costs no less, by the largest
    gain on one half of the problems, measured on the other. None where there is no such pair.
    """
    means = family.half(0).means(whole(family.half(0)))
    size = pd.factorize(family.configurations["model"])[0]
    allowed = family.dense[:, None] & ~family.dense[None] & (size[:, None] < size[None])
    allowed &= means.cost[None] <= means.cost[:, None]
    if not allowed.any():
        return None
    gains = np.where(allowed, means.accuracy[None] - means.accuracy[:, None], -np.inf)
    smaller, larger = (int(i) for i in np.unravel_index(np.argmax(gains), gains.shape))
    other = family.half(1)
    measured = other.means(whole(other))
    difference = interval(other, lambda each: float(each.accuracy[larger] - each.accuracy[smaller]), of_accuracy=True)
    return Pair(smaller, larger, difference, float(measured.cost[larger] / measured.cost[smaller]))


def two_laws(family: Family) -> Laws | None:
    """The accuracy at which choosing by FLOPs, among dense configurations, costs most more than choosing by cost, where
    the two choose different sizes: found on one half of the problems, measured on the other. None where there is none.
    """
    means = family.half(0).means(whole(family.half(0)))
    model = family.configurations["model"].to_numpy()
    found: list[tuple[float, float, int, int]] = []
    for level in LEVELS:
        able = np.flatnonzero(family.dense & (means.accuracy >= level))
        if not len(able):
            break
        by_flops, by_cost = (int(able[np.argmin(spent[able])]) for spent in (means.flops, means.cost))
        if model[by_flops] != model[by_cost]:
            found.append((float(means.cost[by_flops] / means.cost[by_cost]), float(level), by_flops, by_cost))
    if not found:
        return None
    _, level, by_flops, by_cost = max(found)
    other = family.half(1)
    ratio = interval(other, lambda each: float(each.cost[by_flops] / each.cost[by_cost]))
    gain = interval(other, lambda each: float(each.accuracy[by_flops] - each.accuracy[by_cost]), of_accuracy=True)
    return Laws(level, by_flops, by_cost, ratio, gain)
