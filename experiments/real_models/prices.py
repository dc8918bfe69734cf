"""What texts cost: chips, the batch that shares the weights, and grids of configurations by question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kinetics_jax.analysis.grid import grid
from kinetics_jax.analysis.samples import Pool
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.hardware import Hardware, hardware
from kinetics_jax.costs.memory import fits
from real_models.data import Stratum, lengths_of, question_of
from real_models.laws import Cells

# The data sheet's dense peak, bandwidth and memory, as vendors and Qwen's own speed tables for it name them.
H20 = Hardware("h20", 148e12, 4.0e12, 96e9, source="NVIDIA H20 data sheet", peaks={"bfloat16": 148e12})
CHIPS: dict[str, Hardware] = {name: hardware(name) for name in ("h100", "h200", "b200")} | {"h20": H20}
WEIGHTS = {"none": "no weights", "fit": "the batch that fits", "alone": "batch 1"}
CAPS = tuple(round(float(cap)) for cap in np.geomspace(300, 27_400, 40))


def resident_tokens(prompts: np.ndarray, outputs: np.ndarray) -> float:
    """Tokens that a decoding slot holds, the mean over all decode steps: long texts hold a slot longer."""
    return float(np.sum(outputs * (prompts + outputs / 2)) / np.sum(outputs))


def batch_of(weights: str, config: ModelConfig, chip: Hardware, tokens: float) -> int | None:
    """The sequences that share every read of the weights: None where those are left out of the cost."""
    if weights == "none":
        return None
    if weights == "alone":
        return 1
    return fits(config, chip, tokens=max(1, round(tokens))).sequences


def cells_of(stratum: Stratum, chip: Hardware, weights: str, caps: Sequence[int] = CAPS) -> Cells:
    """Every (model, cap) of a stratum: accuracy, FLOPs and eFLOPs (1e12) of a text, means over a question's languages.

    A text counts as solved under a cap if it is right and ends within it. Left out are caps up to which not one text
    fits the chip.
    """
    parts = []
    for pool in stratum.pools:
        groups = [[cap] for cap in caps] if weights == "fit" else [list(caps)]  # a batch for every cap, or one for all
        for group in groups:
            parts.append(
                grid([pool], trials=[1], caps=group, hardware=chip, batch=_batch(pool, group[-1], chip, weights))
            )
    rows = [row for part in parts for row in part.configurations.to_dict(orient="records")]
    names = [pool.model for pool in stratum.pools]
    questions = np.array([question_of(problem) for problem in parts[0].problems])
    _, index, sizes = np.unique(questions, return_inverse=True, return_counts=True)
    mean = np.zeros((len(sizes), len(questions)))  # over the texts of a question
    mean[index, np.arange(len(questions))] = 1 / sizes[index]

    def by_question(values: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate(values) @ mean.T

    eflops = by_question([part.cost for part in parts])
    runs = np.isfinite(eflops).all(axis=1)
    return Cells(
        model=np.array([names.index(row["model"]) for row in rows])[runs],
        cap=np.array([row["cap"] for row in rows])[runs],
        accuracy=by_question([part.accuracy for part in parts])[runs],
        flops=by_question([part.compute for part in parts])[runs],
        eflops=eflops[runs],
    )


def _batch(pool: Pool, cap: int, chip: Hardware, weights: str) -> int | None:
    prompts, outputs = lengths_of(pool)
    return batch_of(weights, pool.priced(), chip, resident_tokens(prompts, np.minimum(outputs, cap)))
