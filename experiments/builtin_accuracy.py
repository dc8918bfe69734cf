"""Accuracy of the built-in models: pass@1, pass@8, the vote of 8, and pass@1 with half the output, with intervals.

    python experiments/builtin_accuracy.py            # samples anew (two minutes), writes JSON, prints the table
    python experiments/builtin_accuracy.py --recorded # the table of the numbers that are recorded

Writes for every problem how many of its 16 samples were right, how many within the first 36 tokens, and the chance
that the most frequent answer of 8 of them is right. The intervals come from these numbers whenever they are asked for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from kinetics_jax.analysis.votes import majority_vote
from kinetics_jax.stats.estimators import pass_at_k
from kinetics_jax.stats.intervals import accuracy_interval

RESULTS = Path(__file__).parent / "results" / "cpu" / "builtin_accuracy.json"
SAMPLES, DRAWN = 16, 8
TEMPERATURES = (1.0, 0.8)
QUANTITIES = ("pass@1", "pass@8", "majority of 8", "half the output")
Interval = tuple[float, float, float]  # mean, and both ends


def measure(name: str, temperature: float) -> dict[str, list]:
    """Per problem: `right` and `early` (within half the output) of 16 samples, and `majority`, of 8 of them."""
    from safetensors.numpy import load_file
    from train_builtin import ASSETS, FAMILY, HALF_THE_OUTPUT, boxed_answers  # needs the extra `train`

    problems = [json.loads(line) for line in (ASSETS / "problems.jsonl").read_text(encoding="utf-8").splitlines()]
    stored = load_file(ASSETS / name / "model.safetensors")
    params = {key.removeprefix("model."): jnp.asarray(value) for key, value in stored.items()}
    answers, where = boxed_answers(params, FAMILY[name].config(), problems, temperature, rounds=SAMPLES // 4)
    correct = answers == np.array([[int(problem["answer"])] for problem in problems])
    votes = [
        majority_vote([None if each < 0 else int(each) for each in said], list(right), DRAWN)
        for said, right in zip(answers, correct, strict=True)
    ]
    return {
        "right": correct.sum(axis=1).tolist(),
        "early": (correct & (where < HALF_THE_OUTPUT)).sum(axis=1).tolist(),
        "majority": [round(float(vote), 6) for vote in votes],
    }


def quantities(counts: dict[str, list]) -> dict[str, Interval]:
    """Mean over problems and 95 % interval of each of QUANTITIES."""
    right, early = np.array(counts["right"]), np.array(counts["early"])
    values = (
        pass_at_k(n=SAMPLES, c=right, k=1),
        pass_at_k(n=SAMPLES, c=right, k=DRAWN),
        np.array(counts["majority"]),
        pass_at_k(n=SAMPLES, c=early, k=1),
    )
    low, high = accuracy_interval(np.stack(values, axis=1))
    return {
        name: (float(np.mean(each)), float(low[index]), float(high[index]))
        for index, (name, each) in enumerate(zip(QUANTITIES, values, strict=True))
    }


def cell(interval: Interval) -> str:
    """`0.711 [0.685, 0.735]`, as the pages print it."""
    return "{:.3f} [{:.3f}, {:.3f}]".format(*interval)


def table(recorded: dict[str, Any]) -> list[dict[str, str]]:
    """A row per model and temperature."""
    return [
        {"model": name, "temperature": temperature} | {key: cell(value) for key, value in quantities(counts).items()}
        for name, by_temperature in recorded["models"].items()
        for temperature, counts in by_temperature.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Measures the built-in models.")
    parser.add_argument("--recorded", action="store_true", help="sample nothing; print what is recorded")
    parser.add_argument("--json", type=Path, default=RESULTS, help="where the numbers are written")
    given = parser.parse_args(arguments)
    if not given.recorded:
        import jax
        from train_builtin import FAMILY

        models = {name: {str(each): measure(name, each) for each in TEMPERATURES} for name in FAMILY}
        document = {"jax": jax.__version__, "samples": SAMPLES, "models": models}
        text = json.dumps(document).replace('"chase', '\n"chase')  # a line per model
        given.json.write_text(text + "\n", encoding="utf-8")
    for row in table(json.loads(given.json.read_text(encoding="utf-8"))):
        print(" | ".join(row.values()))


if __name__ == "__main__":
    main()
