"""What each problem is given: the paper's Algorithms 1 and 2, one configuration for all, and both on unseen samples.

Both algorithms are one rule over different grids: for every problem, of the configurations that cost at most C, the one
with the highest accuracy. Algorithm 1 (Best-of-N) chooses among (model, attention, N), Algorithm 2 (long chains of
thought) among (model, attention, cap) at N = 1. The rule knows how every problem turned out: with few samples it picks
lucky configurations, and `honest_allocation` says by how much.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Int

from kinetics_jax.analysis.defaults import max_sample_tokens, rounded_accuracy, trials_of_halves
from kinetics_jax.analysis.frontier import pareto
from kinetics_jax.analysis.grid import Grid, grid, split_in_halves
from kinetics_jax.analysis.pricing import Pricing, batches
from kinetics_jax.analysis.samples import Pool, SamplesError, undecided_counts
from kinetics_jax.stats.intervals import accuracy_interval

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True, eq=False)
class Allocation:
    """`limits`: cost allowed per problem, Tera-eFLOPs. `choice`: the row of the grid, -1 if nothing is affordable
    (accuracy 0, cost 0). `accuracy` and `cost`: what it gives.
    """

    limits: Float[np.ndarray, " limits"]
    choice: Int[np.ndarray, "limits problems"]
    accuracy: Float[np.ndarray, "limits problems"]
    cost: Float[np.ndarray, "limits problems"]


def best_per_problem(cells: Grid, limits: Float[npt.ArrayLike, " limits"], *, law: str = "eFLOPs") -> Allocation:
    """Algorithms 1 and 2: per problem, the most accurate configuration that costs at most C; the cheapest of equals.

    The best is found anew for every problem. The paper's curves are means over problems of `accuracy`. `law` says what
    counts as cost when choosing, `Grid.spent`; the allocation's own `cost` is eFLOPs under any.
    """
    limits, spent = _limits(limits), cells.spent(law)
    choice = np.full((len(limits), len(cells.problems)), -1)
    for problem in range(len(cells.problems)):
        choice[:, problem] = _best_within(spent[:, problem], cells.accuracy[:, problem], limits)
    return apply_choice(cells, limits, choice)


def best_for_all(cells: Grid, limits: Float[npt.ArrayLike, " limits"], *, law: str = "eFLOPs") -> Allocation:
    """One configuration for all problems: the most accurate on average that costs at most C on average, by a law."""
    limits = _limits(limits)
    choice = _best_within(cells.spent(law).mean(axis=1), rounded_accuracy(cells.accuracy.mean(axis=1)), limits)
    return apply_choice(cells, limits, np.repeat(choice[:, None], len(cells.problems), axis=1))


def apply_choice(
    cells: Grid, limits: Float[np.ndarray, " limits"], choice: Int[np.ndarray, "limits problems"]
) -> Allocation:
    """What choices give on a grid: the one they were made on, or another with the same rows."""
    columns = np.arange(len(cells.problems))

    def given(values: np.ndarray) -> np.ndarray:
        return np.where(choice >= 0, values[choice, columns], 0.0)

    return Allocation(limits, choice, given(cells.accuracy), given(cells.cost))


def allocation_table(cells: Grid, allocation: Allocation, *, confidence: float = 0.95) -> pd.DataFrame:
    """A row per limit: `limit`, the decision `rule`, `accuracy` (mean over problems) with its interval `low` … `high`
    from redrawing problems, `cost` (mean), and the configuration that most problems get (`model`, `attention`, `N`,
    `cap`, `batch`, the cheaper of equally frequent ones) with the `share` of problems that get it; `afforded`, the
    share of problems that can afford any (the others count as not solved, at no cost); `batch_rule` (`batching.Rule`),
    and `undecided` samples behind all of it (and `dropped`, see `samples.pooled`). Where no problem affords any,
    accuracy and cost are NaN and there is no configuration.

    The interval is that of these choices; it knows nothing of their optimism.
    """
    import pandas as pd

    low, high = accuracy_interval(allocation.accuracy.T, confidence=confidence)
    mean_cost = cells.cost.mean(axis=1)
    rows = []
    for i, limit in enumerate(allocation.limits):
        used, counts = np.unique(allocation.choice[i], return_counts=True)
        best = min(zip(-counts, mean_cost[used], used, strict=True))[2] if used.max() >= 0 else -1
        names = [name for name in ("model", "attention", "N", "cap", "batch") if name in cells.configurations]
        named: dict[str, Any] = dict.fromkeys(names)
        afforded = float(np.mean(allocation.choice[i] >= 0))
        known = np.nan if not afforded else 1.0
        if best >= 0:
            named = {name: cells.configurations[name].to_numpy()[best] for name in named}
        rows.append(
            {
                "limit": limit,
                "rule": cells.rule,
                "accuracy": known * float(np.mean(allocation.accuracy[i])),
                "low": known * float(low[i]),
                "high": known * float(high[i]),
                "cost": known * float(np.mean(allocation.cost[i])),
                **named,
                "share": known * float(np.mean(allocation.choice[i] == best)),
                "afforded": afforded,
                "batch_rule": cells.batch_rule,
                **cells.undecided,
            }
        )
    return pd.DataFrame(rows)


def honest_allocation(
    pools: Sequence[Pool],
    limits: Float[npt.ArrayLike, " limits"],
    *,
    law: str = "eFLOPs",
    splits: int = 20,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """What choosing is worth on samples that it has not seen: chosen on one half of every problem's samples, scored on
    the other; the mean over `splits` random halvings, each used both ways.

    A row per limit and `choice`: `per_problem` (`best_per_problem`) and `for_all` (`best_for_all`). Columns `limit`,
    `choice`, the decision `rule`; `accuracy` on the unseen half with its interval `low` … `high` from redrawing
    problems, `cost` spent there, which may exceed the limit; `seen`, the accuracy that the choosing half promised;
    `optimism`, the difference; `afforded`, the share of problems and halves that can afford anything (where it is 0
    there is no number: NaN); `batch_rule` (`batching.Rule`); `undecided` samples (and `dropped`).

    `options` are those of `grid.grid`; N goes up to half of each pool's own samples. `on_progress` is called with
    (halvings done, all). Raises SamplesError for less than one halving, and as `grid.grid` and `grid.split_in_halves`
    do.
    """
    import pandas as pd

    limits = _limits(limits)
    if splits < 1:
        raise SamplesError(f"an honest allocation needs at least one halving, got {splits}")
    rules = {"per_problem": best_per_problem, "for_all": best_for_all}
    shape = len(limits), len(pools[0].problems)
    unseen, seen, spent, able = ({name: np.zeros(shape) for name in rules} for _ in range(4))
    if options.get("trials") is None:
        options["trials"] = trials_of_halves(pools)
    rule_of_batch = ""
    _warn_once(pools, options)
    for split in range(splits):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of every half what was said of the whole
            one, two = (grid(half, **options) for half in split_in_halves(pools, seed + split))
        rule_of_batch = one.batch_rule
        for chosen_on, scored_on in ((one, two), (two, one)):
            for name, rule in rules.items():
                chosen = rule(chosen_on, limits, law=law)
                elsewhere = apply_choice(scored_on, limits, chosen.choice)
                seen[name] += chosen.accuracy
                unseen[name] += elsewhere.accuracy
                spent[name] += elsewhere.cost
                able[name] += chosen.choice >= 0
        if on_progress:
            on_progress(split + 1, splits)
    rows = []
    for name in rules:
        accuracy = unseen[name] / (2 * splits)
        low, high = accuracy_interval(accuracy.T)
        promised = seen[name].mean(axis=1) / (2 * splits)
        afforded = able[name].mean(axis=1) / (2 * splits)
        known = np.where(afforded > 0, 1.0, np.nan)
        rows += [
            {
                "limit": limit,
                "choice": name,
                "rule": options.get("rule", "pass"),
                "accuracy": float(known[i] * accuracy[i].mean()),
                "low": float(known[i] * low[i]),
                "high": float(known[i] * high[i]),
                "cost": float(known[i] * spent[name][i].mean() / (2 * splits)),
                "seen": float(known[i] * promised[i]),
                "optimism": float(known[i] * (promised[i] - accuracy[i].mean())),
                "afforded": float(afforded[i]),
                "batch_rule": rule_of_batch,
                **undecided_counts(pools),
            }
            for i, limit in enumerate(limits)
        ]
    return pd.DataFrame(rows)


def _warn_once(pools: Sequence[Pool], options: dict[str, Any]) -> None:
    """The warnings of `pricing.batches` on the whole pools: halves have them alike, each with numbers of its own."""
    fields = {field.name for field in dataclasses.fields(Pricing)}
    pricing = Pricing(**{name: value for name, value in options.items() if name in fields})
    for pool in pools:
        if not pool.owns("cost"):
            batches(pool, pricing, options.get("caps") or [max_sample_tokens(pool)])


def envelope(table: pd.DataFrame, *, smooth: int = 0) -> pd.DataFrame:
    """The best of all rows of a table with `cost` and `accuracy` at every cost: the rows that `pareto` keeps, cheapest
    first, one of equal ones (the first). Each keeps its own labels, so that the label at a cost is that of the row
    which makes the envelope there.

    `smooth`, odd, replaces accuracies by their running median over `smooth` rows, kept non-decreasing; 0 keeps them.
    Raises SamplesError for another number.
    """
    if smooth and (smooth < 0 or smooth % 2 == 0):
        raise SamplesError(f"smooth must be 0 or an odd number of rows, got {smooth}")
    kept = table.loc[pareto(table["cost"].to_numpy(), table["accuracy"].to_numpy())]
    kept = kept.sort_values(by=["cost", "accuracy"], kind="stable").drop_duplicates(["cost", "accuracy"])
    kept = kept.reset_index(drop=True)
    if smooth:
        accuracy, reach = kept["accuracy"].to_numpy(), smooth // 2
        medians = [np.median(accuracy[max(0, i - reach) : i + reach + 1]) for i in range(len(accuracy))]
        kept["accuracy"] = np.maximum.accumulate(medians)
    return kept


def cost_limits(cells: Grid, count: int = 32, *, law: str = "eFLOPs") -> Float[np.ndarray, " count"]:
    """`count` limits, evenly spaced in the logarithm, from the lowest to the highest cost of a cell, by a law; costs of
    0 aside.

    Raises SamplesError where no configuration fits the hardware, and where all are free.
    """
    spent = cells.spent(law)
    if not np.any(np.isfinite(spent)):
        raise SamplesError("no configuration fits the hardware, so there are no cost limits; give more chips or others")
    finite = spent[np.isfinite(spent) & (spent > 0)]
    if not finite.size:
        raise SamplesError("all configurations cost 0, so there are no cost limits to choose within")
    return np.geomspace(finite.min(), finite.max() * (1 + 1e-9), count)


def _best_within(cost: np.ndarray, accuracy: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Row of the highest accuracy at a cost of at most each limit, the cheapest of equals; -1 if none is affordable."""
    order = np.lexsort((-accuracy, cost))  # by cost; the most accurate first among equals
    ordered = accuracy[order]
    leads = np.concatenate([[True], ordered[1:] > np.maximum.accumulate(ordered)[:-1]])
    best = np.maximum.accumulate(np.where(leads, np.arange(len(order)), 0))  # the latest row to take the lead
    affordable = np.searchsorted(cost[order], limits, side="right") - 1
    return np.where(affordable >= 0, order[best[np.maximum(affordable, 0)]], -1)


def _limits(limits: npt.ArrayLike) -> np.ndarray:
    limits = np.atleast_1d(np.asarray(limits, np.float64))
    if limits.ndim != 1 or not limits.size or not np.all((limits >= 0) & np.isfinite(limits)):
        raise SamplesError(f"cost limits must be numbers from 0 up, Tera-eFLOPs per problem, got {limits}")
    return limits
