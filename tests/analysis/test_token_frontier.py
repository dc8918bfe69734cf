"""Accuracy against tokens, against counts done by hand."""

import dataclasses

import numpy as np
import pytest

from kinetics_jax.analysis.samples import RunData, SamplesError
from kinetics_jax.analysis.token_frontier import token_frontier
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.stats.estimators import cluster_bootstrap
from kinetics_jax.stats.intervals import accuracy_interval

RUN = RunData(
    model="closed",
    attention=Dense(),
    config=None,
    problem=["a", "a", "b", "b"],
    sample=[1, 2, 1, 2],
    prompt_tokens=[None] * 4,
    output_tokens=[100, 300, 1000, 3000],
    correct=[True, False, False, False],
)


def test_tokens_of_n_samples_by_hand():
    longer = dataclasses.replace(RUN, model="longer", output_tokens=[200, 400, 3000, 5000])
    table = token_frontier([RUN, longer])
    assert list(table["N"]) == [1, 2, 1, 2]
    np.testing.assert_allclose(table["accuracy"], [0.25, 0.5, 0.25, 0.5])
    np.testing.assert_allclose(table["tokens"], [1100, 2200, 2150, 4300])
    np.testing.assert_allclose(table[["tokens_low", "tokens_high"]].iloc[1], cluster_bootstrap([400.0, 4000.0]))
    np.testing.assert_allclose(table[["low", "high"]].iloc[0], accuracy_interval([0.5, 0.0]))
    assert table["parameters"].isna().all()
    assert list(table["on_frontier"]) == [True, True, False, False]
    assert list(token_frontier([RUN], trials=[2])["N"]) == [2]


def test_a_missing_count_makes_no_frontier():
    with pytest.raises(SamplesError, match=r"token counts are missing for 1 of 2 problems \(such as 'b'\)"):
        token_frontier([dataclasses.replace(RUN, output_tokens=[1, 2, None, 3])])
