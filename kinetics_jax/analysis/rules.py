"""Decision rules: what becomes of the N answers of a problem, and how accurate that is, from stored samples.

Every accuracy is the expectation over N samples drawn of a problem's n without replacement: unbiased for N fresh
samples. Exact for `pass` (the paper's estimator), `average`, `best-of-verifier`, and `majority` up to 256 samples of a
problem; for `weighted` as long as a problem has at most 20,000 sets of N samples. Beyond, over drawn sets
(votes.DRAWS), whose noise `drawn_noise` bounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np
from jaxtyping import Float

from kinetics_jax.analysis.defaults import check_trials
from kinetics_jax.analysis.problem_samples import SamplesError, Votes
from kinetics_jax.analysis.rule_names import MONOTONE, SCORED, VOTES, WORDS, Rule
from kinetics_jax.analysis.samples import Pool
from kinetics_jax.analysis.votes import DRAWS, EXACT_DRAWS, EXACT_SAMPLES, best_by_score, majority_vote, weighted_vote
from kinetics_jax.errors import spelled
from kinetics_jax.stats.estimators import EstimateError, pass_at_k

ADD_ANSWERS = "fill in a column answer of its table, or of a trace, grade it (kinetics grade TRACE --caps N keeps them)"
ADD_SCORES = "fill in a column score of its table"


def check_rule(rule: str) -> None:
    """Raises SamplesError for a rule that is not known."""
    if rule not in get_args(Rule):
        raise SamplesError(f"rule {spelled(rule)} is not known (known: {', '.join(get_args(Rule))})")


def rule_accuracy(
    pool: Pool, rule: str, trials: Sequence[int], cap: int | None = None
) -> Float[np.ndarray, "problems trials"]:
    """Accuracy of N samples of each problem under a rule, for each N of `trials`, cut at `cap` tokens.

    A sample that does not end within the cap is wrong and answers nothing, unless its cut text was graded. Raises
    SamplesError where `lacks` says what is missing, EstimateError for more trials than graded samples.
    """
    check_rule(rule)
    if why := lacks(pool, rule, cap):
        raise SamplesError(why)
    check_trials(pool, trials)
    if rule in MONOTONE:
        grades = [problem.votes_under(cap).right for problem in pool.problems.values()]
        counts = np.ones(len(trials), int) if rule == "average" else np.asarray(trials)
        return pass_at_k(
            np.array([[len(right)] for right in grades]), np.array([[sum(right)] for right in grades]), counts
        )
    each = [problem.votes_under(cap) for problem in pool.problems.values()]
    return np.array([_picked(rule, votes, trials, seed) for seed, votes in enumerate(each)])


def lacks(pool: Pool, rule: str, cap: int | None = None) -> str | None:
    """What a rule needs that a pool's samples have not, where, and the cure; None where it can be computed."""
    missing = _missing(pool, rule, cap)
    return missing and f"{pool.where}: no {WORDS[rule].partition(' (')[0]}, since {missing[0]}; {missing[1]}"


def lacks_words(pool: Pool, rule: str, cap: int | None = None) -> str | None:
    """What a rule needs that a pool's samples have not, in a few words."""
    missing = _missing(pool, rule, cap)
    return missing and missing[0]


def require_rule(pools: Iterable[Pool], rule: str, caps: Iterable[int | None] = (None,)) -> None:
    """Raises SamplesError for the first pool and cap that lack what a rule needs, and for a rule that is not known."""
    check_rule(rule)
    asked = list(caps)
    for pool in pools:
        for cap in asked:
            if why := lacks(pool, rule, cap):
                raise SamplesError(why)


def drawn_noise(pools: Iterable[Pool], rule: str, trials: Iterable[int]) -> float:
    """The largest standard error that drawing sets of N samples can leave in an accuracy; 0 where all are exact."""
    counts, worst = list(trials), 0.0
    for pool in pools:
        sizes = [problem.graded for problem in pool.problems.values()]
        for n in counts:
            drawn = sum(not _exact(rule, size, n) for size in sizes)
            worst = max(worst, 0.5 / math.sqrt(DRAWS) * math.sqrt(drawn) / len(sizes))
    return worst


def _exact(rule: str, samples: int, n: int) -> bool:
    if rule == "majority":
        return samples <= EXACT_SAMPLES
    return rule != "weighted" or n > samples or math.comb(samples, n) <= EXACT_DRAWS


def _missing(pool: Pool, rule: str, cap: int | None) -> tuple[str, str] | None:
    """What is missing, and the cure."""
    problems = pool.problems.values()
    if rule in MONOTONE:
        return None
    cut = cap is not None and cap in pool.caps and any(problem.longest > cap for problem in problems)
    if rule in SCORED:
        scores = np.array([score for problem in problems for score in problem.scores])
        if not len(scores):
            return "no verifier scored the samples", ADD_SCORES
        if count := int(np.isnan(scores).sum()):
            return f"{count} of {len(scores)} samples have no score", "fill those in"
        if cut:
            return f"no verifier scored the samples as they are when cut at {cap} tokens", "leave the cap out"
        if rule == "weighted" and scores.min() < 0:
            return "a vote cannot be weighed by scores below 0", "shift or scale the scores to 0 and above"
    if rule in VOTES:
        if not all(problem.answers for problem in problems):
            return "what the samples answered is not known", ADD_ANSWERS
        if cut and not all(problem.answers_within for problem in problems):
            return (
                f"what the samples cut at {cap} tokens answered is not stored",
                "grade them again (kinetics grade RUN --caps …)",
            )
        each = [problem.votes_under(cap) for problem in problems]
        if mute := sum(
            right and answer is None for votes in each for answer, right in zip(votes.answers, votes.right, strict=True)
        ):
            return f"{mute} right samples have no answer on record", "fill their answers in"
    return None


def _picked(rule: str, votes: Votes, trials: Sequence[int], seed: int) -> Any:
    if rule == "majority":
        return majority_vote(votes.answers, votes.right, trials, seed=seed)
    if rule == "weighted":
        weights = [max(score, 0.0) for score in votes.scores]
        return weighted_vote(votes.answers, votes.right, weights, trials, seed=seed)
    if rule != "best-of-verifier":
        raise EstimateError(f"no answer is picked by {spelled(rule)}")
    least = min((score for score in votes.scores if score > -math.inf), default=0.0)
    return best_by_score([max(score, least - 1) for score in votes.scores], votes.right, trials)
