"""Adaptive allocation on stored samples: stop sampling a problem when a rule says so, and count the cost.

Samples come in random orders, without replacement, in waves that decode side by side. Two kinds of rules:

- the oracle's (`StopRule`): stop once a right answer was seen, as only who knows it can, as pass@N does. What it solves
  and costs is exact over all orders.
- the vote's (`VoteRule`, vote_stopping.py): stop by the margin of the leading answer, which needs nobody who knows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from jaxtyping import Float

from kinetics_jax.analysis.counted import sample_policy
from kinetics_jax.analysis.defaults import max_sample_tokens
from kinetics_jax.analysis.grid import grid
from kinetics_jax.analysis.pricing import Pricing, batches
from kinetics_jax.analysis.rules import lacks, lacks_words, require_rule, rule_accuracy
from kinetics_jax.analysis.samples import Pool, SamplesError, undecided_counts
from kinetics_jax.analysis.vote_stopping import LIKELY, Stop, decide
from kinetics_jax.analysis.votes import labelled
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

    @property
    def reach(self) -> int:
        """A problem is solved where one of so many first samples is right: a rule stops before them only if one is."""
        if self.probe is None:
            return self.most
        return min(-(-self.probe // self.wave) * self.wave, self.most)

    @property
    def waves(self) -> Iterator[tuple[int, int]]:
        """Samples before each wave, and in it."""
        return ((first, min(self.wave, self.most - first)) for first in range(0, self.most, self.wave))


@dataclasses.dataclass(frozen=True)
class Replay:
    """Means over problems: `accuracy` (share of problems solved) with its interval from redrawing problems; `cost` in
    Tera-eFLOPs per problem with its interval; `samples` drawn per problem. All are expectations over orders of the
    samples; `accuracy_noise` and `cost_noise` are their standard errors where orders were drawn, 0 where all of them
    count.
    """

    accuracy: float
    low: float
    high: float
    cost: float
    cost_low: float
    cost_high: float
    samples: float
    accuracy_noise: float = 0.0
    cost_noise: float = 0.0


@dataclasses.dataclass(frozen=True)
class ProblemCosts:
    """What the samples of a problem cost, the graded ones alone, in Tera-eFLOPs: `own [samples]`, `shared [samples]`
    (charged once a wave, for the largest of it), and `prefill`, charged once. `graded`: which samples they are.
    """

    own: Float[np.ndarray, " samples"]
    shared: Float[np.ndarray, " samples"]
    prefill: float
    graded: list[int]


def problem_costs(pool: Pool, pricing: Pricing, batch: int | None) -> Iterator[tuple[str, ProblemCosts]]:
    """The costs of every problem's graded samples, by name, with `batch` sequences side by side (0: not one fits)."""
    for name, problem in pool.problems.items():
        graded = [i for i, grade in enumerate(problem.grades) if grade is not None]
        if pool.owns("cost"):
            own = np.array([problem.own["cost"][i] for i in graded])
            yield name, ProblemCosts(own, np.zeros(len(own)), 0.0, graded)
            continue
        lengths = np.array([problem.lengths[i] for i in graded])
        cost = pricing.cost(
            pool,
            prompt_tokens=int(problem.prompt_tokens),
            output_tokens=lengths,
            attention=sample_policy(pool, problem, graded),
            batch=None if batch is None else max(batch, 1),
        )
        prefill = sum(float(np.mean(value)) for part, value in cost.shared.items() if part.startswith("prefill"))
        shared = sum(
            (value for part, value in cost.shared.items() if not part.startswith("prefill")), np.zeros(len(graded))
        )
        own = cost.total - prefill - shared
        yield name, ProblemCosts(own if batch != 0 else own + np.nan, shared, prefill, graded)


def replay(pool: Pool, rule: StopRule, *, shared_prompt: bool = True, **costs: Any) -> Replay:
    """What a stop rule would have achieved and cost on a pool's graded samples.

    Every wave is charged for its own samples. What the trials of a problem share (its prefill, and with `shared_prompt`
    the reads of its prompt, up to the longest trial of each wave) is charged once: prefill with the first wave, reads
    with each. `costs` are those of `pricing.Pricing`; waves and shared prompts have a meaning in the `traffic`
    convention alone. Costs are NaN where not one sequence fits the hardware. Raises EstimateError for more samples than
    a problem has, SamplesError if an architecture or a token count is missing.
    """
    pricing = Pricing(shared_prompt=shared_prompt, **costs)
    return _replayed(pool, rule, pricing, used_batch(pool, pricing))


def used_batch(pool: Pool, pricing: Pricing) -> int | None:
    """The batch that a pool is priced with; 0: not one sequence fits; None: no weights are counted."""
    if pool.owns("cost"):
        return None
    used = batches(pool, pricing, [max_sample_tokens(pool)]).used
    return None if used is None else int(used[0])


