"""R1-Distill-Llama-8B on MATH-500, its cache whole or pruned by SnapKV: what pruning costs in accuracy and saves.

The runs generate in requests of 500 tokens. As the published code has it, the first request whose text has 512 tokens
or more keeps half of them, at least 256, and every later token stays (`once`); halving the text at the start of every
request is the most that the ratio can save (`every`). Both are priced, by what a decode step attends to.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from kinetics_jax.analysis.readers import read_all
from kinetics_jax.analysis.samples import Pool, pooled
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import Cost, generation_cost
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.stats.estimators import pass_at_k
from kinetics_jax.stats.intervals import accuracy_interval, paired_difference
from real_models.data import DataError, count, read_columns, verdict
from real_models.laws import redrawn_ratios
from real_models.prices import CHIPS, batch_of

MODEL = "DeepSeek-R1-Distill-Llama-8B"
RUNS = {"dense": ("kinetics_dense.csv", "dense_kvenv"), "snapkv": ("kinetics_snapkv.csv", "snapkv_b256_r05")}
REQUEST = 509  # tokens of a full request of 500, as the samples' tokens were counted
FROM, BUDGET, RATIO = 512, 256, 0.5  # of the run: pruned from this length on, to the larger of these
TRIALS = (1, 2, 4, 8, 16)
PRUNING = ("once", "every")
MARGIN = 0.02  # of pass@k: a loss that would not matter


@dataclasses.dataclass(frozen=True, eq=False)
class Samples:
    """A run's samples by problem, arrays `[problems, samples]`; `prompt` is `[problems]`."""

    problems: tuple[str, ...]
    prompt: np.ndarray
    tokens: np.ndarray
    correct: np.ndarray
    seconds: np.ndarray

    def pass_rates(self, trials: int) -> np.ndarray:
        """pass@k of every problem."""
        return pass_at_k(self.correct.shape[1], self.correct.sum(axis=1), trials)


def read_pruned(folder: Path) -> dict[str, Samples]:
    """Both runs, the same problems in the same order. Raises DataError where the two files of a run contradict."""
    columns = {"run": str, "problem": str, "sample": count, "tokens": count, "correct": verdict, "seconds": float}
    rows = read_columns(folder / "samples.csv", columns)
    found = {}
    for name, (table, run) in RUNS.items():
        read_columns(folder / table, {"problem": str})  # that it is there, in one line
        (pool,) = pooled(read_all([folder / table], attention="dense"))
        timed = {(row["problem"], row["sample"]): row for row in rows if row["run"] == run}
        found[name] = _samples(folder / table, pool, timed)
    if found["dense"].problems != found["snapkv"].problems:
        raise DataError(f"{folder}: the two runs hold different problems; they cannot be paired")
    return found


def _samples(path: Path, pool: Pool, timed: dict[tuple[str, int], dict[str, Any]]) -> Samples:
    sizes = {len(problem.lengths) for problem in pool.problems.values()}
    if len(sizes) > 1 or len(timed) != len(pool.problems) * max(sizes):
        raise DataError(f"{path}: has not as many samples of every problem as samples.csv; give both files of one copy")
    tokens = np.array([problem.lengths for problem in pool.problems.values()], np.float64)
    correct = np.array([problem.grades for problem in pool.problems.values()], bool)
    places = [(name, sample) for name in pool.problems for sample in range(max(sizes))]
    try:
        others = [timed[place] for place in places]
    except KeyError as error:
        raise DataError(f"{path}: sample {error.args[0]} is not in samples.csv; give both files of one copy") from error
    stated = zip(others, tokens.flat, correct.flat, strict=True)
    same = [(row["tokens"], row["correct"]) == (length, right) for row, length, right in stated]
    if not all(same):
        raise DataError(f"{path}: sample {places[same.index(False)]} differs in samples.csv; give both of one copy")
    return Samples(
        tuple(pool.problems),
        np.array([problem.prompt_tokens for problem in pool.problems.values()]),
        tokens,
        correct,
        np.array([row["seconds"] for row in others]).reshape(tokens.shape),
    )


def discarded(prompt: np.ndarray, tokens: np.ndarray, pruning: str) -> np.ndarray:
    """Tokens that decode steps do not attend to because they were pruned, the sum over the steps of each sample.

    A text of s tokens at the start of a request keeps max(BUDGET, floor(RATIO s)) of them, where s is at least FROM:
    at the first such request (`once`), or at each (`every`), as if the whole text had been computed again.
    """
    prompt, tokens = np.broadcast_arrays(np.asarray(prompt, np.float64), np.asarray(tokens, np.float64))
    total, gone = np.zeros(tokens.shape), np.zeros(tokens.shape)
    for start in range(0, int(tokens.max()), REQUEST):
        text = prompt + start
        lost = np.where(text >= FROM, text - np.maximum(BUDGET, np.floor(RATIO * text)), 0)
        gone = np.where(gone > 0, gone, lost) if pruning == "once" else lost
        # the first output token comes from the prompt's prefill, so that a request's steps are those of its tokens
        steps = np.clip(tokens - max(start, 1), 0, REQUEST if start else REQUEST - 1)
        total += gone * steps
    return total


