"""Costs of a pool from what its samples counted, instead of from its policy's formula."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float

from kinetics_jax.analysis.problem_samples import ProblemSamples
from kinetics_jax.analysis.samples import READS, Pool, SamplesError
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.counted import CountedPolicy, attended, reach_of
from kinetics_jax.attention.policies.counts import triangle
from kinetics_jax.config import ModelConfig

if TYPE_CHECKING:
    import pandas as pd

CostsFrom = Literal["formula", "counts"]
HALVINGS = 80  # of an interval of token counts: down to the last bit


def with_costs_from(pools: Iterable[Pool], source: CostsFrom | None) -> list[Pool]:
    """The pools, priced by their policies' formulas or by what their samples counted; None: by the formula where the
    policy has one. Raises SamplesError for a pool whose samples were not counted.
    """
    priced = [dataclasses.replace(pool, costs_from=source) for pool in pools]
    for pool in priced:
        if pool.by_counts:
            _require_counts(pool)
    return priced


def costs_from(pool: Pool) -> CostsFrom:
    """What a pool is priced by."""
    return "counts" if pool.by_counts else "formula"


def costs_lines(pools: Sequence[Pool]) -> list[str]:
    """Which pools are priced by what their samples counted, which by an upper bound, and of which the counts contradict
    the formula, a line each.
    """
    lines = [contradiction(pool) for pool in pools if not pool.by_counts]
    for names, said in (
        (
            [str(pool) for pool in pools if pool.by_counts],
            "attention and search cost what the samples counted, not what a formula says",
        ),
        (
            [str(pool) for pool in pools if not pool.by_counts and pool.attention.price == "upper bound"],
            "costs are an upper bound, for what it reads depends on the data",
        ),
    ):
        if names:
            lines.append(f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {said}")
    return [line for line in lines if line]


def contradiction(pool: Pool) -> str:
    """A line where a pool's samples counted something else than the formula that prices them; empty where they did not,
    or were not counted.
    """
    config = pool.config
    if not isinstance(config, ModelConfig) or pool.attention.price != "formula" or not all(map(pool.owns, READS)):
        return ""
    problems = list(pool.problems.values())
    steps = np.concatenate([np.maximum(np.array(problem.lengths, np.float64) - 1, 0) for problem in problems])
    prompt = np.repeat([problem.prompt_tokens for problem in problems], [len(problem.lengths) for problem in problems])
    counts = pool.attention.counts(prompt, steps, config.num_layers)
    tokens = counts.dense.total + counts.forced.total + counts.chosen.total
    for what, formula, kind in (
        ("tokens attended to", tokens, READS[0]),
        ("summary vectors read", counts.vectors.total, READS[1]),
    ):
        said = float(np.sum(np.broadcast_to(formula, steps.shape))) * config.num_kv_heads
        counted = float(sum(np.sum(problem.own[kind]) for problem in problems))
        if abs(counted - said) > 1e-9 * max(counted, said):
            return (
                f"{pool}: its samples counted {counted:.6g} {what}, and its formula says {said:.6g}; costs are the "
                "formula's (--costs-from counts takes what was counted)"
            )
    return ""


def mark_costs(table: pd.DataFrame, pools: Sequence[Pool]) -> pd.DataFrame:
    """A table with rows of pools, with the column `costs_from` behind `attention` where a pool has counts for costs, or
    they were asked for.
    """
    if "attention" not in table or not any(pool.by_counts or pool.costs_from for pool in pools):
        return table
    sources = {(pool.model, str(pool.attention)): costs_from(pool) for pool in pools}
    column = [sources.get(named) for named in zip(table["model"], table["attention"], strict=True)]
    table = table.copy()
    table.insert(list(table.columns).index("attention") + 1, "costs_from", column)
    return table


def typical_policy(pool: Pool) -> AttentionPolicy:
    """What a pool's plans are priced with: its policy or, by its counts, the one reach that gives all its samples
    together what they counted.
    """
    if not pool.by_counts:
        return pool.attention
    of_problems = map(_reads(pool), pool.problems.values())
    prompt, steps, tokens, vectors = (np.concatenate(each) for each in zip(*of_problems, strict=True))
    everything, total = float(np.sum(prompt * steps + triangle(steps))), float(tokens.sum())
    if total >= everything:
        reach, surplus = float(np.max(prompt + steps, initial=1)), total / max(everything, 1)
    else:
        low, high = 0.0, float(np.max(prompt + steps, initial=1))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if np.sum(attended(middle, prompt, steps)[0]) < total else (low, middle)
        reach, surplus = high, 1.0
    return CountedPolicy(pool.attention, reach, surplus, _search(reach, prompt, steps, vectors.sum()))


def sample_policy(
    pool: Pool, problem: ProblemSamples, samples: Sequence[int] | np.ndarray, *, shape: tuple[int, ...] = (-1,)
) -> AttentionPolicy:
    """What some samples of a problem are priced with, by their indices: the pool's policy or, by their counts, one that
    reads of each sample what it counted; its settings are arrays of a `shape` with a place for each sample.
    """
    if not pool.by_counts:
        return pool.attention
    chosen = np.asarray(samples, np.int64)
    prompt, steps, tokens, vectors = (each[chosen] for each in _reads(pool)(problem))
    reach, surplus = reach_of(tokens, prompt, steps)
    of_each = reach, surplus, _search(reach, prompt, steps, vectors, each=True)
    return CountedPolicy(pool.attention, *(values.reshape(shape) for values in of_each))


def stacked(policies: Sequence[AttentionPolicy], width: int) -> AttentionPolicy:
    """The policies of several problems' samples as one, its settings `[problems, width, 1, 1]`, zeros behind."""
    first = policies[0]
    if not isinstance(first, CountedPolicy):
        return first

    def padded(name: str) -> np.ndarray:
        rows = np.zeros((len(policies), width))
        for row, policy in zip(rows, policies, strict=True):
            values = getattr(policy, name)
            row[: len(values)] = values
        return rows[:, :, None, None]

    return CountedPolicy(first.policy, *(padded(name) for name in ("reach", "surplus", "search")))


