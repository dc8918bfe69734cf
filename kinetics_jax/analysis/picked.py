"""Accuracy of N samples where one answer has to be picked, beside pass@N, which takes whichever is right.

By majority where the samples' answers are known; where a verifier scored the samples, the answer of the highest score,
and the vote weighed by scores. All are expectations over N samples drawn of a problem's n without replacement.
"""

from __future__ import annotations

import collections
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from kinetics_jax.analysis.defaults import check_trials, rounded_accuracy
from kinetics_jax.analysis.samples import Pool, ProblemSamples
from kinetics_jax.analysis.votes import best_by_score, majority_vote, weighted_vote
from kinetics_jax.stats.estimators import EstimateError
from kinetics_jax.stats.intervals import accuracy_interval

if TYPE_CHECKING:
    import pandas as pd

PASS_AT_N = "Accuracy at N > 1 is pass@N: it needs someone who knows which answer is right."
MOST_NAMED = 5  # problems, in a line
RULES = {
    "majority": "the most frequent answer",
    "best_score": "the answer with a verifier's highest score",
    "weighted_vote": "the answer with the largest sum of a verifier's scores",
}


def picked_accuracy(
    pool: Pool, rule: str, trials: Sequence[int], cap: int | None = None
) -> Float[np.ndarray, "problems trials"]:
    """Accuracy of the answer that a rule of RULES picks of N samples, cut at `cap` tokens: a sample that does not end
    within it has no answer and no score above others'. Raises EstimateError where `cannot_pick` says why, and for more
    trials than graded samples.
    """
    if why := cannot_pick(pool, rule, cap):
        raise EstimateError(f"{pool}: no {rule.replace('_', ' ')}: {why}")
    check_trials(pool, trials)
    pick: Callable[..., Any] = {"majority": _majority, "best_score": _best, "weighted_vote": _weighted}[rule]
    return np.array([pick(*_graded(problem, cap), trials) for problem in pool.problems.values()])


def cannot_pick(pool: Pool, rule: str, cap: int | None = None) -> str | None:
    """Why a rule cannot pick among a pool's samples, in a few words; None where it can."""
    problems = pool.problems.values()
    if cap is not None and cap in pool.caps and any(problem.longest > cap for problem in problems):
        return f"what the samples cut at {cap} tokens answered is not stored"
    if rule != "best_score":
        if not all(problem.answers for problem in problems):
            return "what the samples answered is not known"
        if mute := sum(
            grade is True and answer is None
            for problem in problems
            for grade, answer in zip(problem.grades, problem.answers, strict=True)
        ):
            return f"{mute} right samples have no answer on record"
    if rule != "majority":
        scores = np.array([score for problem in problems for score in problem.scores])
        if not len(scores):
            return "no verifier scored the samples"
        if missing := int(np.isnan(scores).sum()):
            return f"{missing} of {len(scores)} samples have no score"
        if rule == "weighted_vote" and scores.min() < 0:
            return "a vote cannot be weighed by scores below 0"
    return None


def contradictions(pools: Sequence[Pool]) -> str | None:
    """A line that names the problems of which one answer is right in some samples and wrong in others, of one pool or
    of several; None without such. A vote counts it as two answers. Undecided samples contradict nothing.
    """
    verdicts: dict[tuple[str, str], set[bool]] = collections.defaultdict(set)
    for pool in pools:
        for name, problem in pool.problems.items():
            for answer, grade, undecided in zip(
                problem.answers, problem.grades, problem.undecided or [False] * len(problem.grades), strict=False
            ):
                if answer is not None and grade is not None and not undecided:
                    verdicts[name, str(answer).strip()].add(grade)
    odd = sorted({name for (name, _), grades in verdicts.items() if len(grades) > 1})
    if not odd:
        return None
    name, answer = next(key for key, grades in sorted(verdicts.items()) if len(grades) > 1)
    shown = ", ".join(repr(each)[:60] for each in odd[:MOST_NAMED])
    more = f" and {len(odd) - MOST_NAMED} more" if len(odd) > MOST_NAMED else ""
    return (
        f"answers and grades contradict each other in problem{'s' * (len(odd) > 1)} {shown}{more}: {answer[:40]!r} is "
        f"right in some samples of {name[:60]!r} and wrong in others, so a majority is not to be "
        "trusted there; grade the samples anew"
    )