def check_most(pool: Pool, name: str, samples: int, most: int) -> None:
    """Raises EstimateError where a rule may draw more samples of a problem than there are graded ones."""
    if most > samples:
        raise EstimateError(
            f"{pool}: problem {name!r} has {samples} graded samples, the rule may draw {most}; lower most"
        )


def _replayed(pool: Pool, rule: StopRule, pricing: Pricing, batch: int | None) -> Replay:
    """`replay` at a batch; 0: not one sequence fits."""
    solved, spent, drawn = np.empty((3, len(pool.problems)))
    for i, (name, costs) in enumerate(problem_costs(pool, pricing, batch)):
        problem, samples = pool.problems[name], len(costs.graded)
        check_most(pool, name, samples, rule.most)
        right = np.array([bool(problem.grades[j]) for j in costs.graded])
        solved[i] = pass_at_k(samples, int(right.sum()), rule.reach)
        spent[i], drawn[i] = _expected(right, costs, rule)
    return _mean_replay(solved, spent, drawn)


def _mean_replay(
    right: Float[np.ndarray, " problems"],
    spent: Float[np.ndarray, " problems"],
    drawn: Float[np.ndarray, " problems"],
    **noise: float,
) -> Replay:
    """A replay's means over problems with their intervals: accuracy, cost and samples of each; `noise` as they are."""
    (low, high), (cost_low, cost_high) = accuracy_interval(right), cluster_bootstrap(spent)
    return Replay(
        accuracy=float(right.mean()),
        low=float(low),
        high=float(high),
        cost=float(spent.mean()),
        cost_low=float(cost_low),
        cost_high=float(cost_high),
        samples=float(drawn.mean()),
        **noise,
    )


def _expected(right: np.ndarray, costs: ProblemCosts, rule: StopRule) -> tuple[float, float]:
    """Cost and number of the samples that a rule draws of one problem, expected over all orders.

    Wave by wave: what the wave costs where it is drawn. A wave is drawn unless an earlier sample was right
    (`until_solved`), and beyond the probe only if one was.
    """
    spent, drawn = costs.prefill, 0.0
    for before, size in rule.waves:
        probed = before >= rule.reach
        if rule.until_solved and probed:
            break
        cost, share = _of_wave(right, costs, size, before if rule.until_solved else 0)
        if probed:  # drawn where one of the probe is right
            unsolved = _of_wave(right, costs, size, rule.reach)
            cost, share = cost - unsolved[0], share - unsolved[1]
        spent += cost
        drawn += share * size
    return spent, drawn


def _of_wave(right: np.ndarray, costs: ProblemCosts, size: int, before: int) -> tuple[float, float]:
    """The cost of `size` samples drawn after `before` others, counted where all of those are wrong, and how likely that
    is: exact, over all orders.

    However many of the wave are right, the right and the wrong ones of it are drawn evenly from all right and all wrong
    samples; so the largest share is at most x as often as all of them are.
    """
    hits, samples = int(right.sum()), len(right)
    misses = samples - hits
    if before > misses:
        return 0.0, 0.0
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, samples + 1)))])  # of factorials

    def ways(things: Any, chosen: int) -> Any:
        """Logarithms of binomial coefficients, -inf for none."""
        things = np.asarray(things)
        able = np.maximum(things, chosen)
        return np.where(things < chosen, -np.inf, logs[able] - logs[chosen] - logs[able - chosen])

    likely = float(np.exp(ways(misses, before) - ways(samples, before)))
    left = misses - before
    order = np.argsort(costs.shared, kind="stable")
    shares, below_right = costs.shared[order], np.concatenate([[0], np.cumsum(right[order])])
    below_wrong = np.arange(samples + 1) - below_right
    own_right = float(costs.own[right].mean()) if hits else 0.0
    own_wrong = float(costs.own[~right].mean()) if misses else 0.0
    mean = 0.0
    for of_right in range(max(0, size - left), min(hits, size) + 1):
        of_wrong = size - of_right
        chance = float(np.exp(ways(hits, of_right) + ways(left, of_wrong) - ways(samples - before, size)))
        below = np.exp(ways(below_right, of_right) - ways(hits, of_right))
        below = below * np.exp(ways(below_wrong, of_wrong) - ways(misses, of_wrong))
        largest = float(np.sum(shares * np.diff(below)))
        mean += chance * (of_right * own_right + of_wrong * own_wrong + largest)
    return likely * mean, likely


