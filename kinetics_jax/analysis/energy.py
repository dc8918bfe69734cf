"""Joules beside the costs of a frontier: what N samples of a problem draw on hardware whose energy was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kinetics_jax.analysis.defaults import max_sample_tokens
from kinetics_jax.analysis.samples import Pool
from kinetics_jax.config import DTYPE_BYTES
from kinetics_jax.costs.cost import best_of_n_cost
from kinetics_jax.costs.hardware import Hardware, measured_energy
from kinetics_jax.costs.memory import fits

if TYPE_CHECKING:
    import pandas as pd


def frontier_joules(
    pools: Sequence[Pool], table: pd.DataFrame, hardware: Hardware, *, shared_prompt: bool = False
) -> np.ndarray:
    """Of every row of a `cost_frontier` of the pools, joules of N trials of a problem, mean over problems, `[rows]`.

    In the traffic convention, in the types that the run stored, with as many sequences side by side as fit the hardware
    when each grows to its cap; NaN where not one fits. Raises HardwareError if the hardware's energy was not measured.
    """
    measured_energy(hardware)
    joules = np.full(len(table), np.nan)
    of = {(pool.model, str(pool.attention)): pool for pool in pools}
    for number, row in enumerate(table.to_dict(orient="records")):
        pool = of[row["model"], row["attention"]]
        cap = int(row.get("cap", max_sample_tokens(pool)))
        joules[number] = _joules(pool, hardware, int(row["N"]), cap, shared_prompt)
    return joules


def _joules(pool: Pool, hardware: Hardware, trials: int, cap: int, shared_prompt: bool) -> float:
    problems = list(pool.problems.values())
    size = DTYPE_BYTES.get(str(pool.settings.get("dtype")), 2)
    longest = max(int(problem.prompt_tokens) for problem in problems) + cap
    stored: dict[str, Any] = {"kv_bytes": size, "weight_bytes": size, "attention": pool.attention}
    room = fits(pool.priced(), hardware, tokens=longest, **stored).sequences
    if not room:
        return float("nan")
    drawn = [
        best_of_n_cost(
            pool.priced(),
            prompt_tokens=int(problem.prompt_tokens),
            output_lengths=np.minimum(problem.lengths, cap),
            trials=trials,
            hardware=hardware,
            batch=room,
            shared_prompt=shared_prompt,
            **stored,
        ).joules
        for problem in problems
    ]
    return float(np.mean(drawn))
