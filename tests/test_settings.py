"""Settings that make no sense are refused by name."""

import pytest

from kinetics_jax.settings import Sampling, SamplingError


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": -1},
        {"temperature": 1e-38},
        {"temperature": float("inf")},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"min_p": 1},
        {"max_tokens": 0},
        {"seed": -1},
    ],
)
def test_impossible_sampling_is_refused(setting):
    with pytest.raises(SamplingError, match=next(iter(setting))):
        Sampling(**setting)
