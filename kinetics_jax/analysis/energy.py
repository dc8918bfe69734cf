"""Joules beside the costs of a frontier: what N samples of a problem draw on hardware whose energy was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kinetics_jax.analysis.counted import sample_policy
from kinetics_jax.analysis.defaults import max_sample_tokens
from kinetics_jax.analysis.pricing import Pricing
from kinetics_jax.analysis.samples import Pool
from kinetics_jax.costs.cost import best_of_n_cost
from kinetics_jax.costs.hardware import measured_energy

if TYPE_CHECKING:
    import pandas as pd


def frontier_joules(pools: Sequence[Pool], table: pd.DataFrame, pricing: Pricing) -> np.ndarray:
    """Of every row of a `cost_frontier` of the pools, joules of N trials of a problem, mean over problems, `[rows]`.

    `pricing` is the frontier's own, and the batch of a row that of its `batch`; NaN where not one sequence fits. Raises
    HardwareError if the hardware's energy was not measured.
    """
    measured_energy(pricing.chip)
    of = {(pool.model, str(pool.attention)): pool for pool in pools}
    joules = np.full(len(table), np.nan)
    for number, row in enumerate(table.to_dict(orient="records")):
        if row["batch"] == 0:
            continue
        pool = of[row["model"], row["attention"]]
        cap = int(row.get("cap", max_sample_tokens(pool)))
        joules[number] = _joules(pool, pricing, int(row["N"]), cap, None if np.isnan(row["batch"]) else row["batch"])
    return joules


def _joules(pool: Pool, pricing: Pricing, trials: int, cap: int, batch: Any) -> float:
    kv, weights = pricing.widths(pool)
    drawn = [
        best_of_n_cost(
            pool.priced(),
            prompt_tokens=int(problem.prompt_tokens),
            output_lengths=np.minimum(problem.lengths, cap),
            trials=trials,
            attention=sample_policy(pool, problem, range(len(problem.lengths)), shape=(-1, 1)),
            hardware=pricing.chip,
            kv_bytes=kv,
            weight_bytes=weights,
            batch=batch,
            chips=pricing.chips,
            shared_prompt=pricing.shared_prompt,
        ).joules
        for problem in pool.problems.values()
    ]
    return float(np.mean(drawn))
