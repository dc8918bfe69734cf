"""Public measurements of decode speed as they are published: the ML.ENERGY leaderboard's, and Qwen's of Qwen3.

The ML.ENERGY Benchmark (github.com/ml-energy/leaderboard, 2026-02-27): vLLM on H100 and B200, the median time between
tokens and the energy of one, under a constant number of requests. It does not say how long contexts were. A sequence
met at a random step of a full engine has its prompt and half of its output behind it, and longer outputs are met more
often: `E[L^2] / 2 E[L]` tokens, over the output lengths L. GPQA's lengths stand in histograms beside the file
(`gpqa_output_length_histograms.json`). Prompts are in no file: CONTEXTS has what is assumed of each workload.

Qwen's speed benchmark of Qwen3 (github.com/QwenLM/Qwen3, docs/source/getting_started/speed_benchmark): one H20 a
replica, batch 1, prompts of known lengths, 2,048 tokens generated; its speed divides prompt and output by the time of
both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kinetics_jax.config import ConfigError, ModelConfig
from kinetics_jax.costs.measurements import (
    MAX_BATCH,
    MAX_CHIPS,
    MAX_NUMBER,
    MAX_TOKENS,
    Measured,
    MeasurementError,
    number,
    own_measurements,
    read_rows,
    whole,
)
from kinetics_jax.errors import shown
from kinetics_jax.files import read_json

HISTOGRAMS = "gpqa_output_length_histograms.json"
PRECISIONS = {"bfloat16": "bfloat16", "fp8": "float8"}
QUANTISED = {"BF16": "bfloat16", "FP8": "float8", "GPTQ-Int8": "int8", "GPTQ-INT4": "int4", "AWQ-INT4": "int4"}
QWEN_OUTPUT = 2048  # tokens that Qwen's benchmark generates
# A step whose mean time (batch over throughput) is so many times its median is two kinds of steps: the median is none.
MIXED = 1.5


class Context(NamedTuple):
    """What is assumed of a workload: prompt tokens, and the share of the mean output that is behind a sequence met at a
    random step (None: from the histogram). The leaderboard's pages have 0.86 to 1.08 for chat, by model."""

    prompt: int
    share: float | None


CONTEXTS = {"gpqa": Context(250, None), "lm-arena-chat": Context(100, 0.95)}


class Measurements(NamedTuple):
    """Rows that can be priced, and how many others there are by what stands against them."""

    rows: list[Measured]
    left_out: Counter[str]


def read_measurements(path: Path, config_of: Callable[[str], ModelConfig] = ModelConfig.named) -> Measurements:
    """Measurements of a CSV file in one's own layout (`measurements`), ML.ENERGY's or Qwen's; the columns tell.

    `config_of` gives the shape of a model by name in one's own layout. Of the public ones, models of a shape that
    ModelConfig does not have are left out. Raises MeasurementError, in one line, for a file that cannot be read.
    """
    try:
        columns, rows = read_rows(path)
    except FileNotFoundError as error:
        raise MeasurementError(f"{shown(str(path), 400)}: no such file of measurements") from error
    if "median_itl_ms" in columns:
        return _ml_energy(path, columns, rows)
    if "speed_tokens_per_s_incl_prompt" in columns:
        return _qwen(path, columns, rows)
    return Measurements(own_measurements(path, columns, rows, config_of), Counter())


