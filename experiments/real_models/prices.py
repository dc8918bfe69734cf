"""What texts cost: chips, the batch that shares the weights, and configurations by question."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kinetics_jax.analysis.grid import grid
from kinetics_jax.costs.architectures.architecture import PricedModel
from kinetics_jax.costs.batching import Batch, resident_tokens
from kinetics_jax.costs.hardware import Hardware, hardware
from kinetics_jax.costs.memory import fits
from real_models.data import Stratum, question_of
from real_models.laws import Cells

CHIPS: dict[str, Hardware] = {name: hardware(name) for name in ("h100", "h200", "b200", "h20")}
WEIGHTS: dict[str, Batch] = {"none": None, "fit": "fit", "alone": 1}  # the batch that shares their reads
CAPS = tuple(round(float(cap)) for cap in np.geomspace(300, 27_400, 40))


def batch_of(
    weights: str,
    config: PricedModel,
    chip: Hardware,
    prompt: npt.ArrayLike,
    output: npt.ArrayLike,
    lost: npt.ArrayLike = 0.0,
) -> int | None:
    """The sequences that share every read of the weights: None where those are left out of the cost.

    What fits is counted from the tokens that a sequence holds, the mean over all decode steps, of which `lost` in all
    were pruned.
    """
    if weights != "fit":
        return 1 if weights == "alone" else None
    steps = np.sum(np.maximum(np.asarray(output) - 1, 0))
    return fits(config, chip, tokens=math.ceil(resident_tokens(prompt, output) - np.sum(lost) / steps)).sequences


def cells_of(stratum: Stratum, chip: Hardware, weights: str, caps: Sequence[int] = CAPS) -> Cells:
    """Every (model, cap) of a stratum: accuracy, FLOPs and eFLOPs (1e12) of a text, means over a question's languages.

    A text counts as solved under a cap if it is right and ends within it. Left out are caps up to which not one text
    fits the chip.
    """
    cells = grid(stratum.pools, trials=[1], caps=caps, hardware=chip, batch=WEIGHTS[weights])
    questions = np.array([question_of(problem) for problem in cells.problems])
    _, index, sizes = np.unique(questions, return_inverse=True, return_counts=True)
    mean = np.zeros((len(questions), len(sizes)))  # over the texts of a question
    mean[np.arange(len(questions)), index] = 1 / sizes[index]
    runs = np.isfinite(cells.cost).all(axis=1)
    names = [pool.model for pool in stratum.pools]
    return Cells(
        model=np.array([names.index(name) for name in cells.configurations["model"]])[runs],
        cap=cells.configurations["cap"].to_numpy()[runs],
        accuracy=cells.accuracy[runs] @ mean,
        flops=cells.compute[runs] @ mean,
        eflops=cells.cost[runs] @ mean,
    )
