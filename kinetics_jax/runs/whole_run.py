"""What the records of a run say together of agreement with dense attention, and of speculation. No jax."""

from __future__ import annotations

import numpy as np

from kinetics_jax.runs.folder import Run


def run_agreement(run: Run) -> dict[str, float]:
    """`agreement`, the mean overlap of all tokens of a run, and `agreement_p5`, their 5th percentile; empty where no
    record has it.
    """
    tokens = [value for record in run.samples for value in (record.get("agreement") or {}).get("overlap", ())]
    finite = np.array([value for value in tokens if value is not None], np.float64)
    if not len(finite):
        return {}
    return {"agreement": float(finite.mean()), "agreement_p5": float(np.percentile(finite, 5))}


def run_speculation(run: Run) -> dict[str, float]:
    """`accepted_length`, tokens of a round in the mean, the part of drafts `accepted`, and `speculation_cost`, what
    decoding cost beside what dense decoding would have; empty where no record has it.
    """
    records = [record["speculation"] for record in run.samples if record.get("speculation")]
    rounds = sum(len(record["rounds"]) for record in records)
    if not rounds:
        return {}
    drafted = sum(record["drafted"] for record in records)
    dense = sum(record["dense_cost"] for record in records)
    return {
        "accepted_length": sum(sum(record["rounds"]) for record in records) / rounds,
        "accepted": sum(record["accepted"] for record in records) / drafted if drafted else 0.0,
        "speculation_cost": sum(record["cost"] for record in records) / dense if dense else 1.0,
    }
