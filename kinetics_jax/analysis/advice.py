"""What to run on a budget: the best of the options, how sure that is, and what it was preferred to."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from kinetics_jax.analysis.certainty import accuracy_draws, compare, may_be_quickest
from kinetics_jax.analysis.defaults import rounded_accuracy
from kinetics_jax.analysis.planner import Budget, Options, PlanError, choose
from kinetics_jax.analysis.rule_names import MONOTONE
from kinetics_jax.costs.hardware import chips_words
from kinetics_jax.stats.intervals import accuracy_interval, paired_difference

HALVINGS = 200
CONFIGURATION = ["model", "attention", "N", "cap"]  # what two rows of unlike batches can share


@dataclasses.dataclass(frozen=True, eq=False)
class Advice:
    """What to run: row numbers of `options.table`.

    `accuracy`: as measured. `optimism`: what choosing the best of many on the same problems flatters it by;
    `expected_accuracy` takes it off, and so does the lower end of the 95 % interval `low … high` over problems, and of
    `run_low … run_high`: where the score of one run over `options.problems` fresh problems falls, 95 times in 100.

    `probabilities`: of every configuration within the budget, at its quickest batch, how likely it is the right choice:
    the most accurate one (those that are alike on every measured problem share), or the quickest that reaches the
    target. `as_accurate`: the others of the same measured accuracy, none quicker. `regret`: expected loss of accuracy
    of the chosen one against the most accurate within the budget, or against the target. `alternatives`: those that
    the data cannot tell from the right choice, the chosen one first; the right one is among them 95 times in 100.
    Without a target there is none that another one contains (`_never_better`), but for the chosen one.

    `why_not`: of the runner-up, and of what is more accurate beyond the budget.
    """

    options: Options
    target_accuracy: float | None
    chosen: int
    runner_up: int | None
    beyond: int | None
    accuracy: float
    low: float
    high: float
    optimism: float
    run_low: float
    run_high: float
    regret: float
    probabilities: dict[int, float]
    as_accurate: tuple[int, ...]
    alternatives: tuple[int, ...]
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


def advise(options: Options, budget: Budget, *, seed: int = 0) -> Advice:
    """The best configuration on a budget, how sure its accuracy is, and what it was preferred to.

    Raises PlanError when nothing fits the memory or the budget, or reaches the target, naming the least that does.
    """
    limit, target = budget.limit(options.hardware, options.chips * options.replicas), budget.target_accuracy
    seconds = options.table["seconds"].to_numpy(np.float64)
    accuracy = rounded_accuracy(options.table["accuracy"].to_numpy(np.float64))
    chosen = choose(seconds, accuracy, limit, target)
    if chosen is None:
        raise PlanError(_refusal(options, limit, target))
    rows = distinct(options, limit)
    solved, quick = options.solved[rows], seconds[rows]
    runner_up, beyond = _rivals(options, chosen, seconds, accuracy, limit, target)
    values = options.solved[chosen]
    low, high = accuracy_interval(values)
    optimism = _optimism(solved, quick, target, seed)
    run_low, run_high = _run_interval(values, options.problems, optimism, seed)
    compared = compare(solved, seed=seed)
    kept = compared.may_be_best if target is None else may_be_quickest(solved, quick, target, seed=seed)
    below = _never_better(options, rows)
    if target is None:
        kept &= ~below.any(axis=1) | (rows == chosen)
    alternatives = sorted(rows[kept], key=lambda row: (row != chosen, -accuracy[row], seconds[row]))
    draws = _draws(options, rows, seed)
    best = draws.max(axis=1) if target is None else target
    shares = _shares(draws, solved) if target is None else _shares_of_target(draws, quick, target)
    position = {int(row): i for i, row in enumerate(rows)}
    why = {}
    if runner_up is not None:
        rival = position[runner_up]
        sure = "surely so" if compared.surely_less(rival, position[chosen]) else "not surely so"
        if below[rival, position[chosen]]:
            sure = "and never more: fewer samples or a lower cap of the same"
        why[runner_up] = _why_not(options, chosen, runner_up, sure)
    if beyond is not None:
        why[beyond] = _why_beyond(options, beyond, limit)
    return Advice(
        options=options,
        target_accuracy=target,
        chosen=chosen,
        runner_up=runner_up,
        beyond=beyond,
        accuracy=float(accuracy[chosen]),
        low=max(0.0, float(low) - optimism),
        high=float(high),
        optimism=optimism,
        run_low=run_low,
        run_high=run_high,
        regret=float(np.mean(np.maximum(best - draws[:, position[chosen]], 0))),
        probabilities=dict(zip(position, shares.tolist(), strict=True)),
        as_accurate=tuple(int(row) for row in rows if row != chosen and accuracy[row] == accuracy[chosen]),
        alternatives=tuple(map(int, alternatives)),
        why_not=why,
    )


def distinct(options: Options, limit: float) -> Int[np.ndarray, " rows"]:
    """Of every configuration the row of the batch that is quickest, where that takes no more than `limit` seconds."""
    seconds = options.table["seconds"].to_numpy(np.float64)
    order = np.argsort(seconds, kind="stable")
    able = order[np.isfinite(seconds[order]) & (seconds[order] <= limit)]
    again = options.table.iloc[able].duplicated(CONFIGURATION).to_numpy()
    return np.sort(able[~again])


def _never_better(options: Options, rows: np.ndarray) -> Bool[np.ndarray, "rows rows"]:
    """[i, j]: row i cannot be more accurate than row j, of the same model and attention with no fewer samples and no
    lower cap. Not where grades of cut texts say otherwise, nor by a rule that can get worse with more samples.
    """
    if options.rule not in MONOTONE:
        return np.zeros((len(rows), len(rows)), bool)
    table = options.table.iloc[rows]
    source = table.groupby(["model", "attention"], sort=False).ngroup().to_numpy()
    n, cap = table["N"].to_numpy(), table["cap"].to_numpy()
    solved = rounded_accuracy(options.solved[rows])
    same = source[:, None] == source
    contained = (n[:, None] <= n) & (cap[:, None] <= cap) & ((n[:, None] < n) | (cap[:, None] < cap))
    below = same & contained
    for i, j in np.argwhere(below):
        below[i, j] = bool(np.all(solved[i] <= solved[j]))
    return below


def _draws(options: Options, rows: np.ndarray, seed: int) -> Float[np.ndarray, "draws rows"]:
    table = options.table.iloc[rows]
    source = table.groupby(["model", "attention"], sort=False).ngroup().to_numpy()
    trials = table["N"].to_numpy() if options.rule == "pass" else np.ones(len(rows), int)
    return accuracy_draws(options.solved[rows], source, trials, seed=seed)


def _shares(draws: Float[np.ndarray, "draws rows"], solved: Float[np.ndarray, "rows problems"]) -> np.ndarray:
    """How likely each row is the most accurate. Rows that are alike on every measured problem share what any of them
    wins: between them the draws go by the prior of a problem that nobody measured.
    """
    ordered = rounded_accuracy(draws)
    best = ordered == ordered.max(axis=1, keepdims=True)
    kind = np.unique(rounded_accuracy(solved), axis=0, return_inverse=True)[1].reshape(-1)
    alike = (kind[:, None] == kind).astype(np.float32)
    tied = best.astype(np.float32) @ alike > 0
    return np.mean(tied / tied.sum(axis=1, keepdims=True), axis=0)


def _shares_of_target(draws: np.ndarray, seconds: np.ndarray, target: float) -> np.ndarray:
    """How likely each row is the quickest that reaches the target, given that one does."""
    choices = _choices(draws, seconds, target)
    return np.bincount(choices[choices >= 0], minlength=len(seconds)) / max(np.sum(choices >= 0), 1)


def _choices(accuracy: np.ndarray, seconds: np.ndarray, target: float | None) -> np.ndarray:
    """`choose` for every draw of `accuracy [draws, rows]`, all within the budget: rows, -1 where none does."""
    order = np.argsort(seconds, kind="stable")
    ordered = rounded_accuracy(accuracy[:, order])
    able = ordered >= (ordered.max(axis=1, keepdims=True) if target is None else rounded_accuracy(target))
    return np.where(able.any(axis=1), order[np.argmax(able, axis=1)], -1)


def _rivals(
    options: Options, chosen: int, seconds: np.ndarray, accuracy: np.ndarray, limit: float, target: float | None
) -> tuple[int | None, int | None]:
    """The best row that is no mere other batch of the chosen one, and the quickest more accurate one out of reach."""
    same = (options.table[CONFIGURATION] == options.table.iloc[chosen][CONFIGURATION]).all(axis=1).to_numpy()
    runner_up = choose(np.where(same, np.inf, seconds), accuracy, limit, target)
    better = (accuracy > accuracy[chosen]) & (seconds > limit)
    rows = np.flatnonzero(better)
    if target is not None or not len(rows):
        return runner_up, None
    order = np.lexsort((options.table["batch"].to_numpy()[rows], -accuracy[rows], seconds[rows]))
    return runner_up, int(rows[order[0]])


def _why_beyond(options: Options, rival: int, limit: float) -> str:
    other = options.table.iloc[rival]
    if other["fits"] < other["batch"]:
        return f"does not fit: room for {other['fits']} sequences, {other['batch']} are needed"
    return f"takes {other['seconds']:.4g} s, more than the budget of {limit:.4g} s"


def _why_not(options: Options, chosen: int, rival: int, sure: str) -> str:
    best, other = options.table.iloc[chosen], options.table.iloc[rival]
    paired = paired_difference(options.solved[chosen], options.solved[rival])
    gain = float(rounded_accuracy(paired.difference))
    slower = float(other["seconds"] - best["seconds"])
    if not gain:
        return f"as accurate, {slower:.4g} s slower" if slower > 0 else "as accurate and as quick"
    if gain > 0:
        return f"{gain:.3f} less accurate ({paired.low:.3f} … {paired.high:.3f} over problems), {sure}"
    return f"{-gain:.3f} more accurate, but {slower:.4g} s slower"


def _optimism(solved: np.ndarray, seconds: np.ndarray, target: float | None, seed: int) -> float:
    """How much better the chosen row looks on the problems it was chosen on than elsewhere.

    The mean over halvings of the problems, of the row chosen on one half and scored on the other, by the square root of
    two: half of the problems err by that much more. That is the whole of it where all rows are equally good; where they
    are apart it is still a little too much, by up to the same factor.
    """
    rng = np.random.default_rng(seed)
    problems = solved.shape[1]
    if problems < 2:
        return 0.0
    half = problems // 2
    order = np.argsort(rng.random((HALVINGS, problems)), axis=1)
    first = np.zeros((HALVINGS, problems), bool)
    np.put_along_axis(first, order[:, :half], True, axis=1)
    parts = np.concatenate([first, ~first]).astype(np.float64)
    here, sizes = parts @ solved.T, parts.sum(axis=1, keepdims=True)
    there = ((1 - parts) @ solved.T) / (problems - sizes)
    here /= sizes
    rows = _choices(here, seconds, target)
    kept = np.flatnonzero(rows >= 0)
    gaps = (here - there)[kept, rows[kept]]
    return max(0.0, float(np.mean(gaps)) / math.sqrt(2)) if len(gaps) else 0.0


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
    where = chips_words(options.chips, options.hardware.name)
    if not able and (most := max(row["fits"] for row in rows)):
        return f"plan: no batch fits into the memory of {where}; give smaller --batches (at most {most})"
    if not able:
        least = min(rows, key=lambda row: (row["parameters"], row["cap"]))
        return (
            f"plan: nothing fits into the memory of {where}; the smallest, "
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