def replay_table(
    pools: Sequence[Pool],
    *,
    trials: Sequence[int] | None = None,
    wave: int = 1,
    probe: int | None = None,
    rule: str | None = None,
    shared_prompt: bool = True,
    **costs: Any,
) -> pd.DataFrame:
    """Sampling until a rule stops beside the same number of samples for every problem: a row per (model, attention, N)
    and way to `stop`.

    `stop` is "solved" (`StopRule`, whose decision `rule` is "pass") and, where the samples' answers are known,
    "certain" and "likely" (vote_stopping.py; "majority"); `rule` asks for those of one decision rule alone. Columns
    `model`, `attention`, `N` (most samples of a problem), `stop`, `rule`, `batch_rule` and `batch` (`grid.Grid`),
    `undecided` samples of the run; `accuracy`, `low`, `high`, `cost`, `cost_low`, `cost_high`, `samples` of a `Replay`;
    `accuracy_noise` and `cost_noise`, the standard errors that drawing orders leaves (0: exact); `fixed_accuracy` and
    `fixed_cost` of N samples side by side whatever happens; `saved`, the share of that cost. A problem is given up
    after `probe` samples without success, by "solved" alone (rows with fewer N have no probe). `trials` are the N, as
    in `grid.grid`. `attrs["picks"]`: lines on what is missing. Arguments and errors as `replay`; SamplesError for
    another decision rule, and where the asked one lacks answers.
    """
    import pandas as pd

    if rule not in (None, "pass", "majority"):
        raise SamplesError(
            f"adaptive sampling stops by what is right (pass) or by votes (majority); there is no such rule of {rule}"
        )
    rows, notes, pricing = [], [], Pricing(shared_prompt=shared_prompt, **costs)
    if rule == "majority":
        require_rule(pools, rule)
    for pool in pools:
        fixed = grid([pool], trials=trials, shared_prompt=shared_prompt, **costs)
        batch = fixed.configurations["batch"].iloc[0]
        used = None if np.isnan(batch) else int(batch)
        counts = fixed.configurations["N"].tolist()
        voted = None if rule == "pass" or lacks(pool, "majority") else rule_accuracy(pool, "majority", counts)
        if rule is None and (why := lacks_words(pool, "majority")):
            notes.append(f"No stopping by votes for {pool}: {why}.")
        for i, n in enumerate(counts):
            named = {"model": pool.model, "attention": str(pool.attention), "N": int(n)}
            more = {"batch_rule": "own" if pool.owns("cost") else fixed.batch_rule, "batch": batch}
            more |= undecided_counts([pool])
            kept = float(fixed.cost[i].mean()) if used != 0 else np.nan
            found: list[tuple[str, str, Replay, float]] = []
            if rule != "majority":
                early = None if probe is None or probe >= n else probe
                solved = _replayed(pool, StopRule(most=int(n), wave=min(wave, int(n)), probe=early), pricing, used)
                found.append(("solved", "pass", solved, float(fixed.accuracy[i].mean())))
            if voted is not None:
                for stop in get_args(Stop):
                    result = _voted(pool, stop, int(n), min(wave, int(n)), pricing, used, voted[:, i])
                    found.append((stop, "majority", result, float(voted[:, i].mean())))
            for stop, by, result, accuracy in found:
                saved = 1 - result.cost / kept if kept else 0.0
                shown = {"fixed_accuracy": accuracy, "fixed_cost": kept, "saved": saved}
                rows.append(named | {"stop": stop, "rule": by} | more | dataclasses.asdict(result) | shown)
    table = pd.DataFrame(rows)
    table.attrs["picks"] = [_line(table), *notes]
    return table


def _line(table: pd.DataFrame) -> str:
    ways = {
        "solved": "solved, a right answer was seen, by someone who knows it",
        "certain": "certain, the leading answer cannot be caught",
        "likely": f"likely, it is ahead with probability {LIKELY:g} (arXiv 2305.11860)",
    }
    return "stop: " + "; ".join(ways[stop] for stop in dict.fromkeys(table["stop"]))


def _voted(
    pool: Pool,
    stop: Stop,
    most: int,
    wave: int,
    pricing: Pricing,
    batch: int | None,
    in_full: Float[np.ndarray, " problems"],
) -> Replay:
    """What stopping by votes achieves and costs; `in_full`: what `most` samples of each problem vote, exactly."""
    found = []
    for i, (name, costs) in enumerate(problem_costs(pool, pricing, batch)):
        check_most(pool, name, len(costs.graded), most)
        votes = pool.problems[name].votes_under(None)
        labels, right = labelled(votes.answers, votes.right)
        each = decide(labels, right, costs.own, costs.shared, stop=stop, most=most, wave=wave, seed=i)
        found.append(dataclasses.replace(each, spent=each.spent + costs.prefill))
    gain, spent, drawn, gain_noise, spent_noise = np.array([dataclasses.astuple(each) for each in found]).T
    right = np.clip(in_full + gain, 0, 1)
    return _mean_replay(
        right,
        spent,
        drawn,
        accuracy_noise=float(np.sqrt(np.sum(gain_noise**2)) / len(right)),
        cost_noise=float(np.sqrt(np.sum(spent_noise**2)) / len(spent)),
    )
