"""Which configuration each law chooses, what that costs in eFLOPs, and how sure it is.

A law is what counts as cost: arithmetic alone (FLOPs), or memory reads too (eFLOPs). Whatever the law, eFLOPs are paid.
A choice is one (model, cap) for all questions. Arrays are float64 `[configurations, questions]`; the clusters that are
redrawn and halved are the columns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

REDRAWS = 1000
HALVINGS = 100
AT_ONCE = 100  # redraws, which bounds the memory
EPS = 1e-9


@dataclasses.dataclass(frozen=True, eq=False)
class Cells:
    """What every configuration gives on every question. `model` and `cap` name the configurations: model is an index,
    smallest first.
    """

    model: np.ndarray
    cap: np.ndarray
    accuracy: np.ndarray
    flops: np.ndarray
    eflops: np.ndarray

    @property
    def questions(self) -> int:
        return self.accuracy.shape[1]

    def means(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Accuracy, FLOPs and eFLOPs, `[draws, configurations]`, for weights `[draws, questions]` that sum to 1."""
        return weights @ self.accuracy.T, weights @ self.flops.T, weights @ self.eflops.T


def whole(cells: Cells) -> np.ndarray:
    """The weights of all questions alike, one draw."""
    return np.full((1, cells.questions), 1 / cells.questions)


def redraws(cells: Cells, count: int, seed: int) -> np.ndarray:
    """Weights `[count, questions]` of questions redrawn with replacement."""
    even = np.full(cells.questions, 1 / cells.questions)
    return np.random.default_rng(seed).multinomial(cells.questions, even, size=count) / cells.questions


