"""Batches of the ledger family's tasks, each a function of (seed, step) alone, so that training can stop anywhere."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from kinetics_jax.tasks import ledger

IDS = {token: index for index, token in enumerate(ledger.vocabulary())}
EOS = IDS[ledger.EOS]
# The last tokens, from the end of the last line (which says that a balance is found) to the end token: a whole sequence
# has but one set of them, so that each counts as much as several others.
ANSWER, ANSWER_WEIGHT = 6, 4.0
ROUTES = 0.3  # share of the route task
ENDING = 0.5  # share of problems that end within a batch's lines, at least
LONGEST = ledger.LINE * (ledger.STATES + 1) + ledger.MAX_OUTPUT


@dataclasses.dataclass(frozen=True)
class Stage:
    """A stretch of training: its share of the steps, and what its problems and batches are. `pages`: in every other
    step attention is sparse, to so many pages of a line (0: never).
    """

    share: float
    states: int
    operations: int
    lines: int
    batch: int
    pages: int = 0


# Short problems of few operations first, at last the length that is generated. Half of the later steps attend sparsely,
# so that look-ups learn to show in their page's mean.
CURRICULUM = (
    Stage(0.25, states=6, operations=3, lines=12, batch=32),
    Stage(0.25, states=10, operations=8, lines=20, batch=24),
    Stage(0.38, states=16, operations=8, lines=32, batch=16, pages=6),
    Stage(0.12, states=16, operations=8, lines=127, batch=4, pages=6),
)


class Batch(NamedTuple):
    """`tokens`, `positions` [batch, time] int32; `counted` [batch, time] float32, what a token weighs where it is to be
    predicted, else 0; `prompt` tokens come first. `pages`: as many pages of a line are attended to (0: all).
    """

    tokens: np.ndarray
    positions: np.ndarray
    counted: np.ndarray
    prompt: int
    pages: int = 0


def stage_of(step: int, steps: int) -> Stage:
    """The stage that a step falls in."""
    end = 0.0
    for stage in CURRICULUM:
        end += stage.share
        if step < round(end * steps):
            return stage
    return CURRICULUM[-1]


def make_batch(seed: int, step: int, steps: int, held_out: frozenset[str]) -> Batch:
    """The batch of a step. Raises ValueError if it drew a held-out question."""
    stage, rng = stage_of(step, steps), np.random.default_rng([seed, 2, step])
    prompt = ledger.LINE * (stage.states + 1)
    shape = stage.batch, prompt + ledger.LINE * stage.lines + 5
    tokens, counted = np.full(shape, EOS, np.int32), np.zeros(shape, np.float32)
    positions = np.tile(np.arange(shape[1], dtype=np.int32), (stage.batch, 1))
    for row in range(stage.batch):
        problem = _draw(rng, stage)
        if problem.question in held_out:
            raise ValueError(f"seed {seed}, step {step}: drew a held-out question; take another seed")
        ids = [IDS[token] for token in f"{problem.question} {problem.solution}".split()]
        tokens[row, : len(ids)] = ids
        counted[row, prompt : len(ids)] = 1
        if ids[-1] == EOS:
            counted[row, len(ids) - ANSWER : len(ids)] = ANSWER_WEIGHT
        positions[row, :prompt] += _gaps(rng, stage, LONGEST - shape[1])
        positions[row, prompt:] += positions[row, prompt - 1] + 1 - prompt
    return Batch(tokens, positions, counted, prompt, stage.pages * (step % 2))


def _draw(rng: np.random.Generator, stage: Stage) -> ledger.LedgerProblem:
    task = ledger.ROUTE if rng.random() < ROUTES else ledger.LEDGER
    if rng.random() < ENDING:
        lines = int(rng.integers(3, stage.lines + 1))
    else:
        lines = int(rng.integers(min(stage.lines, ledger.MOST_LINES - 1) + 1, ledger.MOST_LINES + 1))
    return ledger.make_problem(
        rng, task, states=stage.states, operations=stage.operations, most=stage.lines, lines=lines
    )


def _gaps(rng: np.random.Generator, stage: Stage, room: int) -> np.ndarray:
    """What is added to the prompt's positions: whole pages left out, before the first line of the ledger or anywhere,
    so that short sequences show the distances of long ones. At most `room` positions in all.
    """
    pages = int(rng.integers(room // ledger.LINE + 1))
    gaps = np.zeros(stage.states + 1, np.int32)
    if rng.random() < 0.5:
        gaps[-1] = pages
    else:
        cuts = np.sort(rng.integers(pages + 1, size=stage.states))
        gaps[:] = np.diff(np.concatenate([[0], cuts, [pages]]))
    return np.repeat(ledger.LINE * np.cumsum(gaps), ledger.LINE)
