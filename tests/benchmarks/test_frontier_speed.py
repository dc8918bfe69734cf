"""The ways that frontier_speed.py times, on few samples: they must agree, and notice when they do not."""

import frontier_speed
import numpy as np
import pytest

from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.cost import generation_cost


@pytest.mark.slow
def test_a_small_measurement(monkeypatch):
    for name, value in (("PROBLEMS", 3), ("SAMPLES", 4), ("MODELS", frontier_speed.MODELS[:2])):
        monkeypatch.setattr(frontier_speed, name, value)
    monkeypatch.setattr(frontier_speed, "POLICIES", frontier_speed.POLICIES[:3])
    figures = frontier_speed.measure(5, 1)
    assert 6 * 4 <= figures["rows_of_csv"] <= 6 * 16  # caps beyond the longest sample are one
    assert figures["ratio_filters"] > 0
    real = frontier_speed.scalar_cost
    monkeypatch.setattr(frontier_speed, "scalar_cost", lambda *arguments: 2 * real(*arguments))
    with pytest.raises(AssertionError):
        frontier_speed.measure(5, 1)


@pytest.mark.parametrize("policy", frontier_speed.POLICIES, ids=str)
def test_scalar_costs_are_the_convention(policy):
    config = ModelConfig.named("8B")
    for prompt, output in ((100, 4000), (3000, 17)):
        cost = generation_cost(
            config, prompt_tokens=prompt, output_tokens=output, attention=policy, convention="upstream", intensity=562.5
        )
        np.testing.assert_allclose(frontier_speed.scalar_cost(config, prompt, output, policy), cost.total, rtol=1e-12)
