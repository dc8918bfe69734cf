"""What to run on a budget: the best of all configurations that stored samples cover, and how sure that is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from kinetics_jax.analysis.defaults import (
    default_trials,
    fewest_graded,
    max_sample_tokens,
    powers_of_two,
    rounded_accuracy,
)
from kinetics_jax.analysis.samples import Pool, SamplesError, undecided_counts
from kinetics_jax.analysis.workload import Workload, busiest_share, workload, workload_seconds
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.costs.links import unknown_link
from kinetics_jax.costs.memory import fits
from kinetics_jax.costs.widths import widths
from kinetics_jax.errors import UserError
from kinetics_jax.stats.estimators import cluster_bootstrap, paired_difference, pass_at_k

if TYPE_CHECKING:
    import pandas as pd

MAX_SLOTS = 512
HALVINGS = 200
MAX_SIMULATED = 200_000  # samples of a configuration


class PlanError(UserError):
    """Raised for a budget that nothing fits, naming the least that does, and for impossible numbers."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a workload may take: `seconds`, `dollars` (in the currency of the hardware's price), or the cheapest way to
    a `target_accuracy` in (0, 1]. Raises PlanError without any of them, or for impossible ones.
    """

    seconds: float | None = None
    dollars: float | None = None
    target_accuracy: float | None = None

    def __post_init__(self) -> None:
        if self.seconds is None and self.dollars is None and self.target_accuracy is None:
            raise PlanError("plan: give a budget, --seconds or --dollars, or --target-accuracy")
        for name, value in (("seconds", self.seconds), ("dollars", self.dollars)):
            if value is not None and not 0 < value < math.inf:
                raise PlanError(f"plan: --{name} must be a positive number, got {value}")
        if self.target_accuracy is not None and not 0 < self.target_accuracy <= 1:
            raise PlanError(f"plan: --target-accuracy must be in (0, 1], got {self.target_accuracy}")

    def limit(self, hardware: Hardware, chips: int) -> float:
        """The most seconds, infinite without a budget. Raises PlanError for dollars on hardware without a price."""
        limits = [math.inf if self.seconds is None else self.seconds]
        if self.dollars is not None:
            if not hardware.price_per_hour:
                raise PlanError(f"plan: {hardware.name} has no price per hour; give --price, or --seconds")
            limits.append(self.dollars / (hardware.price_per_hour * chips) * 3600)
        return min(limits)


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """Every configuration, and what it would achieve and take. `table`: a row each, with `model, parameters, attention,
    N, cap, batch, accuracy, seconds, prefill_seconds, dollars, fits` (sequences beside the weights, of which `batch`
    are needed; `seconds` is infinite where it is more), `undecided` samples of the runs (and `dropped`, see
    `samples.pooled`). `solved`: pass@N. `replicas` copies of the model, of `chips` chips each, share the problems.
    """

    table: pd.DataFrame
    solved: Float[np.ndarray, "rows problems"]
    hardware: Hardware
    chips: int
    problems: int
    warnings: tuple[str, ...]
    replicas: int = 1


@dataclasses.dataclass(frozen=True, eq=False)
class Advice:
    """What to run: row numbers of `options.table`. `accuracy` has a 95 % interval `low … high` over problems, as if the
    row had been chosen beforehand; `expected_accuracy` takes off what choosing the best of many on the same problems
    flatters it by (`optimism`: the choice made on one half of the problems, scored on the other, over many halvings).
    `run_low … run_high`: where the score of one run over `options.problems` fresh problems falls, 95 times in 100,
    that optimism taken off its lower end. `why_not`: of the runner-up, and of what is more accurate beyond the budget.
    """

    options: Options
    chosen: int
    runner_up: int | None
    beyond: int | None
    accuracy: float
    low: float
    high: float
    optimism: float
    run_low: float
    run_high: float
    why_not: dict[int, str]

    @property
    def expected_accuracy(self) -> float:
        return float(np.clip(self.accuracy - self.optimism, 0, 1))

    def row(self, index: int) -> dict[str, Any]:
        """A row of the table, in plain numbers."""
        return {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in self.options.table.iloc[index].items()
        }


def list_options(
    pools: Sequence[Pool],
    hardware: Hardware,
    *,
    chips: int = 1,
    replicas: int = 1,
    problems: int | None = None,
    trials: Sequence[int] | None = None,
    caps: Sequence[int] | None = None,
    batches: Sequence[int] | None = None,
) -> Options:
    """All configurations of the pools' models and attentions, N, caps and batches, with accuracy and seconds.

    `problems` like the pools' are to be solved, by default as many, by `replicas` copies of a model on `chips` chips
    each (`workload.busiest_share`). `trials` defaults to the powers of two up to the fewest graded samples; beyond
    those, pass@N is the expectation under a Beta(½, ½) prior on each problem's rate, and a warning says so. `caps`
    default to the run's max_tokens, its half, and those at which cut texts were graded. `batches` default to the
    powers of two up to all samples, at most MAX_SLOTS. Raises SamplesError if an architecture or token counts are
    missing, PlanError for numbers below 1, or if no cap is within what the samples show.
    """
    import pandas as pd

    if chips < 1 or replicas < 1 or (problems is not None and problems < 1):
        raise PlanError(
            f"plan: chips, replicas and problems must be at least 1, got {chips}, {replicas} and {problems}"
        )
    for name, values in (("trials", trials), ("caps", caps), ("batches", batches)):
        if values is not None and (not values or min(values) < 1):
            raise PlanError(f"plan: {name} must be whole numbers from 1 up, got {list(values)}")
    measured = len(pools[0].problems)
    count = measured if problems is None else problems
    most = max(trials or (max(map(fewest_graded, pools)),))
    if count * most > MAX_SIMULATED:
        raise PlanError(
            f"plan: {count} problems of {most} samples are more than the {MAX_SIMULATED:,} that a plan plays through; "
            "give fewer --problems (seconds and money grow with them) or --trials"
        )
    warnings = _caveats(hardware, chips=chips, asked=count, measured=measured)
    rows: list[dict[str, Any]] = []
    solved: list[np.ndarray] = []
    for pool in pools:
        limit, graded = max_sample_tokens(pool), fewest_graded(pool)
        for cap in sorted(set(caps or (limit, max(1, limit // 2), *pool.caps))):
            if cap > limit:
                warnings.append(
                    f"{pool}: samples ended at {limit} tokens; nothing is known of a cap of {cap}, left out"
                )
                continue
            counts = sorted(set(trials or default_trials(pool)))
            warnings += [
                f"{pool}: N = {n} is more than the {graded} samples of a problem: extrapolated"
                for n in counts
                if n > graded
            ]
            room = _room(pool, hardware, cap=cap, chips=chips)
            for n, accuracy in zip(counts, pass_at_n(pool, counts, cap).T, strict=True):
                work = busiest_share(workload(pool, problems=count, trials=n, cap=cap), replicas)
                sizes = sorted(set(batches or powers_of_two(min(work.lengths.size, MAX_SLOTS))))
                paid = chips * replicas
                rows += [
                    _option(pool, hardware, work, accuracy, cap=cap, batch=batch, room=room, chips=chips, paid=paid)
                    for batch in sizes
                ]
                solved += [accuracy] * len(sizes)
    if not rows:
        raise PlanError(f"plan: no cap of {list(caps or ())} is within what the samples show")
    return Options(
        table=pd.DataFrame(rows),
        solved=np.array(solved),
        hardware=hardware,
        chips=chips,
        problems=count,
        warnings=tuple(dict.fromkeys(warnings)),
        replicas=replicas,
    )


def _caveats(hardware: Hardware, *, chips: int, asked: int, measured: int) -> list[str]:
    """What any answer has to be taken with."""
    caveats = []
    if asked > measured:
        caveats.append(
            f"{asked} problems are asked for, {measured} were measured: the others are taken to be like them"
        )
    if not hardware.calibrated:
        caveats.append(
            f"{hardware.name}: seconds are at the data sheet's peak rates, without overheads: the least it can take "
            "(kinetics calibrate measures a device)"
        )
    if unknown := unknown_link(hardware, chips):
        caveats.append(unknown)
    return caveats


def _room(pool: Pool, hardware: Hardware, *, cap: int, chips: int) -> int:
    """Sequences of the longest prompt and `cap` tokens that fit beside the weights."""
    prompt = max(problem.prompt_tokens for problem in pool.problems.values())
    kv, weights = widths(pool.settings)
    return fits(
        pool.priced(),
        hardware,
        tokens=int(prompt + cap),
        chips=chips,
        attention=pool.attention,
        kv_bytes=kv,
        weight_bytes=weights,
    ).sequences


def _option(
    pool: Pool,
    hardware: Hardware,
    work: Workload,
    solved: Float[np.ndarray, " problems"],
    *,
    cap: int,
    batch: int,
    room: int,
    chips: int,
    paid: int,
) -> dict[str, Any]:
    """A row of `Options.table`, for one configuration whose pass@N is `solved`; `paid` chips in all cost money."""
    spent = None
    kv, weights = widths(pool.settings)
    if batch <= room:
        spent = workload_seconds(
            pool.priced(),
            pool.attention,
            hardware,
            work,
            slots=batch,
            cap=cap,
            chips=chips,
            kv_bytes=kv,
            weight_bytes=weights,
        )
    price = hardware.price_per_hour
    return {
        "model": pool.model,
        "parameters": pool.parameters,
        "attention": str(pool.attention),
        "N": work.lengths.shape[1],
        "cap": cap,
        "batch": batch,
        "accuracy": float(rounded_accuracy(np.mean(solved))),
        "seconds": spent.total if spent else math.inf,
        "prefill_seconds": spent.prefill if spent else math.nan,
        "dollars": spent.total / 3600 * paid * price if spent and price else math.nan,
        "fits": room,
        **undecided_counts([pool]),
    }


def pass_at_n(pool: Pool, trials: Sequence[int], cap: int) -> Float[np.ndarray, "problems trials"]:
    """pass@N of every problem under a cap; `list_options` says how beyond the samples.

    Raises SamplesError if a problem has no graded sample under the cap.
    """
    solved = np.empty((len(pool.problems), len(trials)))
    for row, problem in enumerate(pool.problems.values()):
        grades = problem.grades_under([cap])[:, 0]
        grades = grades[~np.isnan(grades)]
        if not len(grades):
            raise SamplesError(f"{pool}: a problem has no graded sample under a cap of {cap} tokens")
        right = int(np.sum(grades))
        for column, n in enumerate(trials):
            if n <= len(grades):
                solved[row, column] = pass_at_k(len(grades), right, n)
            else:
                wrong = len(grades) - right + 0.5 + np.arange(n)
                solved[row, column] = 1 - np.prod(wrong / (wrong + right + 0.5))
    return solved


def choose(
    seconds: Float[np.ndarray, " rows"], accuracy: Float[np.ndarray, " rows"], limit: float, target: float | None = None
) -> int | None:
    """The row to run: within `limit` seconds the most accurate, the quickest among equals; with a `target` the quickest
    that reaches it, the most accurate among equals. Returns None if no row is left; never a dominated row.
    """
    accuracy = rounded_accuracy(accuracy)
    able = np.isfinite(seconds) & (seconds <= limit)
    if target is not None:
        able &= accuracy >= rounded_accuracy(target)
    rows = np.flatnonzero(able)
    if not len(rows):
        return None
    first, second = (-accuracy, seconds) if target is None else (seconds, -accuracy)
    return int(rows[np.lexsort((second[rows], first[rows]))[0]])


def advise(options: Options, budget: Budget, *, seed: int = 0) -> Advice:
    """The best configuration on a budget, how sure its accuracy is, and what it was preferred to.

    Raises PlanError when nothing fits the memory or the budget, or reaches the target, naming the least that does.
    """
    limit, target = budget.limit(options.hardware, options.chips * options.replicas), budget.target_accuracy
    seconds = options.table["seconds"].to_numpy(np.float64)
    accuracy = options.table["accuracy"].to_numpy(np.float64)
    chosen = choose(seconds, accuracy, limit, target)
    if chosen is None:
        raise PlanError(_refusal(options, limit, target))
    runner_up, beyond = _rivals(options, chosen, seconds, accuracy, limit, target)
    values = options.solved[chosen]
    low, high = cluster_bootstrap(values, bounds=(0, 1))
    optimism = _optimism(options.solved, seconds, limit, target, seed)
    run_low, run_high = _run_interval(values, options.problems, optimism, seed)
    why = {}
    for rival in (runner_up, beyond):
        if rival is not None:
            why[rival] = _why_not(options, chosen, rival, limit)
    return Advice(
        options=options,
        chosen=chosen,
        runner_up=runner_up,
        beyond=beyond,
        accuracy=float(accuracy[chosen]),
        low=float(low),
        high=float(high),
        optimism=optimism,
        run_low=run_low,
        run_high=run_high,
        why_not=why,
    )


def _rivals(
    options: Options, chosen: int, seconds: np.ndarray, accuracy: np.ndarray, limit: float, target: float | None
) -> tuple[int | None, int | None]:
    """The best row that is no mere other batch of the chosen one, and the quickest more accurate one out of reach."""
    names = ["model", "attention", "N", "cap"]
    same = (options.table[names] == options.table.iloc[chosen][names]).all(axis=1).to_numpy()
    runner_up = choose(np.where(same, np.inf, seconds), accuracy, limit, target)
    better = (accuracy > accuracy[chosen]) & (seconds > limit)
    rows = np.flatnonzero(better)
    if target is not None or not len(rows):
        return runner_up, None
    order = np.lexsort((options.table["batch"].to_numpy()[rows], -accuracy[rows], seconds[rows]))
    return runner_up, int(rows[order[0]])


def _why_not(options: Options, chosen: int, rival: int, limit: float) -> str:
    best, other = options.table.iloc[chosen], options.table.iloc[rival]
    if other["fits"] < other["batch"]:
        return f"does not fit: room for {other['fits']} sequences, {other['batch']} are needed"
    if other["seconds"] > limit:
        return f"takes {other['seconds']:.4g} s, more than the budget of {limit:.4g} s"
    paired = paired_difference(options.solved[chosen], options.solved[rival])
    gain = float(rounded_accuracy(paired.difference))
    slower = float(other["seconds"] - best["seconds"])
    if not gain:
        return f"as accurate, {slower:.4g} s slower" if slower > 0 else "as accurate and as quick"
    if gain > 0:
        sure = "" if paired.low > 0 else "; not surely so"
        return f"{gain:.3f} less accurate ({paired.low:.3f} … {paired.high:.3f} over problems{sure})"
    return f"{-gain:.3f} more accurate, but {slower:.4g} s slower"


def _optimism(solved: np.ndarray, seconds: np.ndarray, limit: float, target: float | None, seed: int) -> float:
    """How much better the chosen row looks where it was chosen than elsewhere: mean over halvings of the problems."""
    rng = np.random.default_rng(seed)
    problems = solved.shape[1]
    if problems < 2:
        return 0.0
    gaps = []
    for _ in range(HALVINGS):
        order = rng.permutation(problems)
        for part in (order[: problems // 2], order[problems // 2 :]):
            here = solved[:, part].mean(axis=1)
            row = choose(seconds, here, limit, target)
            if row is not None:
                gaps.append(here[row] - np.delete(solved[row], part).mean())
    return max(0.0, float(np.mean(gaps))) if gaps else 0.0


def _run_interval(values: np.ndarray, problems: int, optimism: float, seed: int) -> tuple[float, float]:
    """95 % of the scores of one run over fresh problems, lower by the optimism where it is lower.

    The accuracy over all problems of the kind is drawn by a Bayesian bootstrap (Rubin 1981) of the measured ones and of
    one more that counts half as solved and half as failed, Jeffreys' prior, so that ten problems all solved do not
    promise an eleventh; the run's own problems are then solved or not at that rate.
    """
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet([*np.ones(len(values)), 0.5, 0.5], size=4000)
    rate = np.clip(weights @ np.array([*values, 0.0, 1.0]), 0, 1)
    scores = rng.binomial(problems, rate) / problems
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(max(low - optimism, 0.0)), float(high)


def _refusal(options: Options, limit: float, target: float | None) -> str:
    rows = options.table.to_dict(orient="records")
    able = [row for row in rows if math.isfinite(row["seconds"])]
    if not able:
        least = min(rows, key=lambda row: (row["parameters"], row["cap"]))
        return (
            f"plan: nothing fits into the memory of {options.chips} x {options.hardware.name}; the smallest, "
            f"{least['model']} with {least['cap']} tokens, has room for {least['fits']} sequences; give more --chips"
        )
    best = max(able, key=lambda row: (row["accuracy"], -row["seconds"]))
    goal = 0.0 if target is None else float(rounded_accuracy(target))
    if best["accuracy"] < goal:
        return f"plan: nothing reaches an accuracy of {target}; the best is {_name(best)} with {best['accuracy']:.3f}"
    least = min((row for row in able if row["accuracy"] >= goal), key=lambda row: row["seconds"])
    price = f" ({least['dollars']:.3g} in money)" if not math.isnan(least["dollars"]) else ""
    reach = f" that reaches {target}" if target is not None else ""
    return (
        f"plan: nothing{reach} fits into {limit:.4g} seconds; the cheapest, {_name(least)}, takes "
        f"{least['seconds']:.4g} s{price} for {options.problems} problems"
    )


def _name(row: dict[Any, Any]) -> str:
    return f"{row['model']} {row['attention']} N={row['N']} cap={row['cap']} batch={row['batch']}"
