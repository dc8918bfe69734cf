"""What can be run: every configuration that stored samples cover, with its accuracy, seconds and money; and budgets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from kinetics_jax.analysis.counted import typical_policy
from kinetics_jax.analysis.defaults import (
    fewest_graded,
    max_sample_tokens,
    powers_of_two,
    rounded_accuracy,
)
from kinetics_jax.analysis.first_answer import first_answer_seconds
from kinetics_jax.analysis.picked import contradictions
from kinetics_jax.analysis.pricing import Pricing
from kinetics_jax.analysis.rule_names import VOTES
from kinetics_jax.analysis.rules import check_rule, drawn_noise, lacks, rule_accuracy
from kinetics_jax.analysis.samples import Pool, SamplesError, undecided_counts
from kinetics_jax.analysis.workload import Workload, busiest_share, workload, workload_seconds
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.costs.links import unknown_link
from kinetics_jax.costs.memory import fits
from kinetics_jax.errors import UserError
from kinetics_jax.stats.estimators import pass_at_k

if TYPE_CHECKING:
    import pandas as pd

MAX_SLOTS = 8192  # of a default batch
MAX_SIMULATED = 200_000  # samples of a configuration


class PlanError(UserError):
    """Raised for a budget that nothing fits, naming the least that does, and for impossible numbers."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a workload may take: `seconds`, `dollars` (in the currency of the hardware's price), `joules`, or the
    cheapest way to a `target_accuracy` in (0, 1]. Raises PlanError without any of them, or for impossible ones.
    """

    seconds: float | None = None
    dollars: float | None = None
    target_accuracy: float | None = None
    joules: float | None = None

    def __post_init__(self) -> None:
        if self.seconds is self.dollars is self.target_accuracy is self.joules is None:
            raise PlanError("plan: give a budget, --seconds, --dollars or --joules, or --target-accuracy")
        for name, value in (("seconds", self.seconds), ("dollars", self.dollars), ("joules", self.joules)):
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
    N, cap, batch, accuracy, seconds, prefill_seconds, first_answer` (seconds, see `first_answer_seconds`), `dollars,
    joules` (NaN where the energy was not measured), `fits` (sequences that memory holds on average, `batching.Room`;
    `seconds` is infinite where `batch` is more), `fits_full` (if each may grow to its cap), `undecided` samples of the
    runs (and `dropped`, see `samples.pooled`). `solved`: the accuracy of N samples by the decision `rule`
    (`rules.Rule`). `replicas` copies of the model, of `chips` chips each, share the problems.
    """

    table: pd.DataFrame
    solved: Float[np.ndarray, "rows problems"]
    hardware: Hardware
    chips: int
    problems: int
    warnings: tuple[str, ...]
    replicas: int = 1
    rule: str = "pass"


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
    rule: str = "pass",
) -> Options:
    """All configurations of the pools' models and attentions, N, caps and batches, with accuracy and seconds.

    `problems` like the pools' are to be solved, by default as many, by `replicas` copies of a model on `chips` chips
    each (`workload.busiest_share`). `trials` defaults to the powers of two up to the fewest graded samples and all of
    these; beyond those, pass@N is the expectation under a Beta(½, ½) prior on each problem's rate, and a warning says
    so. `caps` default to the run's max_tokens, its half, and those at which cut texts were graded. `batches` default to
    `batch_sizes`. `rule` says what counts as solved (`rules.Rule`); a cap at which the samples lack what it needs is
    left out. Raises SamplesError if an architecture or token counts are missing, PlanError for numbers below 1, or if
    no cap is within what the samples show, EstimateError where a rule would have to pick among more than the graded
    samples.
    """
    import pandas as pd

    if chips < 1 or replicas < 1 or (problems is not None and problems < 1):
        raise PlanError(
            f"plan: chips, replicas and problems must be at least 1, got {chips}, {replicas} and {problems}"
        )
    for name, values in (("trials", trials), ("caps", caps), ("batches", batches)):
        if values is not None and (not values or min(values) < 1):
            raise PlanError(f"plan: {name} must be whole numbers from 1 up, got {list(values)}")
    check_rule(rule)
    measured = len(pools[0].problems)
    count = measured if problems is None else problems
    most = max(trials or (max(map(fewest_graded, pools)),))
    if count * most > MAX_SIMULATED:
        raise PlanError(
            f"plan: {count} problems of {most} samples are more than the {MAX_SIMULATED:,} that a plan plays through; "
            "give fewer --problems (seconds and money grow with them) or --trials"
        )
    warnings = _caveats(hardware, chips=chips, asked=count, measured=measured)
    if most > 1 and rule in ("pass", *VOTES) and (odd := contradictions(pools)):
        warnings.append(odd)
    rows: list[dict[str, Any]] = []
    solved: list[np.ndarray] = []
    left_out: list[str] = []
    if noise := drawn_noise(pools, rule, trials or range(1, most + 1)):
        warnings.append(f"accuracies by {rule} are partly means over drawn sets: standard error at most {noise:.1g}")
    for pool in pools:
        limit, graded = max_sample_tokens(pool), fewest_graded(pool)
        for cap in sorted(set(caps or (limit, max(1, limit // 2), *pool.caps))):
            if cap > limit:
                warnings.append(
                    f"{pool}: samples ended at {limit} tokens; nothing is known of a cap of {cap}, left out"
                )
                continue
            if why := lacks(pool, rule, cap):
                warnings.append(f"cap {cap} is left out: {why}")
                left_out.append(why)
                continue
            counts = sorted(set(trials or (*powers_of_two(graded), graded)))
            warnings += [
                f"{pool}: N = {n} is more than the {graded} samples of a problem: extrapolated"
                for n in counts
                if n > graded
            ]
            held = _Held.of(pool, hardware, cap=cap, chips=chips)
            solved_within = pass_at_n(pool, counts, cap) if rule == "pass" else rule_accuracy(pool, rule, counts, cap)
            for n, accuracy in zip(counts, solved_within.T, strict=True):
                work = busiest_share(workload(pool, problems=count, trials=n, cap=cap), replicas)
                sizes = sorted(set(batches or batch_sizes(work.lengths.size, held.average)))
                options = {"cap": cap, "held": held, "chips": chips, "paid": chips * replicas}
                rows += [_option(pool, hardware, work, accuracy, batch=batch, **options) for batch in sizes]
                solved += [accuracy] * len(sizes)
    if not rows and left_out:
        raise PlanError(f"plan: --rule {rule}: {left_out[0]}")
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
        rule=rule,
    )


def batch_sizes(samples: int, room: int) -> list[int]:
    """Batches worth a look for so many samples, none larger than the room there is (1 where there is none).

    Powers of two, the largest that can be used (all samples at once, or all the room), and those that take the samples
    in 2 to 4 equal turns.
    """
    most = max(1, min(samples, room, MAX_SLOTS))
    turns = (-(-samples // count) for count in range(1, 5))
    return sorted({*powers_of_two(most), most, *(size for size in turns if size <= most)})


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
    elif hardware.source:
        caveats.append(f"{hardware.name}: seconds are by a measured profile ({hardware.source})")
    if unknown := unknown_link(hardware, chips):
        caveats.append(unknown)
    return caveats


@dataclasses.dataclass(frozen=True)
class _Held:
    """What memory holds beside the weights: sequences on `average` and if each may grow to its cap (`full`), tokens."""

    average: int
    full: int
    tokens: float

    @classmethod
    def of(cls, pool: Pool, hardware: Hardware, *, cap: int, chips: int) -> _Held:
        pricing = Pricing(hardware=hardware, batch="fit", chips=chips)
        config = pool.priced()
        kv, weights = pricing.widths(pool)
        longest = int(max(problem.prompt_tokens for problem in pool.problems.values()) + cap)
        sizes = {"chips": chips, "attention": pool.attention, "kv_bytes": kv, "weight_bytes": weights}
        whole = fits(config, hardware, tokens=longest, **sizes)
        room = pricing.room(pool, cap)
        return cls(room.batch if room else 0, room.full if room else 0, longest * whole.free / whole.sequence)


def _option(
    pool: Pool,
    hardware: Hardware,
    work: Workload,
    solved: Float[np.ndarray, " problems"],
    *,
    cap: int,
    batch: int,
    held: _Held,
    chips: int,
    paid: int,
) -> dict[str, Any]:
    """A row of `Options.table`, for one configuration whose pass@N is `solved`; `paid` chips in all cost money."""
    spent, first = None, math.inf
    if batch <= held.average:
        kv, weights = Pricing().widths(pool)
        configuration = pool.priced(), typical_policy(pool), hardware
        priced: dict[str, Any] = {
            "slots": batch,
            "cap": cap,
            "chips": chips,
            "kv_bytes": kv,
            "weight_bytes": weights,
            "held_tokens": held.tokens,
        }
        spent = workload_seconds(*configuration, work, **priced)
        first = first_answer_seconds(*configuration, work, **priced)
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
        "first_answer": first,
        "dollars": spent.total / 3600 * paid * price if spent and price else math.nan,
        "joules": math.nan if spent is None or spent.joules is None else spent.joules * paid / chips,
        "fits": held.average,
        "fits_full": held.full,
        **undecided_counts([pool]),
    }


def within_joules(options: Options, most: float) -> Options:
    """The configurations that draw at most so many joules. Raises PlanError for none, with the least that any draws."""
    drawn = options.table["joules"].to_numpy(np.float64)
    able = np.flatnonzero(drawn <= most)  # not NaN: what does not fit draws nothing
    if not len(able):
        least = "nothing fits at all" if np.all(np.isnan(drawn)) else f"the least is {np.nanmin(drawn):.4g} J"
        raise PlanError(f"plan: no configuration draws {most:.4g} J or less for {options.problems} problems; {least}")
    table = options.table.iloc[able].reset_index(drop=True)
    return dataclasses.replace(options, table=table, solved=options.solved[able])


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