def _ml_energy(path: Path, columns: tuple[str, ...], rows: list[dict[str, str]]) -> Measurements:
    _need(
        path,
        columns,
        "task",
        "model_id",
        "weight_precision",
        "gpu_model",
        "num_gpus",
        "avg_batch_size",
        "avg_output_len",
        "median_itl_ms",
        "output_throughput_tokens_per_sec",
        "energy_per_token_joules",
    )
    behind = _tokens_behind(path.with_name(HISTOGRAMS))
    measured: list[Measured] = []
    left_out: Counter[str] = Counter()
    for line, row in enumerate(rows, 2):
        where = f"{shown(str(path), 400)}, line {line}"
        model, task = row["model_id"], row["task"]
        config = _published(re.sub(r"(-(Instruct|Thinking)-2507)?(-FP8)?$", "", model))
        seconds = number(row, "median_itl_ms", where, MAX_NUMBER) / 1e3
        batch = number(row, "avg_batch_size", where, MAX_BATCH)
        mean = batch / number(row, "output_throughput_tokens_per_sec", where, MAX_NUMBER)
        if config is None:
            left_out[f"{model}: other layers than full attention, not fitted"] += 1
            continue
        if model.endswith("-FP8") and row["weight_precision"] != "fp8":
            raise MeasurementError(
                f"{where}: contradicts itself: model_id is {shown(model)}, and weight_precision "
                f"{shown(row['weight_precision'])}"
            )
        if row["weight_precision"] not in PRECISIONS or task not in CONTEXTS:
            left_out[f"{model}: {row['weight_precision']}, {task}"] += 1
            continue
        if mean > MIXED * seconds:
            left_out[f"{model}: mean time of a step above {MIXED} times the median"] += 1
            continue
        assumed = CONTEXTS[task]
        if assumed.share is not None:
            resident = assumed.share * number(row, "avg_output_len", where, MAX_TOKENS)
        elif model in behind:
            resident = behind[model]
        else:
            raise MeasurementError(f"{where}: {HISTOGRAMS} beside it has no output lengths of {shown(model)}")
        measured.append(
            Measured(
                model=model,
                config=config,
                gpu=row["gpu_model"].lower(),
                batch=max(1, round(batch)),
                context=round(assumed.prompt + resident),
                seconds=seconds,
                chips=whole(row, "num_gpus", where, 1, MAX_CHIPS),
                weights=PRECISIONS[row["weight_precision"]],
                joules=number(row, "energy_per_token_joules", where, MAX_NUMBER),
                workload=task,
                engine="vLLM",
            )
        )
    return Measurements(measured, left_out)


def _tokens_behind(path: Path) -> dict[str, float]:
    """Of every model with a histogram, tokens of output behind a sequence met at a random step: E[L^2] / 2 E[L]."""
    try:
        histograms = read_json(path, error=MeasurementError)
    except FileNotFoundError as error:
        raise MeasurementError(
            f"{shown(str(path), 400)}: is needed beside ML.ENERGY's measurements, for the lengths of the outputs"
        ) from error
    behind: dict[str, float] = {}
    for model, histogram in histograms.items():
        behind[model] = _half_of_the_longer(histogram, f"{shown(str(path), 400)}, {shown(model)}")
    return behind


def _half_of_the_longer(histogram: Any, where: str) -> float:
    wrong = MeasurementError(f"{where}: must hold bins, rising and one more than counts, and counts")
    try:
        edges, counts = (np.array(histogram[name], np.float64) for name in ("bins", "counts"))
    except (KeyError, TypeError, ValueError) as error:
        raise wrong from error
    if edges.ndim != 1 or counts.ndim != 1 or len(edges) != len(counts) + 1 or not 0 < np.sum(counts) < np.inf:
        raise wrong
    if not np.all(np.isfinite(edges)) or np.any(counts < 0) or np.any(np.diff(edges) < 0) or edges[0] < 0:
        raise wrong
    middles = (edges[1:] + edges[:-1]) / 2
    return float(np.sum(counts * middles**2) / (2 * np.sum(counts * middles)))


def _qwen(path: Path, columns: tuple[str, ...], rows: list[dict[str, str]]) -> Measurements:
    _need(path, columns, "model", "engine", "input_length", "quantization", "gpus")
    measured: list[Measured] = []
    left_out: Counter[str] = Counter()
    for line, row in enumerate(rows, 2):
        where = f"{shown(str(path), 400)}, line {line}"
        config = _published(row["model"])
        if row["speed_tokens_per_s_incl_prompt"] == "-":
            left_out[f"{row['model']}: {row['engine']}, {row['quantization']} was not measured"] += 1
            continue
        if config is None or row["quantization"] not in QUANTISED:
            left_out[f"{row['model']}: {row['quantization']}, not priced here"] += 1
            continue
        prompt = whole(row, "input_length", where, 1, MAX_TOKENS)
        speed = number(row, "speed_tokens_per_s_incl_prompt", where, MAX_NUMBER)
        measured.append(
            Measured(
                model=row["model"],
                config=config,
                gpu="h20",
                batch=1,
                context=prompt + QWEN_OUTPUT // 2,
                seconds=(prompt + QWEN_OUTPUT) / speed / QWEN_OUTPUT,
                chips=whole(row, "gpus", where, 1, MAX_CHIPS),
                weights=QUANTISED[row["quantization"]],
                prompt_tokens=prompt,
                output_tokens=QWEN_OUTPUT,
                workload=row["quantization"],
                engine=row["engine"],
            )
        )
    return Measurements(measured, left_out)


def _need(path: Path, columns: tuple[str, ...], *needed: str) -> None:
    if missing := [column for column in needed if column not in columns]:
        raise MeasurementError(f"{shown(str(path), 400)}: column {', '.join(missing)} is missing")


def _published(model: str) -> ModelConfig | None:
    try:
        return ModelConfig.named(model)
    except ConfigError:
        return None
