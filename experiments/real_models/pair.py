"""Two distilled models of one size and unlike caches on the same problems: what a text of each costs.

Only tokens are used: the file's own verdicts are far below what these models are known for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import generation_cost
from real_models.data import DataError, count, one_of, read_columns
from real_models.laws import redrawn_ratios
from real_models.prices import CHIPS, batch_of

SMALL, LARGE = "DeepSeek-R1-Distill-Qwen-7B", "DeepSeek-R1-Distill-Llama-8B"  # by the size of the cache
TASKS = ("math500", "gpqa_diamond", "gsm8k", "arc_challenge")
PROMPT = 150  # tokens; the file does not say
CHIP = "h100"


def read_pair(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """By task: tokens of the smaller and of the larger cache's model on the problems that both answered, in one order.
    Raises DataError for a problem that a model answers twice, or without a problem in common.
    """
    columns = {"task": one_of(*TASKS), "model": one_of(SMALL, LARGE), "problem": str, "tokens": count}
    found: dict[tuple[str, str], dict[str, int]] = {(task, model): {} for task in TASKS for model in (SMALL, LARGE)}
    for row in read_columns(path, columns):
        of_model = found[row["task"], row["model"]]
        if row["problem"] in of_model:
            raise DataError(f"{path}: {row['model']} answers {row['task']} {row['problem']} twice; keep one")
        of_model[row["problem"]] = row["tokens"]
    pairs = {}
    for task in TASKS:
        small, large = found[task, SMALL], found[task, LARGE]
        common = sorted(small.keys() & large.keys())
        if not common:
            raise DataError(f"{path}: no problem of {task} that both {SMALL} and {LARGE} answered")
        pairs[task] = tuple(np.array([tokens[name] for name in common], np.float64) for tokens in (small, large))
    return pairs


def pair_summary(pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Everything that the page says of the two models, as JSON."""
    configs = [ModelConfig.named(name) for name in (SMALL, LARGE)]
    return {
        "models": [
            {"model": name, "matmul_parameters": config.matmul_parameters, "kv_elements": config.kv_elements_per_token}
            for name, config in zip((SMALL, LARGE), configs, strict=True)
        ],
        "prompt_tokens": PROMPT,
        "chip": CHIP,
        "tasks": [_task(task, tokens, configs) for task, tokens in pairs.items()],
    }


def _task(task: str, tokens: tuple[np.ndarray, np.ndarray], configs: list[ModelConfig]) -> dict[str, Any]:
    spent: dict[str, list[np.ndarray]] = {}
    for config, outputs in zip(configs, tokens, strict=True):
        for name, weights in (("eFLOPs, no weights", "none"), ("eFLOPs, batch that fits", "fit")):
            batch = batch_of(weights, config, CHIPS[CHIP], PROMPT, outputs)
            cost = generation_cost(
                config, prompt_tokens=PROMPT, output_tokens=outputs, hardware=CHIPS[CHIP], batch=batch
            )
            spent.setdefault(name, []).append(cost.total)
        spent.setdefault("tokens", []).append(outputs)
        spent.setdefault("FLOPs", []).append(cost.compute)
    return {"task": task, "problems": len(tokens[0]), **{name: _ratio(*amounts) for name, amounts in spent.items()}}


def _ratio(small: np.ndarray, large: np.ndarray) -> dict[str, float]:
    """What the model with the larger cache spends over the other, with its interval from redrawing problems."""
    draws = redrawn_ratios(large[None], small[None])[:, 0]
    low, high = np.quantile(draws[1:], [0.025, 0.975])
    return {"small": float(small.mean()), "large": float(large.mean()), "ratio": float(draws[0])} | {
        "low": float(low),
        "high": float(high),
    }