def halvings(questions: int, count: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of bool masks: the questions that choose and those that score; each of `count` halvings both ways."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        first = np.zeros(questions, bool)
        first[rng.permutation(questions)[: questions // 2]] = True
        yield first, ~first
        yield ~first, first


@dataclasses.dataclass(frozen=True, eq=False)
class Staircase:
    """Configurations in order of cost, draw by draw: arrays `[draws, configurations]`.

    `order`: their rows, cheapest first, the most accurate first among equals. `spent`: what they cost. `best`: the
    highest accuracy so far. `leader`: the place in the order that holds it.
    """

    order: np.ndarray
    spent: np.ndarray
    best: np.ndarray
    leader: np.ndarray

    def cheapest(self, levels: np.ndarray) -> np.ndarray:
        """The cheapest configuration that reaches each accuracy, `[draws, levels]`; -1 where none does."""
        places = np.sum(self.best[:, None, :] < levels[:, None] - EPS, axis=-1)
        return self._rows(places, places < self.order.shape[1])

    def within(self, limits: np.ndarray) -> np.ndarray:
        """The most accurate one within each limit, the cheapest of equals, `[draws, limits]`; -1 where none is."""
        places = np.sum(self.spent[:, None, :] <= limits[:, None] * (1 + EPS), axis=-1) - 1
        leaders = np.take_along_axis(self.leader, np.maximum(places, 0), axis=-1)
        found = np.take_along_axis(self.best, np.maximum(places, 0), axis=-1)
        return self._rows(leaders, (places >= 0) & np.isfinite(found))

    def members(self) -> np.ndarray:
        """Which configurations no cheaper one equals, `[draws, configurations]`."""
        kept = np.zeros_like(self.order, bool)
        np.put_along_axis(kept, self.order, self.leader == np.arange(self.order.shape[1]), axis=-1)
        return kept

    def _rows(self, places: np.ndarray, there: np.ndarray) -> np.ndarray:
        last = self.order.shape[1] - 1
        return np.where(there, np.take_along_axis(self.order, np.clip(places, 0, last), axis=-1), -1)


def staircase(accuracy: np.ndarray, spent: np.ndarray, allowed: np.ndarray | None = None) -> Staircase:
    """The staircase of the `allowed` configurations (all, if not given); arrays `[draws, configurations]`."""
    if allowed is not None:
        accuracy = np.where(allowed, accuracy, -np.inf)
    order = np.lexsort((-accuracy, spent), axis=-1)
    ordered = np.take_along_axis(accuracy, order, axis=-1)
    best = np.maximum.accumulate(ordered, axis=-1)
    leads = np.concatenate([np.ones_like(best[:, :1], bool), ordered[:, 1:] > best[:, :-1] + EPS], axis=-1)
    leader = np.maximum.accumulate(np.where(leads, np.arange(order.shape[1]), 0), axis=-1)
    return Staircase(order, np.take_along_axis(spent, order, axis=-1), best, leader)


def at(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Values `[draws, configurations]` of what was chosen `[draws, n]`; NaN where nothing was."""
    return np.where(chosen >= 0, np.take_along_axis(values, np.maximum(chosen, 0), axis=-1), np.nan)


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """Both laws at every accuracy: arrays over levels, the first axis of `ratios` and `models` over draws too.

    `by_flops` and `by_eflops`: the rows chosen with all questions. `ratios [1 + redraws, levels]`: eFLOPs that the
    FLOPs law pays over those that the eFLOPs law pays, all questions first; NaN where the accuracy is not reached. It
    is never below 1: choice and price are of the same questions. `models [2, 1 + redraws, levels]`: what each takes.
    """

    levels: np.ndarray
    by_flops: np.ndarray
    by_eflops: np.ndarray
    ratios: np.ndarray
    models: np.ndarray


def compare_levels(cells: Cells, levels: np.ndarray, *, count: int = REDRAWS, seed: int = 0) -> Levels:
    """Chooses by both laws at every accuracy, with all questions and with `count` redraws of them."""
    weights = np.concatenate([whole(cells), redraws(cells, count, seed)])
    ratios, models, first = [], [], None
    for start in range(0, len(weights), AT_ONCE):
        accuracy, flops, eflops = cells.means(weights[start : start + AT_ONCE])
        by_flops, by_eflops = (staircase(accuracy, spent).cheapest(levels) for spent in (flops, eflops))
        ratios.append(at(eflops, by_flops) / at(eflops, by_eflops))
        models.append(np.stack([np.where(c >= 0, cells.model[c], -1) for c in (by_flops, by_eflops)]))
        first = first or (by_flops[0], by_eflops[0])
    assert first is not None
    return Levels(levels, *first, np.concatenate(ratios), np.concatenate(models, axis=1))


@dataclasses.dataclass(frozen=True, eq=False)
class Unseen:
    """Choices made on one half of the questions and scored on the other, by question: means over the halvings that
    scored it, `[levels, questions]`, NaN where no half reached the accuracy. `differ`: the share of halves, of those
    that reach it, in which the laws take different models.
    """

    paid_by_flops: np.ndarray
    paid_by_eflops: np.ndarray
    right_by_flops: np.ndarray
    right_by_eflops: np.ndarray
    differ: np.ndarray
    reached: np.ndarray


def honest_levels(cells: Cells, levels: np.ndarray, *, count: int = HALVINGS, seed: int = 0) -> Unseen:
    """Both laws at every accuracy, chosen on a random half of the questions and scored on the other half."""
    shape = len(levels), cells.questions
    sums = np.zeros((4, *shape))
    scored, differ, reached = np.zeros(shape), np.zeros(len(levels)), np.zeros(len(levels))
    for choose, score in halvings(cells.questions, count, seed):
        accuracy, flops, eflops = cells.means(choose[None] / choose.sum())
        chosen = [staircase(accuracy, spent).cheapest(levels)[0] for spent in (flops, eflops)]
        there = np.flatnonzero(chosen[0] >= 0)  # reached by one law, reached by both
        here = np.ix_(there, np.flatnonzero(score))
        for i, values in enumerate((cells.eflops, cells.accuracy)):
            for law, rows in enumerate(chosen):
                sums[2 * i + law][here] += values[np.ix_(rows[there], np.flatnonzero(score))]
        scored[here] += 1
        reached[there] += 1
        differ[there] += cells.model[chosen[0][there]] != cells.model[chosen[1][there]]
    means = sums / np.where(scored > 0, scored, np.nan)
    return Unseen(
        paid_by_flops=means[0],
        paid_by_eflops=means[1],
        right_by_flops=means[2],
        right_by_eflops=means[3],
        differ=differ / np.where(reached > 0, reached, np.nan),
        reached=reached / (2 * count),
    )


def redrawn_ratios(above: np.ndarray, below: np.ndarray, *, count: int = REDRAWS, seed: int = 0) -> np.ndarray:
    """Ratios of means over questions, `[1 + count, levels]`, of `above` and `below` `[levels, questions]`: of all
    questions first, then of questions redrawn for both at once.
    """
    questions = above.shape[1]
    even = np.full(questions, 1 / questions)
    weights = np.random.default_rng(seed).multinomial(questions, even, size=count) / questions
    weights = np.concatenate([even[None], weights])
    return (weights @ above.T) / (weights @ below.T)


@dataclasses.dataclass(frozen=True, eq=False)
class Limits:
    """Both laws at equal cost: arrays over limits, `gains [1 + redraws, limits]` over draws too.

    `by_eflops`: the most accurate configuration within a limit. `by_flops`: the one that somebody reaches who walks the
    frontier of FLOPs and pays eFLOPs. `gains`: the first's accuracy minus the second's, all questions first; NaN where
    either affords nothing.
    """

    limits: np.ndarray
    by_flops: np.ndarray
    by_eflops: np.ndarray
    gains: np.ndarray


def _within_limits(
    means: tuple[np.ndarray, np.ndarray, np.ndarray], limits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the FLOPs law and the eFLOPs law choose at every limit, `[draws, limits]` each."""
    accuracy, flops, eflops = means
    walked = staircase(accuracy, flops).members()
    return staircase(accuracy, eflops, walked).within(limits), staircase(accuracy, eflops).within(limits)


def compare_limits(cells: Cells, limits: np.ndarray, *, count: int = REDRAWS, seed: int = 0) -> Limits:
    """Chooses by both laws at every cost limit, with all questions and with `count` redraws of them."""
    weights = np.concatenate([whole(cells), redraws(cells, count, seed)])
    gains, first = [], None
    for start in range(0, len(weights), AT_ONCE):
        means = cells.means(weights[start : start + AT_ONCE])
        by_flops, by_eflops = _within_limits(means, limits)
        gains.append(at(means[0], by_eflops) - at(means[0], by_flops))
        first = first or (by_flops[0], by_eflops[0])
    assert first is not None
    return Limits(limits, *first, np.concatenate(gains))


def honest_limits(
    cells: Cells, limits: np.ndarray, *, count: int = HALVINGS, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Accuracy by the FLOPs law and by the eFLOPs law at every limit on questions that the choice has not seen,
    `[limits, questions]`: means over the halvings that scored a question, NaN where one law affords nothing.
    """
    shape = len(limits), cells.questions
    total, scored = np.zeros((2, *shape)), np.zeros(shape)
    for choose, score in halvings(cells.questions, count, seed):
        chosen = [rows[0] for rows in _within_limits(cells.means(choose[None] / choose.sum()), limits)]
        there, columns = np.flatnonzero(np.minimum(*chosen) >= 0), np.flatnonzero(score)
        here = np.ix_(there, columns)
        for law, rows in enumerate(chosen):
            total[law][here] += cells.accuracy[np.ix_(rows[there], columns)]
        scored[here] += 1
    means = total / np.where(scored > 0, scored, np.nan)
    return means[0], means[1]
