"""Defects 10, 11, 12 and 14: choices and groupings, on a synthetic set whose true solve rates are known.

The set: 30 problems whose difficulty is normal (the middle quantiles, standard deviation 2.5), and the six models, each
solving a problem with probability 1 / (1 + exp(difficulty - ability)), the ability such that the mean over problems is
the model's published pass@1 on AIME24. The cost of a sample is the published code's, dense, over 32 lognormal lengths
around 8000 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import NormalDist

import numpy as np

from defects.costs import lognormal_lengths
from defects.rows import B200_FP8, MODELS, TOKENS_OF_PROMPT, Row
from kinetics_jax.costs.cost import best_of_n_cost
from kinetics_jax.stats.estimators import pass_at_k

AIME24 = {"0.6B": 11.5, "1.7B": 45.9, "4B": 71.7, "8B": 75.2, "14B": 79.6, "32B": 82.1}  # published pass@1, %
PROBLEMS = 30
SAMPLES = 32
TRIALS = (1, 2, 4, 8, 16)
ACCURACY = "accuracy, %"
# The axes of the published frontier notebooks, Tera-eFLOPs: so many costs, of curves from 45, of envelopes from 20 on.
COSTS_DRAWN, CURVES_FROM, ENVELOPE_FROM, ENDS = 100, 45.0, 20.0, 4e4


def solve_rates() -> np.ndarray:
    """[models, problems]: probability that a sample is right."""
    difficulty = 2.5 * np.array([NormalDist().inv_cdf((i + 0.5) / PROBLEMS) for i in range(PROBLEMS)])

    def rates(ability: float) -> np.ndarray:
        return 1 / (1 + np.exp(difficulty - ability))

    by_model = []
    for published in AIME24.values():
        low, high = -20.0, 20.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if 100 * rates(middle).mean() < published else (low, middle)
        by_model.append(rates((low + high) / 2))
    return np.array(by_model)


def costs() -> np.ndarray:
    """[models, trials]: Tera-eFLOPs of a problem."""
    case = {"prompt_tokens": TOKENS_OF_PROMPT, "output_lengths": lognormal_lengths(), "trials": TRIALS}
    return np.array(
        [
            best_of_n_cost(MODELS[size], **case, convention="upstream", intensity=B200_FP8).total  # dense
            for size in AIME24
        ]
    )


def mixed_questions() -> Iterator[Row]:
    """10: 32 questions in four files of eight, numbered from 0 in each: the best of a number mixes four questions."""
    rates = solve_rates()
    for size in ("0.6B", "8B"):
        missed = (1 - rates[list(AIME24).index(size)]) ** 8  # by all 8 samples of a question
        missed = np.concatenate([missed, missed[:2]])  # 32 questions
        mixed = 1 - missed.reshape(4, 8).prod(axis=0)
        yield Row(10, f"{size}, 8 samples of each question", f"pass@8, {ACCURACY}", 100 * mixed.mean(), _miss(missed))


def notebook_envelopes() -> Iterator[Row]:
    """11: labels padded where nothing is affordable, and smoothing over costs, as in both published frontier notebooks.

    Curves have 100 costs from 45 on, the envelope 100 from 20 on, whatever the data. At each of these a name is kept,
    an accuracy at those alone that some curve reaches, and both are plotted from their first entry: every name stands
    as many costs too far right as afford nothing. Accuracies are means over 3 costs first, so that higher ones leak
    down.
    On the synthetic set a curve is what a model's best N within a cost gives.
    """
    accuracy = (1 - (1 - solve_rates()[..., None]) ** np.array(TRIALS)).mean(axis=1)  # [models, trials]
    points, axis = np.geomspace(CURVES_FROM, ENDS, COSTS_DRAWN), np.geomspace(ENVELOPE_FROM, ENDS, COSTS_DRAWN)
    unaffordable = int(np.sum(axis < CURVES_FROM))
    case = f"{COSTS_DRAWN} costs, labels padded where nothing is affordable"
    yield Row(11, case, "costs that a change of models stands too far right", unaffordable, 0)
    yield Row(11, case, "cost at which models change, over where they do", axis[unaffordable] / axis[0], 1.0)

    affordable = costs()[:, :, None] <= points  # [models, trials, costs]
    curves = np.where(affordable, accuracy[..., None], 0.0).max(axis=1)
    last = np.searchsorted(points, axis * (1 + 1e-9), side="right") - 1  # of the points within a cost; -1 for none
    best = np.where(last < 0, 0, curves.argmax(axis=0)[last])  # curves never fall; 0.6B where there is nothing
    right = 100 * np.mean(best[: COSTS_DRAWN - unaffordable] == best[unaffordable:])
    yield Row(11, f"{case}, synthetic set", "costs with their own label, %", right, 100.0)

    ends = np.pad(curves, ((0, 0), (1, 1)), mode="symmetric")
    smooth = 100 * np.mean([ends[:, :-2], ends[:, 1:-1], ends[:, 2:]], axis=0).max(axis=0)
    envelope = 100 * curves.max(axis=0)
    most = int(np.argmax(smooth - envelope))
    yield Row(11, f"mean over 3 of {COSTS_DRAWN} costs, at {points[most]:.0f} Tera-eFLOPs, synthetic set", ACCURACY,
              smooth[most], envelope[most])  # fmt: skip


def ties() -> Iterator[Row]:
    """11: ties that the first name wins."""
    rates, spent = solve_rates(), costs().ravel()
    names = np.array([f"{size} N{n}" for size in AIME24 for n in TRIALS])
    counts = np.random.default_rng(0).binomial(SAMPLES, rates)
    estimated = _estimates(SAMPLES)[counts]  # [models, problems, trials]
    flat = estimated.transpose(1, 0, 2).reshape(PROBLEMS, -1)
    ties = flat == flat.max(axis=1, keepdims=True)
    by_name = np.argsort(names)
    first = [spent[by_name[np.argmax(tied[by_name])]] for tied in ties]
    cheapest = [spent[tied].min() for tied in ties]
    per_problem = [float(np.mean(spent_by)) for spent_by in (first, cheapest)]
    yield Row(11, "per task, no limit, ties to the first name", "Tera-eFLOPs a problem", *per_problem)


def optimism(repeats: int = 400) -> Iterator[Row]:
    """12: the best of 30 configurations chosen and scored on the same 16 samples, against scored on 16 others."""
    rates, cost = solve_rates(), costs()
    half = SAMPLES // 2
    draws = np.random.default_rng(0).binomial(half, rates, size=(2, repeats, *rates.shape))
    shape = (repeats, PROBLEMS, -1)
    chosen, fresh = (_estimates(half)[draw].transpose(0, 2, 1, 3).reshape(shape) for draw in draws)
    for budget in (10_000, 100_000):
        allowed = cost.ravel() <= budget
        for how, picked in (
            ("per task", np.argmax(np.where(allowed, chosen, -1), axis=2)[..., None]),
            ("one for all tasks", np.argmax(np.where(allowed, chosen.mean(axis=1), -1), axis=1)[:, None, None]),
        ):
            picked = np.broadcast_to(picked, (repeats, PROBLEMS, 1))
            same, other = (100 * np.take_along_axis(scores, picked, 2).mean() for scores in (chosen, fresh))
            yield Row(
                12, f"best of {allowed.sum()} configurations {how}, up to {budget} Tera-eFLOPs", ACCURACY, same, other
            )


def repeated_blocks() -> Iterator[Row]:
    """14: blocks drawn with replacement: how many of k are distinct."""
    for k, blocks in ((64, 1024), (256, 1024)):
        distinct = blocks * (1 - (1 - 1 / blocks) ** k)
        yield Row(14, f"{k} random blocks of {blocks}", "distinct blocks attended to", distinct, k)


CHOICES = (mixed_questions, notebook_envelopes, ties, optimism, repeated_blocks)


def _miss(missed: np.ndarray) -> float:
    return 100 * float(1 - missed.mean())


def _estimates(samples: int) -> np.ndarray:
    """[right + 1, trials]: pass@k of so many right samples."""
    return pass_at_k(samples, np.arange(samples + 1)[:, None], np.array(TRIALS))
