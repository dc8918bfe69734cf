"""Adaptive allocation replayed on stored samples: stop sampling a problem when a rule says so, and count the cost.

Samples are redrawn in random orders, without replacement, in waves that decode side by side. A verifier is assumed that
knows a right answer when it sees one, as pass@N does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kinetics_jax.analysis.defaults import max_sample_tokens
from kinetics_jax.analysis.grid import grid
from kinetics_jax.analysis.pricing import Pricing, batches
from kinetics_jax.analysis.samples import Pool, SamplesError, undecided_counts
from kinetics_jax.stats.estimators import EstimateError, cluster_bootstrap, pass_at_k
from kinetics_jax.stats.intervals import accuracy_interval

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class StopRule:
    """Stop a problem once it is solved (`until_solved`), or after `most` samples; with `probe`, also after
    `probe` samples if none of them is right. Samples come in waves of `wave`; a wave that has begun is finished.

    Raises SamplesError for numbers that make no sense.
    """

    most: int
    wave: int = 1
    probe: int | None = None
    until_solved: bool = True

    def __post_init__(self) -> None:
        if self.most < 1 or self.wave < 1:
            raise SamplesError(f"a stop rule needs most and wave of at least 1, got {self.most} and {self.wave}")
        if self.probe is not None and not 1 <= self.probe <= self.most:
            raise SamplesError(f"probe must be in 1 … {self.most} (most), got {self.probe}")


@dataclasses.dataclass(frozen=True)
class Replay:
    """Means over problems: `accuracy` (share of problems solved, over all orders) with its interval from redrawing
    problems; and over orders drawn at random, `cost` in Tera-eFLOPs per problem with its interval and `samples` drawn
    per problem.
    """

    accuracy: float
    low: float
    high: float
    cost: float
    cost_low: float
    cost_high: float
    samples: float


def replay(
    pool: Pool, rule: StopRule, *, orders: int = 200, seed: int = 0, shared_prompt: bool = True, **costs: Any
) -> Replay:
    """What a stop rule would have achieved and cost on a pool's graded samples.

    Every wave is charged for its own samples. What the trials of a problem share (its prefill, and with `shared_prompt`
    the reads of its prompt, up to the longest trial of each wave) is charged once: prefill with the first wave, reads
    with each. `costs` are those of `pricing.Pricing`; waves and shared prompts have a meaning in the `traffic`
    convention alone. Costs are NaN where not one sequence fits the hardware. Raises EstimateError for more samples than
    a problem has, SamplesError if an architecture or a token count is missing.
    """
    pricing = Pricing(shared_prompt=shared_prompt, **costs)
    used = batches(pool, pricing, [max_sample_tokens(pool)]).used
    return _replayed(pool, rule, pricing, None if used is None else int(used[0]), orders=orders, seed=seed)


def _replayed(pool: Pool, rule: StopRule, pricing: Pricing, batch: int | None, *, orders: int, seed: int) -> Replay:
    """`replay` at a batch; 0: not one sequence fits."""
    rng = np.random.default_rng(seed)
    solved, spent, drawn = np.empty((3, len(pool.problems)))
    for i, (name, problem) in enumerate(pool.problems.items()):
        graded = [j for j, grade in enumerate(problem.grades) if grade is not None]
        if rule.most > len(graded):
            raise EstimateError(
                f"{pool}: problem {name!r} has {len(graded)} graded samples, the rule may draw {rule.most}; lower most"
            )
        right = np.array([bool(problem.grades[j]) for j in graded])
        lengths = np.array([problem.lengths[j] for j in graded])
        cost = pricing.cost(
            pool,
            prompt_tokens=int(problem.prompt_tokens),
            output_tokens=lengths,
            batch=None if batch is None else max(batch, 1),
        )
        prefill = sum(np.mean(value) for name, value in cost.shared.items() if name.startswith("prefill"))
        shared = sum(
            (value for name, value in cost.shared.items() if not name.startswith("prefill")), np.zeros(len(right))
        )
        own = cost.total - prefill - shared
        order = np.argsort(rng.random((orders, len(right))), axis=1)[:, : rule.most]
        hits = right[order]
        count = _drawn(hits, rule)
        taken = np.arange(rule.most) < count[:, None]
        waves = np.arange(0, rule.most, rule.wave)
        longest = np.maximum.reduceat(np.where(taken, shared[order], 0.0), waves, axis=1)  # shares grow with length
        spent[i] = np.mean(np.sum(np.where(taken, own[order], 0.0), axis=1) + longest.sum(axis=1)) + prefill
        solved[i] = pass_at_k(len(right), int(right.sum()), _reach(rule))  # exactly, over all orders
        drawn[i] = np.mean(count)
    if batch == 0:
        spent[:] = np.nan  # not one sequence fits
    (low, high), (cost_low, cost_high) = accuracy_interval(solved), cluster_bootstrap(spent)
    return Replay(
        accuracy=float(solved.mean()),
        low=float(low),
        high=float(high),
        cost=float(spent.mean()),
        cost_low=float(cost_low),
        cost_high=float(cost_high),
        samples=float(drawn.mean()),
    )


def replay_table(
    pools: Sequence[Pool],
    *,
    trials: Sequence[int] | None = None,
    wave: int = 1,
    probe: int | None = None,
    orders: int = 200,
    seed: int = 0,
    shared_prompt: bool = True,
    **costs: Any,
) -> pd.DataFrame:
    """Sampling until solved beside the same number of samples for every problem: a row per (model, attention, N).

    Columns `model`, `attention`, `N` (most samples of a problem), `batch_rule` and `batch` (`grid.Grid`), `undecided`
    samples of the run; `accuracy`, `low`,
    `high`, `cost`, `cost_low`, `cost_high`, `samples` of a `Replay` that stops once a problem is solved and, with
    `probe`, after `probe` samples without success (rows with fewer N have none); `fixed_accuracy` and `fixed_cost` of N
    samples side by side whatever happens; `saved`, the share of that cost. `trials` are the N, as in `grid.grid`.
    Arguments and errors as `replay`.
    """
    import pandas as pd

    rows, pricing = [], Pricing(shared_prompt=shared_prompt, **costs)
    for pool in pools:
        fixed = grid([pool], trials=trials, shared_prompt=shared_prompt, **costs)
        batch = fixed.configurations["batch"].iloc[0]
        used = None if np.isnan(batch) else int(batch)
        for i, n in enumerate(fixed.configurations["N"]):
            early = None if probe is None or probe >= n else probe
            rule = StopRule(most=int(n), wave=min(wave, int(n)), probe=early)
            result = _replayed(pool, rule, pricing, used, orders=orders, seed=seed)
            cost = float(fixed.cost[i].mean()) if used != 0 else np.nan
            rows.append(
                {"model": pool.model, "attention": str(pool.attention), "N": int(n), "batch_rule": fixed.batch_rule}
                | {"batch": batch, **undecided_counts([pool])}
                | dataclasses.asdict(result)
                | {
                    "fixed_accuracy": float(fixed.accuracy[i].mean()),
                    "fixed_cost": cost,
                    "saved": 1 - result.cost / cost,
                }
            )
    return pd.DataFrame(rows)


def _reach(rule: StopRule) -> int:
    """A problem is solved where one of so many first samples is right: a rule stops before them only if one is."""
    if rule.probe is None:
        return rule.most
    return min(-(-rule.probe // rule.wave) * rule.wave, rule.most)


def _drawn(hits: np.ndarray, rule: StopRule) -> np.ndarray:
    """Samples drawn in each order, from `hits [orders, most]` bool."""
    most = np.full(len(hits), rule.most)

    def to_the_end_of_its_wave(count: np.ndarray) -> np.ndarray:
        return np.minimum(-(-count // rule.wave) * rule.wave, rule.most)

    solved = np.any(hits, axis=1)
    first = np.argmax(hits, axis=1) + 1
    count = np.where(solved, to_the_end_of_its_wave(first), most) if rule.until_solved else most
    if rule.probe is not None:
        probed = int(to_the_end_of_its_wave(np.array(rule.probe)))
        count = np.where(np.any(hits[:, :probed], axis=1), count, np.minimum(count, probed))
    return count
