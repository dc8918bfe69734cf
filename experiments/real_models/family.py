"""The s1.1 family on MGSM: the models, and which of them each law chooses at equal accuracy and at equal cost."""

from __future__ import annotations

from typing import Any

import numpy as np

from kinetics_jax.analysis.samples import Pool
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.batching import resident_tokens
from kinetics_jax.stats.intervals import accuracy_interval, paired_difference
from real_models.compare import OVERALL, comparison, curves
from real_models.data import Stratum, lengths_of, question_of, with_shapes
from real_models.prices import CAPS, CHIPS, WEIGHTS, batch_of

THINKING = 8000  # tokens that the authors allow for thinking
# Qwen3 models of about the same size: what the family would cost with their shapes.
QWEN3 = {"s1.1-3B": "Qwen3-4B", "s1.1-7B": "Qwen3-8B", "s1.1-14B": "Qwen3-14B", "s1.1-32B": "Qwen3-32B"}


def family_summary(strata: list[Stratum], left_out: list[str]) -> dict[str, Any]:
    """Everything that the page says of the family, as JSON."""
    return {
        "left_out": left_out,
        "caps": list(CAPS),
        "overall_levels": list(OVERALL),
        "shapes": [_shape(pool) for pool in strata[0].pools],
        "strata": {stratum.name: stratum_summary(stratum) for stratum in strata},
        "short_caps": {
            stratum.name: {
                weights: comparison(stratum, "h100", weights, [cap for cap in CAPS if cap < THINKING])["overall"]
                for weights in ("none", "fit")
            }
            for stratum in strata
        },
        "qwen3_shapes": {
            stratum.name: {
                weights: comparison(with_shapes(stratum, QWEN3), "h100", weights) for weights in ("none", "fit")
            }
            for stratum in strata
        },
    }


def stratum_summary(stratum: Stratum) -> dict[str, Any]:
    """One stratum: its models, neighbours compared, and both laws on every chip, with and without weights."""
    return {
        "languages": list(stratum.languages),
        "questions": stratum.questions,
        "texts": stratum.texts * len(stratum.pools),
        "models": [_model(pool) for pool in stratum.pools],
        "neighbours": [
            _neighbours(smaller, larger) for smaller, larger in zip(stratum.pools, stratum.pools[1:], strict=False)
        ],
        "laws": {chip: {weights: comparison(stratum, chip, weights) for weights in WEIGHTS} for chip in CHIPS},
        "curves": {weights: curves(stratum, "h100", weights) for weights in ("none", "fit")},
    }


def solved(pool: Pool) -> tuple[np.ndarray, list[str]]:
    """Whether each text is right, and its question: translations are one cluster."""
    right = np.array([samples.right / samples.graded for samples in pool.problems.values()])
    return right, [question_of(problem) for problem in pool.problems]


def _shape(pool: Pool) -> dict[str, Any]:
    config = pool.priced()
    assert isinstance(config, ModelConfig), config.name
    return {
        "model": pool.model,
        "layers": config.num_layers,
        "kv_heads": config.num_kv_heads,
        "matmul_parameters": config.matmul_parameters,
        "kv_elements": config.kv_elements_per_token,
        "kv_per_million_parameters": config.kv_elements_per_token / config.matmul_parameters * 1e6,
    }


def _model(pool: Pool) -> dict[str, Any]:
    right, questions = solved(pool)
    low, high = accuracy_interval(right, clusters=questions)
    prompts, outputs = lengths_of(pool)
    return {
        "model": pool.model,
        "accuracy": float(right.mean()),
        "low": float(low),
        "high": float(high),
        "mean_tokens": float(outputs.mean()),
        "median_tokens": float(np.median(outputs)),
        "at_8000": float(np.mean(outputs >= THINKING)),
        "tokens_at_8000": float(outputs[outputs >= THINKING].sum() / outputs.sum()),
        "resident_tokens": resident_tokens(prompts, outputs),
        "batch_that_fits": {
            name: batch_of("fit", pool.priced(), chip, prompts, outputs) for name, chip in CHIPS.items()
        },
    }


def _neighbours(smaller: Pool, larger: Pool) -> dict[str, Any]:
    (right, questions), (other, _) = solved(larger), solved(smaller)
    found = paired_difference(right, other, clusters=questions)
    return {
        "larger": larger.model,
        "smaller": smaller.model,
        "difference": found.difference,
        "low": found.low,
        "high": found.high,
    }
