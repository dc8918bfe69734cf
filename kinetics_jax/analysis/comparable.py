"""Whether runs compare: one task, one problem set, one kind of prompt; and what sets pools apart that do."""

from __future__ import annotations

import collections
from collections.abc import Hashable
from typing import TYPE_CHECKING

from kinetics_jax.analysis.problem_samples import SamplesError

if TYPE_CHECKING:
    from kinetics_jax.analysis.samples import Pool, RunData


def one_task(runs: list[RunData]) -> None:
    """Accuracies over different tasks do not compare; nor do problems that share nothing but their id."""
    tasks: dict[str, set[str]] = collections.defaultdict(set)
    for run in runs:
        tasks[run.task].update(run.problem)
    if len({frozenset(problems) for task, problems in tasks.items() if task}) > 1:
        raise SamplesError(
            f"runs of several tasks ({', '.join(sorted(filter(None, tasks)))}): accuracies over different problems do "
            "not compare; give the runs of one task at a time"
        )
    asked: dict[str, tuple[Hashable, RunData]] = {}
    for run in runs:
        for problem, what in run.asked.items():
            before, other = asked.setdefault(problem, (what, run))
            if before != what:
                raise SamplesError(
                    f"problem {problem!r} is not the same in {other.model} {other.attention} (task {other.task}) and "
                    f"{run.model} {run.attention} (task {run.task}); compare runs of one problem set"
                )
    prompts: dict[tuple[str, str], tuple[str, RunData]] = {}
    for run in runs:
        for problem, text in run.prompts.items():
            before, other = prompts.setdefault((run.model, problem), (text, run))
            if before != text:
                raise SamplesError(
                    f"{run.model}: problem {problem!r} was put to it in different words under {other.attention} and "
                    f"{run.attention} (another template, or thinking on and off); compare runs of one kind of prompt"
                )


def other_settings(pools: list[Pool]) -> list[str]:
    """A line that names the settings in which pools differ, with their values; those that a pool does not say are left
    out, and so are the weights of unlike models.
    """
    names = dict.fromkeys(name for pool in pools for name in pool.settings if name != "weights")
    apart = []
    for name in names:
        stated = [(pool, pool.settings[name]) for pool in pools if pool.settings.get(name) is not None]
        values = {repr(value): (pool, value) for pool, value in reversed(stated)}
        if len(values) > 1:
            shown = [f"{value!s:.20} for {pool}" for pool, value in reversed(values.values())]
            more = f", and {len(shown) - 2} more" if len(shown) > 2 else ""
            apart.append(f"{name} ({', '.join(shown[:2])}{more})")
    weights: dict[str, set[str]] = collections.defaultdict(set)
    for pool in pools:
        if pool.settings.get("weights") is not None:
            weights[pool.model].add(repr(pool.settings["weights"]))
    apart += [f"the weights of {model}" for model, found in weights.items() if len(found) > 1]
    if not apart:
        return []
    return [f"the runs differ in {'; '.join(apart)}: what is compared is that too, not the model and attention alone"]


def other_prompts(runs: list[RunData]) -> list[str]:
    """A line where models read a problem in different words. (Of one model, `one_task` refuses that.)"""
    first: dict[str, tuple[str, RunData]] = {}
    for run in runs:
        for problem, text in run.prompts.items():
            before, other = first.setdefault(problem, (text, run))
            if before != text:
                return [
                    f"problem {problem!r:.60} was put to {other.model} and {run.model} in different words (their chat "
                    "templates, or thinking on and off): what is compared is that too"
                ]
    return []


def same_problems(pools: list[Pool]) -> None:
    """Accuracies over different problems do not compare: an unfinished run would win by its easy beginning."""
    first, *others = pools
    for pool in others:
        odd = sorted(first.problems.keys() ^ pool.problems.keys())
        if odd:
            raise SamplesError(
                f"{first} has {len(first.problems)} problems, {pool} has {len(pool.problems)}, and they differ "
                f"(in {odd[0]!r}, for one); finish the runs, or give runs over the same problems"
            )
