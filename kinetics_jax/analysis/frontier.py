"""From graded samples to accuracy against cost: a row per (model, attention, N), and which rows are worth running."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float

from kinetics_jax.analysis.defaults import rounded_accuracy
from kinetics_jax.analysis.grid import grid
from kinetics_jax.analysis.picked import with_picks
from kinetics_jax.analysis.samples import Pool, RunData, pooled
from kinetics_jax.costs.batching import Batch
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.stats.intervals import accuracy_interval

if TYPE_CHECKING:
    import pandas as pd


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
) -> pd.DataFrame:
    """Accuracy and cost of every (model, attention, N): a table with one row each, in the order of the runs.

    Columns: `model`, its `parameters` (used per token), `attention` (its spelling), `N`; `problems`, `samples`,
    `undecided` behind the row (and `dropped`, see `samples.pooled`); `accuracy`, the mean over problems of pass@N, and
    the 95 % interval `low` … `high` from redrawing problems (a fixed seed; see `stats.intervals.accuracy_interval`);
    `majority` and what else can pick an answer, each with its interval, see `picked.with_picks`;
    `mean_output_tokens` of a sample, mean over problems; `compute`, `memory` and `cost`, the mean Tera-eFLOPs per
    problem of N trials over the measured lengths (equation 10); `batch_rule` and `batch`, how many sequences share the
    reads of the weights (`grid.Grid`); beside `cost` what it would be with the weights for free
    (`cost_without_weights`), and at `batch_full`, what fits when every sequence may grow to its cap (`cost_full`);
    `on_frontier`, see `pareto`. Where not one sequence fits, `batch` is 0, costs are NaN, and the row is on no
    frontier. `attrs` says how cost was counted: `convention`, `hardware` (None with an intensity), `intensity`,
    `chips`, `batch_rule`.

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
    cells = grid(pools, trials=trials, caps=caps, shared_prompt=shared_prompt, **costs)
    names, attentions = (cells.configurations[column].to_numpy() for column in ("model", "attention"))
    tables = []
    for pool in pools:
        of_pool = cells.rows((names == pool.model) & (attentions == str(pool.attention)))
        low, high = accuracy_interval(of_pool.accuracy.T)
        table = of_pool.configurations
        batches = {name: table[name].to_numpy() for name in ("batch", "batch_full")}
        table = table.drop(columns=[*batches, *(["cap"] if caps is None else [])])
        tables.append(
            table.assign(
                **pool.counts,
                accuracy=rounded_accuracy(np.mean(of_pool.accuracy, axis=1)),
                low=low,
                high=high,
                mean_output_tokens=np.mean(of_pool.tokens, axis=1),
                compute=_mean(of_pool.compute),
                memory=_mean(of_pool.memory),
                cost=_mean(of_pool.cost),
                batch_rule=cells.batch_rule,
                **batches,
                cost_without_weights=_mean(of_pool.cost_without_weights),
                cost_full=_mean(of_pool.cost_full),
            )
        )
    table = pd.concat(tables, ignore_index=True)
    table["on_frontier"] = pareto(table["cost"].to_numpy(), table["accuracy"].to_numpy())
    name = hardware.name if isinstance(hardware, Hardware) else hardware
    table.attrs = {
        "convention": convention,
        "hardware": name if intensity is not None or name else "h100",
        "intensity": intensity,
        "chips": chips,
        "batch_rule": cells.batch_rule,
    }
    return with_picks(table, pools)


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
