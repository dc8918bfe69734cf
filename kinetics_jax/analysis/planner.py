"""What to run on a budget: the best of all configurations that stored samples tell about, and how sure that is."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kinetics_jax.analysis.grid import longest
from kinetics_jax.analysis.samples import Pool, SamplesError
from kinetics_jax.analysis.workload import workload, workload_seconds
from kinetics_jax.config import DTYPE_BYTES
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.costs.memory import fits
from kinetics_jax.errors import UserError
from kinetics_jax.stats.estimators import cluster_bootstrap, paired_difference, pass_at_k

if TYPE_CHECKING:
    import pandas as pd

MOST_SLOTS = 512
SPLITS = 200
SAME = 1e-9  # accuracies closer than this are equal


class PlanError(UserError):
    """A budget that nothing fits, or a question that makes no sense; the message says what the least is."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a workload may take: `seconds`, `dollars` (in the currency of the hardware's price), an accuracy to reach
    (`target_accuracy`, then the cheapest way to it is wanted). Raises PlanError for none of them or impossible ones.
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
        """The most seconds; infinity without a budget. Raises PlanError for dollars on hardware without a price."""
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
    are needed; `seconds` is infinite where it is more). `solved [rows, problems]`: pass@N.
    """

    table: pd.DataFrame
    solved: np.ndarray
    hardware: Hardware
    chips: int
    problems: int
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The advice, row numbers of `options.table`. `accuracy` has a 95 % interval `low … high` over problems, as if the
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


def options(
    pools: Sequence[Pool],
    hardware: Hardware,
    *,
    chips: int = 1,
    problems: int | None = None,
    trials: Sequence[int] | None = None,
    caps: Sequence[int] | None = None,
    batches: Sequence[int] | None = None,
) -> Options:
    """All configurations of the pools' models and attentions, N, caps and batches, with accuracy and seconds.

    `problems` like the pools' are to be solved, by default as many. `trials` defaults to the powers of two up to the
    fewest graded samples; beyond those, pass@N is the expectation under a Beta(½, ½) prior on each problem's rate, and
    a warning says so. `caps` default to the run's max_tokens, its half, and
    those at which cut texts were graded. `batches` default to the powers of two up to
    the samples there are. Raises SamplesError where architecture or token counts are not known, PlanError for numbers
    that cannot be.
    """
    import pandas as pd

    if chips < 1 or (problems is not None and problems < 1):
        raise PlanError(f"plan: chips and problems must be at least 1, got {chips} and {problems}")
    for name, values in (("trials", trials), ("caps", caps), ("batches", batches)):
        if values is not None and (not values or min(values) < 1):
            raise PlanError(f"plan: {name} must be whole numbers from 1 up, got {list(values)}")
    measured = len(pools[0].problems)
    count = measured if problems is None else problems
    warnings: list[str] = []
    if count > measured:
        warnings.append(
            f"{count} problems are asked for, {measured} were measured: the others are taken to be like them"
        )
    if not hardware.calibrated:
        warnings.append(
            f"{hardware.name}: seconds are at the data sheet's peak rates, without overheads: the least it can take "
            "(kinetics calibrate measures a device)"
        )
    if chips > 1:
        warnings.append(f"{chips} chips are taken to share the work without talking to each other")
    rows: list[dict[str, Any]] = []
    solved: list[np.ndarray] = []
    for pool in pools:
        config = pool.priced()
        size = DTYPE_BYTES.get(str(pool.settings.get("dtype")), 2)
        limit = longest(pool)
        prompt = max(problem.prompt_tokens for problem in pool.problems.values())
        graded = min(problem.graded for problem in pool.problems.values())
        for cap in sorted(set(caps or (limit, max(1, limit // 2), *pool.caps))):
            if cap > limit:
                warnings.append(
                    f"{pool}: samples ended at {limit} tokens; nothing is known of a cap of {cap}, left out"
                )
                continue
            ns = sorted(set(trials or (2**i for i in range(graded.bit_length()))))
            accuracy = pass_at_n(pool, ns, cap)
            room = fits(
                config,
                hardware,
                tokens=int(prompt + cap),
                chips=chips,
                attention=pool.attention,
                kv_bytes=size,
                weight_bytes=size,
            ).sequences
            for column, n in enumerate(ns):
                if n > graded:
                    warnings.append(f"{pool}: N = {n} is more than the {graded} samples of a problem: extrapolated")
                work = workload(pool, problems=count, trials=n, cap=cap)
                for batch in sorted(set(batches or _powers(count * n))):
                    fit = batch <= room
                    spent = (
                        workload_seconds(
                            config,
                            pool.attention,
                            hardware,
                            work,
                            slots=batch,
                            cap=cap,
                            chips=chips,
                            kv_bytes=size,
                            weight_bytes=size,
                        )
                        if fit
                        else None
                    )
                    price = hardware.price_per_hour
                    rows.append(
                        {
                            "model": pool.model,
                            "parameters": pool.parameters,
                            "attention": str(pool.attention),
                            "N": n,
                            "cap": cap,
                            "batch": batch,
                            "accuracy": round(float(np.mean(accuracy[:, column])), 12),
                            "seconds": spent.total if spent else math.inf,
                            "prefill_seconds": spent.prefill if spent else math.nan,
                            "dollars": spent.total / 3600 * chips * price if spent and price else math.nan,
                            "fits": room,
                        }
                    )
                    solved.append(accuracy[:, column])
    if not rows:
        raise PlanError(f"plan: no cap of {list(caps or ())} is within what the samples tell about")
    return Options(pd.DataFrame(rows), np.array(solved), hardware, chips, count, tuple(dict.fromkeys(warnings)))


def pass_at_n(pool: Pool, trials: Sequence[int], cap: int) -> np.ndarray:
    """pass@N of every problem under a cap, `[problems, trials]`; see `options` for N beyond the samples."""
    found = np.empty((len(pool.problems), len(trials)))
    for row, problem in enumerate(pool.problems.values()):
        grades = problem.grades_within([cap])[:, 0]
        grades = grades[~np.isnan(grades)]
        if not len(grades):
            raise SamplesError(f"{pool}: a problem has no graded sample under a cap of {cap} tokens")
        right = int(np.sum(grades))
        for column, n in enumerate(trials):
            if n <= len(grades):
                found[row, column] = pass_at_k(len(grades), right, n)
            else:
                wrong = len(grades) - right + 0.5 + np.arange(n)
                found[row, column] = 1 - np.prod(wrong / (wrong + right + 0.5))
    return found


def choose(seconds: np.ndarray, accuracy: np.ndarray, limit: float, target: float | None = None) -> int | None:
    """The row to run: within `limit` seconds the most accurate, the quickest among equals; with a `target` the quickest
    that reaches it, the most accurate among equals. None where no row is left. Never a dominated row.
    """
    able = np.isfinite(seconds) & (seconds <= limit)
    if target is not None:
        able &= accuracy >= target - SAME
    rows = np.flatnonzero(able)
    if not len(rows):
        return None
    first, second = (-accuracy, seconds) if target is None else (seconds, -accuracy)
    return int(rows[np.lexsort((second[rows], first[rows]))[0]])


def plan(found: Options, budget: Budget, *, seed: int = 0) -> Plan:
    """The best configuration on a budget, how sure its accuracy is, and what it was preferred to.

    Raises PlanError when nothing fits the memory or the budget, or reaches the target, naming the least that does.
    """
    limit, target = budget.limit(found.hardware, found.chips), budget.target_accuracy
    seconds = found.table["seconds"].to_numpy(np.float64)
    accuracy = found.table["accuracy"].to_numpy(np.float64)
    chosen = choose(seconds, accuracy, limit, target)
    if chosen is None:
        raise PlanError(_refusal(found, limit, target))
    runner_up, beyond = _rivals(found, chosen, seconds, accuracy, limit, target)
    values = found.solved[chosen]
    low, high = cluster_bootstrap(values)
    optimism = _optimism(found.solved, seconds, limit, target, seed)
    run_low, run_high = _run_interval(values, found.problems, optimism, seed)
    why = {}
    for rival in (runner_up, beyond):
        if rival is not None:
            why[rival] = _why_not(found, chosen, rival, limit)
    return Plan(
        found,
        chosen,
        runner_up,
        beyond,
        float(accuracy[chosen]),
        float(low),
        float(high),
        optimism,
        run_low,
        run_high,
        why,
    )


def _powers(samples: int) -> list[int]:
    """Powers of two up to as many slots as there are samples, at most MOST_SLOTS."""
    return [2**i for i in range(min(samples, MOST_SLOTS).bit_length())]


def _rivals(
    found: Options, chosen: int, seconds: np.ndarray, accuracy: np.ndarray, limit: float, target: float | None
) -> tuple[int | None, int | None]:
    """The best row that is no mere other batch of the chosen one, and the quickest more accurate one out of reach."""
    names = ["model", "attention", "N", "cap"]
    same = (found.table[names] == found.table.iloc[chosen][names]).all(axis=1).to_numpy()
    runner_up = choose(np.where(same, np.inf, seconds), accuracy, limit, target)
    better = (accuracy > accuracy[chosen] + SAME) & (seconds > limit)
    rows = np.flatnonzero(better)
    if target is not None or not len(rows):
        return runner_up, None
    order = np.lexsort((found.table["batch"].to_numpy()[rows], -accuracy[rows], seconds[rows]))
    return runner_up, int(rows[order[0]])


def _why_not(found: Options, chosen: int, rival: int, limit: float) -> str:
    best, other = found.table.iloc[chosen], found.table.iloc[rival]
    if other["fits"] < other["batch"]:
        return f"does not fit: room for {other['fits']} sequences, {other['batch']} are needed"
    if other["seconds"] > limit:
        return f"takes {other['seconds']:.4g} s, more than the {limit:.4g} s there are"
    paired = paired_difference(found.solved[chosen], found.solved[rival])
    gain = paired.difference
    slower = float(other["seconds"] - best["seconds"])
    if abs(gain) <= SAME:
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
    for _ in range(SPLITS):
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


def _refusal(found: Options, limit: float, target: float | None) -> str:
    rows = found.table.to_dict(orient="records")
    able = [row for row in rows if math.isfinite(row["seconds"])]
    if not able:
        least = min(rows, key=lambda row: (row["parameters"], row["cap"]))
        return (
            f"plan: nothing fits into the memory of {found.chips} x {found.hardware.name}; the smallest, "
            f"{least['model']} with {least['cap']} tokens, has room for {least['fits']} sequences; give more --chips"
        )
    best = max(able, key=lambda row: (row["accuracy"], -row["seconds"]))
    if target is not None and best["accuracy"] < target - SAME:
        return f"plan: nothing reaches an accuracy of {target}; the best is {_name(best)} with {best['accuracy']:.3f}"
    least = min(
        (row for row in able if target is None or row["accuracy"] >= target - SAME), key=lambda row: row["seconds"]
    )
    price = f" ({least['dollars']:.3g} in money)" if not math.isnan(least["dollars"]) else ""
    reach = f" that reaches {target}" if target is not None else ""
    return (
        f"plan: nothing{reach} fits into {limit:.4g} seconds; the cheapest, {_name(least)}, takes "
        f"{least['seconds']:.4g} s{price} for {found.problems} problems"
    )


def _name(row: dict[Any, Any]) -> str:
    return f"{row['model']} {row['attention']} N={row['N']} cap={row['cap']} batch={row['batch']}"
