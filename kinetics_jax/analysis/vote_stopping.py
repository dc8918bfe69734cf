"""Sampling a problem until its vote is decided: stop by the margin of the leading answer, which needs nobody who knows.

- `certain`: the leading answer cannot be caught by the samples that are left, not even to a tie. What N samples would
  have answered is answered, at less cost.
- `likely`: the leading answer is the likelier one of the two most frequent, to LIKELY, after a uniform prior: the stop
  rule of Adaptive-Consistency (Aggarwal, Madaan, Yang and Mausam, EMNLP 2023, arXiv 2305.11860), whose criterion is
  P(p > 1/2) of Beta(v1 + 1, v2 + 1), v1 and v2 votes for the two, at their threshold of 0.95.

Orders of the samples are drawn at random, and only what stopping early changes is taken from them: what all N samples
vote and cost is exact. The noise that is left is stated with every number.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from kinetics_jax.stats.estimators import expected_max

Stop = Literal["certain", "likely"]
LIKELY = 0.95
ORDERS = 1000


@dataclasses.dataclass(frozen=True)
class Decided:
    """Of one problem, over orders of its samples: how much more often the vote is right than that of all N samples,
    `gain`, what is `spent` and how many samples are `drawn`, means; and the standard errors of the first two that
    drawing orders leaves, `gain_noise` and `spent_noise`.
    """

    gain: float
    spent: float
    drawn: float
    gain_noise: float
    spent_noise: float


@functools.lru_cache(maxsize=4096)
def lead_probability(first: int, second: int) -> float:
    """P(p > 1/2) of Beta(first + 1, second + 1): that of two answers the one with `first` votes is the likelier."""
    tosses = first + second + 1
    return sum(math.comb(tosses, heads) for heads in range(first + 1)) / 2**tosses


def decide(
    labels: Int[np.ndarray, " samples"],
    right: int,
    own: Float[np.ndarray, " samples"],
    shared: Float[np.ndarray, " samples"],
    *,
    stop: Stop,
    most: int,
    wave: int,
    orders: int = ORDERS,
    seed: int = 0,
) -> Decided:
    """Samples of one problem drawn in waves of `wave`, at most `most`, until `stop`.

    `labels`: what each answers, -1 for nothing; `right`: the label of the right answer, -1 where no sample has it.
    `own` and `shared`: what each costs, by itself and, once a wave, the largest of it. Ties are broken at random.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(rng.random((orders, len(labels))), axis=1)[:, :most]
    drawn = labels[order]
    votes = np.zeros((orders, int(labels.max(initial=0)) + 2), np.int64)  # the last column: nothing said
    rows = np.arange(orders)
    count = np.full(orders, most)
    won = np.zeros(orders)
    for step in range(most):
        votes[rows, drawn[:, step]] += 1
        done = step + 1
        if done == most or done % wave == 0:
            ends = (count == most) & (_stops(votes[:, :-1], most - done, stop) if done < most else True)
            count[ends] = done
            won[ends] = _won(votes[ends, :-1], right)
    taken = np.arange(most) < count[:, None]
    starts = np.arange(0, most, wave)
    spared = np.maximum.reduceat(np.where(taken, 0.0, shared[order]), starts, axis=1).sum(axis=1)
    in_full = most * np.mean(own) + sum(expected_max(shared, min(wave, most - int(start))) for start in starts)
    spent = in_full - np.sum(np.where(taken, 0.0, own[order]), axis=1) - spared  # waves are taken whole, or not at all
    gain = won - _won(votes[:, :-1], right)
    noise = [float(values.std(ddof=1) / math.sqrt(orders)) for values in (gain, spent)]
    return Decided(float(gain.mean()), float(spent.mean()), float(count.mean()), *noise)


def _won(votes: Int[np.ndarray, "orders answers"], right: int) -> Float[np.ndarray, " orders"]:
    """The right answer's part in the victory of every order; 0 where nobody says anything."""
    if right < 0:
        return np.zeros(len(votes))
    leads = votes == np.maximum(votes.max(axis=1, keepdims=True), 1)
    return leads[:, right] / np.maximum(leads.sum(axis=1), 1)


def _stops(votes: Int[np.ndarray, "orders answers"], left: int, stop: Stop) -> Bool[np.ndarray, " orders"]:
    padded = np.pad(votes, ((0, 0), (0, 1)))  # a second answer that nobody gave
    second, first = np.partition(padded, -2, axis=1)[:, -2:].T
    certain = first - second > left
    if stop == "certain":
        return certain
    likely = np.array([lead_probability(int(v1), int(v2)) for v1, v2 in zip(first, second, strict=True)]) >= LIKELY
    return certain | likely