def with_picks(table: pd.DataFrame, pools: Sequence[Pool]) -> pd.DataFrame:
    """A frontier's table with columns `majority`, `majority_low`, `majority_high`, the accuracy of what the majority
    answers and its 95 % interval from redrawing problems; `best_score` and `weighted_vote` alike where samples have
    scores.

    The table has a row per model, attention and N, and `cap` where samples are cut. Where no N is above 1 nothing needs
    to be picked, and it stays as it is. A rule that can pick in no row has no columns; in other rows where it cannot,
    NaN. Warns of `contradictions`. `attrs["picks"]`: PASS_AT_N, and a line for each rule that is missing somewhere.
    """
    if max(table["N"]) == 1:
        return table
    if odd := contradictions(pools):
        warnings.warn(odd, stacklevel=3)
    scored = any(problem.scores for pool in pools for problem in pool.problems.values())
    notes = [PASS_AT_N]
    table = table.copy()
    place = int(table.columns.get_loc("high")) + 1  # pyright: ignore[reportArgumentType]
    for rule in ("majority", "best_score", "weighted_vote") if scored else ("majority",):
        values = {name: np.full(len(table), math.nan) for name in (rule, f"{rule}_low", f"{rule}_high")}
        gaps = {}
        for pool in pools:
            of_pool = (table["model"] == pool.model) & (table["attention"] == str(pool.attention))
            for cap in sorted(set(table.loc[of_pool, "cap"])) if "cap" in table else [None]:
                rows = np.flatnonzero(of_pool & ((table["cap"] == cap) if cap is not None else True))
                if why := cannot_pick(pool, rule, cap):
                    gaps[str(pool)] = why
                    continue
                accuracy = picked_accuracy(pool, rule, [int(n) for n in table["N"].to_numpy()[rows]], cap)
                ends = accuracy_interval(accuracy)
                for name, column in zip(values, (rounded_accuracy(accuracy.mean(axis=0)), *ends), strict=True):
                    values[name][rows] = column
        known = not all(np.isnan(values[rule]))
        if known:
            for offset, (name, column) in enumerate(values.items()):
                table.insert(place + offset, name, column)
            place += len(values)
        if gaps:
            pool, why = next(iter(gaps.items()))
            of = f"for {pool}" + (f" and {len(gaps) - 1} more" if len(gaps) > 1 else "") if known else "beside it"
            notes.append(f"No {rule.replace('_', ' ')} {of}: {why}.")
    table.attrs["picks"] = notes
    return table


def _graded(problem: ProblemSamples, cap: int | None) -> tuple[list[Any], list[bool], list[float]]:
    """Answers, grades and scores of a problem's graded samples; of one that is cut: none, wrong, below all others."""
    kept = [i for i, grade in enumerate(problem.grades) if grade is not None]
    within = [cap is None or problem.lengths[i] <= cap for i in kept]
    return (
        [problem.answers[i] if ends else None for i, ends in zip(kept, within, strict=True)] if problem.answers else [],
        [bool(problem.grades[i]) and ends for i, ends in zip(kept, within, strict=True)],
        [problem.scores[i] if ends else -math.inf for i, ends in zip(kept, within, strict=True)]
        if problem.scores
        else [],
    )


def _majority(answers: list[Any], right: list[bool], scores: list[float], trials: Sequence[int]) -> Any:
    return majority_vote(answers, right, trials)


def _best(answers: list[Any], right: list[bool], scores: list[float], trials: Sequence[int]) -> Any:
    least = min((score for score in scores if score > -math.inf), default=0.0)
    return best_by_score([max(score, least - 1) for score in scores], right, trials)


def _weighted(answers: list[Any], right: list[bool], scores: list[float], trials: Sequence[int]) -> Any:
    return weighted_vote(answers, right, [max(score, 0.0) for score in scores], trials)
