"""How sure a choice is among configurations that were measured on the same problems.

All of it redraws problems, never single samples, and compares configurations on the same problems, so that hardness
which they share cancels. A few problems show little of the others: every answer here counts with a part of a problem
more, on which any configuration may be wholly right or wholly wrong. Without it, what no measured problem shows would
be ruled out: ten problems solved by two configurations do not make them equal. experiments/planner_check.py prints how
often each answer holds.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int

from kinetics_jax.stats.special import student_t_quantile

LEVEL = 0.95
DRAWS = 2000
UNSEEN = 0.5  # of a problem: between two configurations, one wholly right on it and the other wholly wrong
BATCH = 256  # draws at a time, to bound the memory


@dataclasses.dataclass(frozen=True, eq=False)
class Comparisons:
    """All pairs of rows compared on their problems. `lead [i, j]`: by how many standard errors row j is ahead of i.
    A lead counts above `for_row [i]`, the most by which any row would be ahead of i in 95 of 100 data sets if all were
    equal.
    """

    lead: Float[np.ndarray, "rows rows"]
    for_row: Float[np.ndarray, " rows"]

    @property
    def may_be_best(self) -> Bool[np.ndarray, " rows"]:
        """Rows than which none is clearly more accurate: the most accurate one is among them 95 times in 100.

        Whatever row that is, only the comparisons of it with the others can drop it, and they count together (multiple
        comparisons with the best: Hsu, Annals of Statistics 12, 1984).
        """
        return ~np.any(self.lead > self.for_row[:, None], axis=1)

    def surely_less(self, row: int, leader: int) -> bool:
        """Whether the runner-up is surely less accurate than the leader, the rows that look best.

        That these two were picked by what they look like costs nothing: the closest pair is the last to be set apart by
        chance (Gutmann and Maymin, Annals of Statistics 15, 1987, who compare it alone). Here the runner-up must be
        behind by more than any of the others could be ahead of it.
        """
        return bool(self.lead[row, leader] > self.for_row[row])


def compare(solved: Float[np.ndarray, "rows problems"], *, seed: int = 0) -> Comparisons:
    """All pairs of rows, on the accuracies `solved` of the same problems; no pair is apart on a single problem.

    The critical leads are those of means of correlated normal numbers over one estimate of their scale: the measured
    differences, their signs and sizes redrawn, and Student's t of one degree fewer than problems.
    """
    rows, problems = solved.shape
    if problems < 2:
        return Comparisons(np.zeros((rows, rows)), np.full(rows, np.inf))
    mean = solved.mean(axis=1)
    centred = solved - mean[:, None]
    products = centred @ centred.T
    own = np.diag(products)
    squares = np.maximum(own[:, None] + own[None] - 2 * products, 0.0)
    degrees = problems - 1
    seen = np.sqrt(squares / degrees / problems)
    seen[squares < 1e-9] = np.inf  # equal on every problem: no draw sets them apart
    lead = (mean[None] - mean[:, None]) / np.sqrt((squares + UNSEEN) / degrees / problems)
    rng = np.random.default_rng(seed)
    most = np.zeros((DRAWS, rows))
    for start in range(0, DRAWS, BATCH):
        part = most[start : start + BATCH]
        drawn = rng.standard_normal((len(part), problems)) @ centred.T / np.sqrt(problems * degrees)
        drawn /= np.sqrt(rng.chisquare(degrees, (len(part), 1)) / degrees)
        for row in range(rows):
            part[:, row] = np.max((drawn - drawn[:, row, None]) / seen[row], axis=1)
    least = -student_t_quantile(1 - LEVEL, degrees)  # of a single pair
    return Comparisons(lead, np.maximum(np.quantile(most, LEVEL, axis=0), least))


def may_be_quickest(
    solved: Float[np.ndarray, "rows problems"], seconds: Float[np.ndarray, " rows"], target: float, *, seed: int = 0
) -> Bool[np.ndarray, " rows"]:
    """Rows of which the data cannot say that they miss the accuracy `target`, or that a quicker row reaches it.

    The quickest row that does reach it is among them 95 times in 100.
    """
    rows, problems = solved.shape
    if problems < 2:
        return np.ones(rows, bool)
    degrees = problems - 1
    mean = solved.mean(axis=1)
    centred = solved - mean[:, None]
    squares = np.sum(centred**2, axis=1)
    behind = (target - mean) / np.sqrt((squares + UNSEEN) / degrees / problems)
    scale = np.where(squares < 1e-9, np.inf, np.sqrt(squares))
    drawn = np.random.default_rng(seed).standard_normal((DRAWS, problems)) @ centred.T / scale
    drawn /= np.sqrt(np.random.default_rng(seed + 1).chisquare(degrees, (DRAWS, 1)) / degrees)
    critical = max(
        float(np.quantile(np.max(np.abs(drawn), axis=1), LEVEL)), -student_t_quantile((1 - LEVEL) / 2, degrees)
    )
    enough = np.min(seconds[behind < -critical], initial=np.inf)
    return (behind <= critical) & (seconds <= enough)


def accuracy_draws(
    solved: Float[np.ndarray, "rows problems"],
    source: Int[np.ndarray, " rows"],
    trials: Int[np.ndarray, " rows"],
    *,
    seed: int = 0,
) -> Float[np.ndarray, "draws rows"]:
    """What the rows' accuracies over all problems of the kind may be, given those measured.

    A Bayesian bootstrap (Rubin 1981): random weights of the measured problems, spread so that a mean varies as
    Student's t does for so few, and of one problem more. On that one each `source`, a model under an attention, is
    right at a rate of its own, drawn by Jeffreys' prior Beta(½, ½), in at least one of a row's `trials`.
    """
    problems = solved.shape[1]
    rng = np.random.default_rng(seed)
    each = max(problems - 4, 1) / problems
    weights = rng.dirichlet([*np.full(problems, each), 1.0], size=DRAWS)
    rate = rng.beta(0.5, 0.5, size=(DRAWS, int(source.max()) + 1))
    unseen = 1 - (1 - rate[:, source]) ** trials
    return weights[:, :problems] @ solved.T + weights[:, problems:] * unseen
