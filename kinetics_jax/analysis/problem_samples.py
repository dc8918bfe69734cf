"""The samples of one problem: their lengths, grades, answers and scores, whole or cut."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from kinetics_jax.errors import UserError


class SamplesError(UserError):
    """Raised for runs that cannot be compared as they are; the message names the run and the cure."""


@dataclasses.dataclass
class ProblemSamples:
    """The samples of one problem.

    `prompt_tokens`: length of the prompt, NaN where it was not recorded. Parallel, one entry per sample: `lengths`,
    output tokens, NaN where they were not recorded; `grades`, None where the sample counts in no accuracy; where cut
    texts were graded, `correct_within [samples][caps]` for `caps` in ascending order, and, where it is known, what
    those texts answered, `answers_within [samples][caps]`; where all samples' answers are known, `answers`, None for a
    sample that gives none; where there are any, `scores`, NaN for a sample without one; `undecided`, which ones the
    grader did not decide; `own`, by kind (`cost`, `seconds`) what each sample took by its source, NaN for nothing.
    """

    prompt_tokens: float
    lengths: list[float]
    grades: list[bool | None]
    caps: tuple[int, ...] = ()
    correct_within: list[tuple[bool | None, ...]] = dataclasses.field(default_factory=list)
    answers: list[str | None] = dataclasses.field(default_factory=list)
    undecided: list[bool] = dataclasses.field(default_factory=list)
    scores: list[float] = dataclasses.field(default_factory=list)
    answers_within: list[tuple[str | None, ...]] = dataclasses.field(default_factory=list)
    own: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    @property
    def graded(self) -> int:
        """How many samples count in an accuracy."""
        return sum(grade is not None for grade in self.grades)

    @property
    def right(self) -> int:
        """How many samples are right."""
        return sum(grade is True for grade in self.grades)

    @property
    def longest(self) -> float:
        """Tokens of the longest sample, at least 1; NaN where a length is missing."""
        return math.nan if any(map(math.isnan, self.lengths)) else float(max([1, *self.lengths]))

    def knows(self, cap: int) -> bool:
        """Whether the grades under a cap are those of the cut texts: they were recorded, or nothing is cut."""
        return cap in self.caps or self.longest <= cap

    def grades_under(self, caps: npt.ArrayLike) -> Float[np.ndarray, "samples caps"]:
        """Grades of the samples, had each been cut at each cap: 1 or 0, NaN for no grade.

        A cap that is among `caps` takes the recorded grades. Under another a sample counts by its own grade when it
        ends within the cap, and as wrong when it does not (unless it has no grade at all): right answers that stand in
        the text before the cap are not looked for, so that cutting and grading again can only give more. Raises
        SamplesError if that needs a length that was not recorded.
        """
        caps = np.atleast_1d(np.asarray(caps))
        lengths = np.array(self.lengths, np.float64)[:, None]
        grades = _as_numbers(self.grades)[:, None]
        within = np.where(np.isnan(grades) | (lengths <= caps), grades, 0.0)
        missing = np.isnan(lengths) & ~np.isnan(grades)
        for i, cap in enumerate(caps):
            if cap in self.caps:
                column = self.caps.index(int(cap))
                within[:, i] = _as_numbers(row[column] for row in self.correct_within)
            elif np.any(missing):
                raise SamplesError(
                    f"{int(np.sum(missing))} of {len(lengths)} samples of a problem have no token count, so it is not "
                    f"known which end within {cap} tokens"
                )
        return within

    def tokens_under(self, caps: npt.ArrayLike) -> Float[np.ndarray, "samples caps"]:
        """Tokens of the samples, had each been cut: min(length, cap); NaN where the length was not recorded."""
        return np.minimum(np.array(self.lengths, np.float64)[:, None], np.atleast_1d(np.asarray(caps, np.float64)))

    def votes_under(self, cap: int | None) -> Votes:
        """What the graded samples say, had each been cut after `cap` tokens; None: as they are.

        At a cap of `caps` a cut sample says what its cut text does; else it says nothing and is wrong. A cut sample has
        no score: a verifier scored the whole. `answers` and `scores` are empty where they are not known. Raises
        SamplesError if a token count is missing that the cap needs.
        """
        if cap is None:
            grades, ends = [None if grade is None else float(grade) for grade in self.grades], [True] * len(self.grades)
        else:
            column = self.grades_under([cap])[:, 0]
            grades = [None if math.isnan(grade) else grade for grade in column]
            ends = [length <= cap for length in self.lengths]
        kept = [i for i, grade in enumerate(grades) if grade is not None]
        of_cut: list[str | None] = [None] * len(grades)
        if cap in self.caps and self.answers_within:
            of_cut = [row[self.caps.index(cap)] for row in self.answers_within]
        return Votes(
            answers=[self.answers[i] if ends[i] else of_cut[i] for i in kept] if self.answers else [],
            right=[grades[i] == 1 for i in kept],
            scores=[self.scores[i] if ends[i] else -math.inf for i in kept] if self.scores else [],
        )

    def subset(self, chosen: Sequence[int] | np.ndarray) -> ProblemSamples:
        """The samples whose indices are `chosen`."""
        parallel = ("lengths", "grades", "correct_within", "answers", "undecided", "scores", "answers_within")
        fields: dict[str, Any] = {name: getattr(self, name) for name in parallel}
        picked = {name: [values[i] for i in chosen] for name, values in fields.items() if values}
        own = {kind: [values[i] for i in chosen] for kind, values in self.own.items()}
        return dataclasses.replace(self, **picked, own=own)


@dataclasses.dataclass(frozen=True)
class Votes:
    """Of a problem's graded samples: `answers`, None for nothing said, whether each is `right`, and a verifier's
    `scores`, -inf for a text that it did not see; `answers` and `scores` are empty where they are not known.
    """

    answers: list[str | None]
    right: list[bool]
    scores: list[float]


def _as_numbers(grades: Iterable[bool | None]) -> np.ndarray:
    return np.array([np.nan if grade is None else float(grade) for grade in grades])