def _search(reach: Any, prompt: np.ndarray, steps: np.ndarray, vectors: Any, *, each: bool = False) -> Any:
    """Vectors a token of the lengths beyond the reach."""
    whole = attended(reach, prompt, steps)[1]
    beyond = prompt * (steps - whole) + triangle(steps) - triangle(whole)
    beyond = beyond if each else np.sum(beyond)
    return np.where(beyond > 0, vectors / np.maximum(beyond, 1), 0)


def _reads(pool: Pool) -> Any:
    """A function from a problem to its samples' prompts, decode steps, tokens read per KV head of a sparse layer and
    vectors per KV head of one that searches, float64 `[samples]` each.
    """
    config = _require_counts(pool)
    sparse = len(pool.attention.sparse_layers(config.num_layers))
    searching = sum(map(pool.attention.searches, range(config.num_layers)))

    def of_problem(problem: ProblemSamples) -> tuple[Float[np.ndarray, " samples"], ...]:
        steps = np.maximum(np.array(problem.lengths, np.float64) - 1, 0)
        prompt = np.full(len(steps), problem.prompt_tokens)
        tokens, vectors = (np.array(problem.own[kind], np.float64) / config.num_kv_heads for kind in READS)
        tokens = tokens - (config.num_layers - sparse) * (prompt * steps + triangle(steps))
        if np.any(tokens < 0):
            raise SamplesError(f"{pool}: samples counted fewer tokens than its dense layers attend to")
        return prompt, steps, tokens / max(sparse, 1), vectors / max(searching, 1)

    return of_problem


def _require_counts(pool: Pool) -> ModelConfig:
    config = pool.priced()
    if not isinstance(config, ModelConfig) or not all(map(pool.owns, READS)):
        if "speculate" in pool.settings:
            raise SamplesError(
                f"{pool}: its samples were speculated, and cost what their records say; leave out --costs-from counts"
            )
        cure = "" if pool.attention.price == "measured" else ", or leave out --costs-from counts"
        raise SamplesError(
            f"{pool}: its samples do not say what they read ({', '.join(READS)}), from which its costs are to be "
            f"taken; sample it with this version{cure}"
        )
    return config
