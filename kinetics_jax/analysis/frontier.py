"""From graded samples to accuracy against cost: a row per (model, attention, N), and which rows are worth running."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float

from kinetics_jax.analysis.defaults import rounded_accuracy
from kinetics_jax.analysis.grid import Grid, grid
from kinetics_jax.analysis.picked import with_rule
from kinetics_jax.analysis.samples import Pool, RunData, pooled
from kinetics_jax.costs.batching import Batch
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.costs.hardware import hardware as hardware_named
from kinetics_jax.costs.links import unknown_link
from kinetics_jax.stats.intervals import accuracy_interval, difference_interval

if TYPE_CHECKING:
    import pandas as pd


NOTHING_FITS = "not one sequence fits beside the weights"


def cost_frontier(
    runs: Iterable[RunData] | Iterable[Pool],
    *,
    convention: str = "traffic",
    hardware: str | Hardware | None = None,
    intensity: float | None = None,
    trials: Sequence[int] | None = None,
    caps: Sequence[int] | None = None,
    batch: Batch = "auto",
    chips: int = 1,
    shared_prompt: bool = False,
    kv_bytes: float | None = None,
    weight_bytes: float | None = None,
    rule: str = "pass",
) -> pd.DataFrame:
    """Accuracy and cost of every (model, attention, N): a table with one row each, in the order of the runs.

    Columns: `model`, its `parameters` (used per token), `attention` (its spelling), `N`; `problems`, `samples`,
    `undecided` behind the row (and `dropped`, see `samples.pooled`); the decision `rule` (`rules.Rule`), its
    `accuracy`, mean over problems, and the 95 % interval `low` … `high` from redrawing problems (a fixed seed; see
    `stats.intervals.accuracy_interval`); where a model has dense attention beside another, `difference`, the accuracy
    less that of dense attention at the same N and cap, with its paired interval `difference_low` … `difference_high`;
    under the rule `pass` also `majority` and what else can pick an answer, each with its interval, see
    `picked.with_picks`; `mean_output_tokens` of a sample, mean over problems; `compute`, `memory` and `cost`, the mean
    Tera-eFLOPs per problem of N trials over the measured lengths (equation 10), and on several chips `communication`,
    which `cost` holds too, where their link is known; `batch_rule` and `batch`, how many sequences share the reads of
    the weights (`grid.Grid`); beside `cost` what it would be with the weights for free (`cost_without_weights`), and at
    `batch_full`, what fits when every sequence may grow to its cap (`cost_full`); `on_frontier`, see `pareto`. Where
    not one sequence fits, `batch` is 0, costs are NaN, the row is on no frontier, and a column `no_cost` says why. Of a
    pool whose source states its samples' `cost`, `batch_rule` is "own", and what makes up the cost is NaN. `attrs` says
    how cost was counted: `convention`, `hardware` (None with an intensity), `intensity`, `chips`, `batch_rule`; and the
    `rule`.

    Runs of one model and attention are pooled; the order of samples does not matter. `trials` defaults to the powers
    of two up to the fewest graded samples of a problem. With `caps` there is a row for every cap on the tokens of a
    sample too, and a column `cap` behind N; see `grid.grid`. Undecided samples count as unsolved, unless the pools drop
    them. How a sample ended does not matter: one that was cut off or repeated itself counts by its grade and its length
    like any other. Raises SamplesError as `pooled`
    does, and for a run without the architecture or the token counts that a cost needs; EstimateError for more trials
    than graded samples; CostError and HardwareError for costs that cannot be computed.
    """
    import pandas as pd

    pools = pooled(runs)
    costs: dict[str, Any] = {"convention": convention, "hardware": hardware, "intensity": intensity}
    costs |= {"kv_bytes": kv_bytes, "weight_bytes": weight_bytes, "batch": batch, "chips": chips}
    cells = grid(pools, trials=trials, caps=caps, shared_prompt=shared_prompt, rule=rule, **costs)
    differences = against_dense(cells, pools)
    chip = hardware if isinstance(hardware, Hardware) else hardware_named(hardware or "h100")
    linked = unknown_link(chip, chips) is None
    names, attentions = (cells.configurations[column].to_numpy() for column in ("model", "attention"))
    tables = []
    for pool in pools:
        mine = (names == pool.model) & (attentions == str(pool.attention))
        of_pool, own = cells.rows(mine), pool.owns("cost")
        low, high = accuracy_interval(of_pool.accuracy.T)
        table = of_pool.configurations
        batches = {name: table[name].to_numpy() for name in ("batch", "batch_full")}
        table = table.drop(columns=[*batches, *(["cap"] if caps is None else [])])
        tables.append(
            table.assign(
                **pool.counts,
                rule=rule,
                accuracy=rounded_accuracy(np.mean(of_pool.accuracy, axis=1)),
                low=low,
                high=high,
                **{name: column[mine] for name, column in differences.items()},
                mean_output_tokens=np.mean(of_pool.tokens, axis=1),
                compute=np.nan if own else _mean(of_pool.compute),
                memory=np.nan if own else _mean(of_pool.memory),
                **(
                    {"communication": _mean(of_pool.communication) if linked and not own else np.nan}
                    if chips > 1
                    else {}
                ),
                cost=_mean(of_pool.cost),
                batch_rule="own" if own else cells.batch_rule,
                **batches,
                cost_without_weights=np.nan if own else _mean(of_pool.cost_without_weights),
                cost_full=np.nan if own else _mean(of_pool.cost_full),
            )
        )
    table = pd.concat(tables, ignore_index=True)
    if np.any(table["cost"].isna()):
        table["no_cost"] = [NOTHING_FITS if lost else None for lost in table["cost"].isna()]
    table["on_frontier"] = pareto(table["cost"].to_numpy(), table["accuracy"].to_numpy())
    name = hardware.name if isinstance(hardware, Hardware) else hardware
    table.attrs = {
        "convention": convention,
        "hardware": name if intensity is not None or name else "h100",
        "intensity": intensity,
        "chips": chips,
        "batch_rule": cells.batch_rule,
        "rule": rule,
    }
    return with_rule(table, pools, rule)


def against_dense(cells: Grid, pools: Sequence[Pool]) -> dict[str, Float[np.ndarray, " configurations"]]:
    """Columns `difference`, `difference_low`, `difference_high`: accuracy less that of the same model's dense attention
    at the same N and cap, paired by problem; NaN for rows without such, or where that was run with other settings.
    Empty where no row has one.
    """
    keys = [tuple(row) for row in cells.configurations[["model", "N", "cap"]].to_numpy().tolist()]
    names = list(zip(cells.configurations["model"], cells.configurations["attention"], strict=True))
    of = {(pool.model, str(pool.attention)): pool for pool in pools}
    dense = {key: row for row, key in enumerate(keys) if names[row][1] == "dense"}
    rows = [
        row
        for row, key in enumerate(keys)
        if key in dense and names[row][1] != "dense" and not of[names[row]].settings_apart(of[key[0], "dense"])
    ]
    if not rows:
        return {}
    others = [dense[keys[row]] for row in rows]
    low, high = difference_interval(cells.accuracy[rows].T, cells.accuracy[others].T)
    middle = rounded_accuracy(np.mean(cells.accuracy[rows] - cells.accuracy[others], axis=1))
    columns = {}
    for name, values in zip(("difference", "difference_low", "difference_high"), (middle, low, high), strict=True):
        columns[name] = np.full(len(keys), np.nan)
        columns[name][rows] = values
    return columns


def crossings(table: pd.DataFrame, spent: str = "cost") -> list[tuple[float, str]]:
    """From which cost on which (model, attention) leads the frontier of a table, cheapest first: where the lead
    changes.

    `spent`: the column of costs. Accuracy is the table's own, by its rule.
    """
    on = table.loc[table["on_frontier"].to_numpy(bool)].sort_values(by=[spent, "accuracy"], kind="stable")
    leads: list[tuple[float, str]] = []
    for row in on.to_dict("records"):
        name = f"{row['model']} {row['attention']}"
        if not leads or leads[-1][1] != name:
            leads.append((float(row[spent]), name))
    return leads


def weights_in(table: pd.DataFrame) -> tuple[str, float | None]:
    """The rule by which a table's costs hold the weights (`batching.Rule`; "own" where all rows state their own costs),
    and the batch where one was given.
    """
    rules = list(table["batch_rule"])
    first = next((row for row, rule in enumerate(rules) if rule != "own"), None)
    if first is None:
        return "own", None
    given = rules[first] == "given" and "batch" in table
    return str(rules[first]), float(table["batch"].iloc[first]) if given else None


def _mean(amounts: Float[np.ndarray, "configurations problems"]) -> Float[np.ndarray, " configurations"]:
    """Over problems; NaN where an amount is infinite, since not one sequence fits."""
    means = np.mean(amounts, axis=1)
    return np.where(np.isfinite(means), means, np.nan)


def pareto(cost: Float[npt.ArrayLike, " rows"], accuracy: Float[npt.ArrayLike, " rows"]) -> Bool[np.ndarray, " rows"]:
    """Which rows no other row dominates by being at least as accurate and at most as
    costly, and strictly one of the two. Equal rows are kept or dropped together. NaN is dropped.
    """
    cost, accuracy = np.asarray(cost, np.float64), np.asarray(accuracy, np.float64)
    kept = np.zeros(len(cost), bool)
    best, best_cost = -np.inf, np.nan
    for row in np.lexsort((-accuracy, cost)):  # by cost; the most accurate first among equals
        if accuracy[row] > best and not np.isnan(cost[row]):
            best, best_cost = accuracy[row], cost[row]
        kept[row] = accuracy[row] == best and cost[row] == best_cost
    return kept