def attended(prompt: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Tokens that dense decode steps attend to, the sum over the steps of each sample."""
    steps = np.maximum(tokens - 1, 0)
    return prompt * steps + steps * (steps + 1) / 2


def priced(
    config: ModelConfig, chip: Hardware, weights: str, prompt: np.ndarray, tokens: np.ndarray, lost: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """FLOPs and eFLOPs (1e12) of every sample, `lost` tokens of its steps not attended to; arrays that broadcast."""
    seen = attended(prompt, tokens)
    cost: Cost = generation_cost(
        config,
        prompt_tokens=prompt,
        output_tokens=tokens,
        hardware=chip,
        batch=batch_of(weights, config, chip, prompt, tokens, lost),
    )
    share = np.divide(lost, seen, out=np.zeros_like(seen), where=seen > 0)
    return cost.compute - share * cost.attention, cost.total - share * (cost.attention + cost.kv_reads)


def pruned_summary(runs: dict[str, Samples]) -> dict[str, Any]:
    """Everything that the page says of the two runs, as JSON."""
    dense, pruned = runs["dense"], runs["snapkv"]
    return {
        "model": MODEL,
        "problems": len(dense.problems),
        "samples": dense.tokens.shape[1],
        "runs": {name: _run(samples) for name, samples in runs.items()},
        "tokens": _ratio(pruned.tokens.mean(axis=1), dense.tokens.mean(axis=1)),
        "pass": [_pass(dense, pruned, k) for k in TRIALS],
        "attended": {
            pruning: float(1 - np.sum(lost) / np.sum(attended(pruned.prompt[:, None], pruned.tokens)))
            for pruning in PRUNING
            for lost in [discarded(pruned.prompt[:, None], pruned.tokens, pruning)]
        },
        "cost": [row for weights in ("none", "fit") for row in _costs(dense, pruned, weights)],
    }


def _run(samples: Samples) -> dict[str, float]:
    return {
        "mean_tokens": float(samples.tokens.mean()),
        "median_tokens": float(np.median(samples.tokens)),
        "seconds": float(samples.seconds.mean()),
        "accuracy": float(samples.correct.mean()),
    }


def _pass(dense: Samples, pruned: Samples, k: int) -> dict[str, Any]:
    rates = {"dense": dense.pass_rates(k), "snapkv": pruned.pass_rates(k)}
    found = paired_difference(rates["snapkv"], rates["dense"], margin=MARGIN)
    row: dict[str, Any] = {"k": k}
    for name, rate in rates.items():
        low, high = accuracy_interval(rate)
        row[name] = {"rate": float(rate.mean()), "low": float(low), "high": float(high)}
    return row | {
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
        "noninferior": found.noninferior,
    }


def _costs(dense: Samples, pruned: Samples, weights: str) -> list[dict[str, Any]]:
    """A row per chip, pruning and law: what a solved problem costs, of one attempt and of sixteen."""
    config = ModelConfig.named(MODEL)
    rows = []
    for chip in CHIPS:
        whole = priced(config, CHIPS[chip], weights, dense.prompt[:, None], dense.tokens, np.zeros(dense.tokens.shape))
        for pruning in PRUNING:
            lost = discarded(pruned.prompt[:, None], pruned.tokens, pruning)
            less = priced(config, CHIPS[chip], weights, pruned.prompt[:, None], pruned.tokens, lost)
            for i, law in enumerate(("FLOPs", "eFLOPs")):
                costs = whole[i].mean(axis=1), less[i].mean(axis=1)
                rows.append(
                    {
                        "chip": chip,
                        "weights": weights,
                        "pruning": pruning,
                        "law": law,
                        "per_sample": _ratio(costs[1], costs[0]),
                        "per_solved": [
                            {"k": k, "dense": float(k * costs[0].mean() / solved[0].mean())}
                            | {"snapkv": float(k * costs[1].mean() / solved[1].mean())}
                            | _ratio(costs[1], costs[0], solved[0], solved[1])
                            for k in (1, 16)
                            for solved in [(dense.pass_rates(k), pruned.pass_rates(k))]
                        ],
                    }
                )
    return rows


def _ratio(above: np.ndarray, below: np.ndarray, *more: np.ndarray) -> dict[str, float]:
    """mean(above) / mean(below), by `more` times another such ratio; its interval from redrawing problems."""
    draws = redrawn_ratios(above[None], below[None])[:, 0]
    if more:
        draws = draws * redrawn_ratios(more[0][None], more[1][None])[:, 0]  # the same redraws: one seed
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return {"ratio": float(draws[0]), "low": float(low), "high": float(high)}
