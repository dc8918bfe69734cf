"""Beside pass@N in a table: what a majority, and a verifier, would pick among the same N answers (rules.py)."""

from __future__ import annotations

import collections
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kinetics_jax.analysis.defaults import rounded_accuracy
from kinetics_jax.analysis.rule_names import SCORED, VOTES, rule_line, short_name
from kinetics_jax.analysis.rules import drawn_noise, lacks_words, rule_accuracy
from kinetics_jax.analysis.samples import Pool
from kinetics_jax.analysis.votes import DRAWS
from kinetics_jax.stats.intervals import accuracy_interval

if TYPE_CHECKING:
    import pandas as pd

MOST_NAMED = 5  # problems, in a line
COLUMNS = {"majority": "majority", "best_score": "best-of-verifier", "weighted_vote": "weighted"}  # and their rules


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


def with_rule(table: pd.DataFrame, pools: Sequence[Pool], rule: str) -> pd.DataFrame:
    """A frontier's table whose accuracies are of `rule`: under `pass` with what else can pick (`with_picks`), and in
    `attrs["picks"]` the lines that say what its accuracies are, how they are known, and what is missing.
    """
    attrs = table.attrs
    if rule == "pass":
        return with_picks(table, pools)
    notes = [rule_line(rule)]
    if max(table["N"]) > 1 and rule in VOTES and (odd := contradictions(pools)):
        warnings.warn(odd, stacklevel=3)
    table.attrs = attrs | {"picks": [*notes, *_noise(pools, rule, table)]}
    return table


def _noise(pools: Sequence[Pool], rule: str, table: pd.DataFrame) -> list[str]:
    """A line where accuracies by a rule are not exact expectations."""
    if not (noise := drawn_noise(pools, rule, table["N"].unique())):
        return []
    return [
        f"Some accuracies by {short_name(rule)} are means over {DRAWS:,} drawn sets of samples: standard "
        f"error at most {noise:.1g}."
    ]


def with_picks(table: pd.DataFrame, pools: Sequence[Pool]) -> pd.DataFrame:
    """A frontier's table with columns `majority`, `majority_low`, `majority_high`, the accuracy of what the majority
    answers and its 95 % interval from redrawing problems; `best_score` and `weighted_vote` alike where samples have
    scores.

    The table has a row per model, attention and N, and `cap` where samples are cut. Where no N is above 1 nothing needs
    to be picked, and it stays as it is. A rule that can pick in no row has no columns; in other rows where it cannot,
    NaN. Warns of `contradictions`. `attrs["picks"]`: what accuracy is, and a line for each rule that is missing
    somewhere.
    """
    if max(table["N"]) == 1:
        return table
    if odd := contradictions(pools):
        warnings.warn(odd, stacklevel=3)
    scored = any(problem.scores for pool in pools for problem in pool.problems.values())
    notes = [rule_line("pass")]
    table = table.copy()
    place = int(table.columns.get_loc("high")) + 1  # pyright: ignore[reportArgumentType]
    for column, rule in COLUMNS.items():
        if rule in SCORED and not scored:
            continue
        values = {name: np.full(len(table), math.nan) for name in (column, f"{column}_low", f"{column}_high")}
        gaps = {}
        for pool in pools:
            of_pool = (table["model"] == pool.model) & (table["attention"] == str(pool.attention))
            for cap in sorted(set(table.loc[of_pool, "cap"])) if "cap" in table else [None]:
                rows = np.flatnonzero(of_pool & ((table["cap"] == cap) if cap is not None else True))
                if why := lacks_words(pool, rule, cap):
                    gaps[str(pool)] = why
                    continue
                accuracy = rule_accuracy(pool, rule, [int(n) for n in table["N"].to_numpy()[rows]], cap)
                ends = accuracy_interval(accuracy)
                for name, found in zip(values, (rounded_accuracy(accuracy.mean(axis=0)), *ends), strict=True):
                    values[name][rows] = found
        known = not all(np.isnan(values[column]))
        if known:
            for offset, (name, found) in enumerate(values.items()):
                table.insert(place + offset, name, found)
            place += len(values)
            notes += _noise(pools, rule, table)
        if gaps:
            pool, why = next(iter(gaps.items()))
            of = f"for {pool}" + (f" and {len(gaps) - 1} more" if len(gaps) > 1 else "") if known else "beside it"
            notes.append(f"No {column.replace('_', ' ')} {of}: {why}.")
    table.attrs["picks"] = notes
    return table
