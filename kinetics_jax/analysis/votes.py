"""Accuracy of a vote among k samples of a problem, in expectation over the k samples that are drawn."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from itertools import combinations

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from kinetics_jax.stats.estimators import Amount, EstimateError
from kinetics_jax.tasks.exact import compare_numbers
from kinetics_jax.tasks.wrapping import TooDeep, plain

EXACT_SAMPLES = 256  # of a problem, for the exact expectation of a majority
EXACT_DRAWS = 20_000  # sets of k samples that a weighted vote goes through one by one
DRAWS = 4000  # sets beyond them


def majority_vote(
    answers: Sequence[Hashable], correct: Sequence[bool], k: npt.ArrayLike, *, draws: int = DRAWS, seed: int = 0
) -> Amount:
    """Probability that the most frequent answer among k of one problem's samples is right.

    `answers [samples]`: what each says, None for nothing, which casts no vote; `correct [samples]`. All right answers
    are one, since the grader found each equal to the known one. Wrong ones are one when they are the same number (1/2
    and 0.5) or the same text but for what surrounds it (`$x$` and `x.`), as the grader compares numbers; two spellings
    of one wrong formula are two, and split their votes. Ties are broken at random: the expectation is taken over
    that too. k samples of which none answers are wrong. k are drawn without replacement; k is a whole number or an
    array, and the result has its shape.

    Exact up to 256 samples, beyond that the mean over `draws` seeded draws. Raises EstimateError unless 1 <= k <= n,
    and for a right sample without an answer.
    """
    labels, right = labelled(answers, correct)
    ks = _sizes(k, len(labels))
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    silent = int(np.sum(labels < 0))
    counts = [int(size) for size in ks.ravel()]
    if right < 0:
        won = [0.0] * len(counts)
    elif len(labels) <= EXACT_SAMPLES:
        won = _majority(int(sizes[right]), np.delete(sizes, right), silent, counts)
    else:
        won = [_drawn(labels, right, np.ones(len(labels)), size, draws, seed) for size in counts]
    return np.array(won).reshape(ks.shape)[()]


def weighted_vote(
    answers: Sequence[Hashable],
    correct: Sequence[bool],
    weights: Float[npt.ArrayLike, " samples"],
    k: npt.ArrayLike,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> Amount:
    """As `majority_vote`, where a sample's vote counts `weights` (a verifier's score, say), at least 0.

    Exact where there are at most 20,000 sets of k samples, else the mean over `draws` seeded draws; ties, to 1e-9 of
    the winner's weight, are broken at random in the expectation. An answer of no weight at all can still tie.
    """
    labels, right = labelled(answers, correct)
    ks = _sizes(k, len(labels))
    scores = np.asarray(weights, np.float64)
    if scores.shape != labels.shape or not np.all((scores >= 0) & np.isfinite(scores)):
        raise EstimateError("a weighted vote needs a finite weight, at least 0, for each sample")
    won = []
    for size in ks.ravel():
        if right < 0:
            won.append(0.0)
        elif math.comb(len(labels), int(size)) <= EXACT_DRAWS:
            chosen = np.array(list(combinations(range(len(labels)), int(size))))
            won.append(float(np.mean(_shares(labels[chosen], scores[chosen], right))))
        else:
            won.append(_drawn(labels, right, scores, int(size), draws, seed))
    return np.array(won).reshape(ks.shape)[()]


def best_by_score(scores: Float[npt.ArrayLike, " samples"], correct: Sequence[bool], k: npt.ArrayLike) -> Amount:
    """Probability that of k samples of a problem the one with the highest score is right: what a verifier achieves.

    Exact, over k drawn without replacement; ties are broken at random in the expectation. k is a whole number or an
    array, and the result has its shape. Raises EstimateError unless 1 <= k <= n, and for scores that are not finite.
    """
    values, right = np.asarray(scores, np.float64), np.asarray(correct, np.float64)
    if values.shape != right.shape or not len(values) or not np.all(np.isfinite(values)):
        raise EstimateError("the best of k by score needs a finite score and a grade for each sample")
    ks = _sizes(k, len(values))
    level = np.unique(values, return_inverse=True)[1]
    share = np.bincount(level, weights=right) / np.bincount(level)  # of the samples at a score, how many are right
    reached = np.concatenate([[0], np.cumsum(np.bincount(level))])  # samples below each score, and all
    won = []
    for size in ks.ravel():
        drawn = np.arange(int(size))
        # P(all draws are among the lowest i samples)
        below = np.prod(np.clip(reached[:, None] - drawn, 0, None) / (len(values) - drawn), axis=1)
        won.append(float(np.sum(share * np.diff(below))))
    return np.array(won).reshape(ks.shape)[()]


def labelled(answers: Sequence[Hashable], correct: Sequence[bool]) -> tuple[np.ndarray, int]:
    """Whole numbers for answers, -1 for none, and the number of the right one, -1 where no sample has it."""
    if len(answers) != len(correct) or not len(answers):
        raise EstimateError(
            f"a vote needs samples, and a grade for each: {len(answers)} answers, {len(correct)} grades"
        )
    if any(good and answer is None for answer, good in zip(answers, correct, strict=True)):
        raise EstimateError("a vote cannot count a sample that is right and has no answer")
    numbers: dict[Hashable, int] = {}
    spellings = _one_spelling([answer for answer, good in zip(answers, correct, strict=True) if not good])
    names = [
        ("right",) if good else ("wrong", spellings.get(answer)) for answer, good in zip(answers, correct, strict=True)
    ]
    labels = [
        -1 if answer is None else numbers.setdefault(name, len(numbers))
        for name, answer in zip(names, answers, strict=True)
    ]
    return np.array(labels), numbers.get(("right",), -1)


def _one_spelling(answers: Sequence[Hashable]) -> dict[Hashable, Hashable]:
    """For every answer the first that is equal to it. Those that are no text are equal as Python has it."""
    first: dict[Hashable, Hashable] = {}
    leaders: dict[str, Hashable] = {}
    for answer in dict.fromkeys(answers):
        if isinstance(answer, str):
            spelling = _spelling(answer)
            same = (other for text, other in leaders.items() if text == spelling or compare_numbers(text, spelling))
            first[answer] = next(same, answer)
            leaders.setdefault(spelling, first[answer])
        else:
            first[answer] = answer
    return first


@functools.lru_cache(maxsize=4096)  # the same wrong answers come again under every attention
def _spelling(answer: str) -> str:
    """An answer as the grader compares it, or as it stands where its braces do not match."""
    try:
        return plain(answer)
    except TooDeep:
        return answer.strip()


def _sizes(k: npt.ArrayLike, samples: int) -> np.ndarray:
    ks = np.asarray(k)
    if np.any(ks < 1) or np.any(ks > samples) or np.any(ks != np.floor(ks)):
        raise EstimateError(f"a vote among k of {samples} samples needs a whole 1 <= k <= {samples}, got {k}")
    return ks


def _majority(right: int, others: np.ndarray, silent: int, ks: Sequence[int]) -> list[float]:
    """The exact expectation for each of `ks`: `right` samples say the right thing, `others [answers]` something else.

    For every number x of right votes: the ways in which no other answer gets more than x of the remaining k - x, each
    that ties weighed by u. A tie of t others is won with probability 1 / (t + 1), the integral of u^t over 0 … 1, which
    a Gauss-Legendre rule of enough nodes gives exactly. Answers given by fewer than x samples cannot get in the way.
    """
    samples = right + int(others.sum()) + silent
    won = [0.0] * len(ks)
    for votes in range(1, min(right, max(ks)) + 1):
        rest = max(ks) - votes
        rivals = others[others >= votes]
        free = silent + int(others[others < votes].sum())
        ties, weights = _rule(min(len(rivals), rest // votes) // 2 + 1)
        ways = np.tile([float(math.comb(free, y)) for y in range(rest + 1)], (len(ties), 1))
        for size in rivals:
            factor = np.tile([float(math.comb(int(size), y)) for y in range(votes + 1)], (len(ties), 1))
            factor[:, votes] *= ties
            longer = np.zeros_like(ways)
            for y in range(min(votes, rest) + 1):
                longer[:, y:] += factor[:, y, None] * ways[:, : rest + 1 - y]
            ways = longer
        mean = weights @ ways
        for i, k in enumerate(ks):
            if k >= votes:
                won[i] += math.comb(right, votes) * float(mean[k - votes]) / math.comb(samples, k)
    return won


@functools.lru_cache(maxsize=256)
def _rule(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of the Gauss-Legendre rule over 0 … 1."""
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return (nodes + 1) / 2, weights / 2


def _drawn(labels: np.ndarray, right: int, weights: np.ndarray, k: int, draws: int, seed: int) -> float:
    rng = np.random.default_rng(seed)
    chosen = np.argsort(rng.random((draws, len(labels))), axis=1)[:, :k]
    return float(np.mean(_shares(labels[chosen], weights[chosen], right)))


def _shares(labels: np.ndarray, weights: np.ndarray, right: int) -> np.ndarray:
    """The right answer's part in the victory of every draw: 1, 0, or 1 / ties. `labels, weights [draws, k]`."""
    rows = np.arange(len(labels))[:, None]
    width = int(labels.max()) + 2
    cast, scores = np.zeros((len(labels), width), bool), np.zeros((len(labels), width))
    cast[rows, labels] = True
    np.add.at(scores, (rows, labels), weights)  # those without an answer fall into the last column
    scores = np.where(cast, scores, -1.0)[:, :-1]
    best = scores.max(axis=1, keepdims=True)
    winners = (scores >= best - 1e-9 * np.abs(best)) & (best >= 0)
    return winners[:, right] / np.maximum(winners.sum(axis=1), 1) if right < winners.shape[1] else np.zeros(len(labels))
