"""experiments/benchmarks/soak.py on few samples, and that it notices lost, doubled and other samples and growth."""

import argparse

import numpy as np
import pandas as pd
import pytest
import soak

from kinetics_jax.assets import builtin_models


@pytest.mark.slow
def test_a_small_soak(tmp_path, monkeypatch):
    run = (builtin_models()[0], "block_topk:budget=32,page_size=4", 40)
    monkeypatch.setattr(soak, "configurations", lambda: [run])
    monkeypatch.setattr(soak, "MAX_GROWTH", 1.0)  # too few chunks to judge
    arguments = argparse.Namespace(work=tmp_path, seed=1, samples=24, problems=4, slots=8, kills=1, long=1)
    row, faults = soak.soak(*run, arguments)
    assert faults == []
    assert (row["samples"], row["long_samples"], row["kills"]) == (24, 24, 1)
    assert row["set_aside"] > 0
    low, high = map(int, row["prompt_tokens"].split("-"))
    assert low < high


def test_lost_doubled_and_other_samples_are_faults():
    calm = [{"problem": "p", "sample": i, "text": f"text {i}"} for i in range(4)]
    expected = {("p", i) for i in range(4)}
    assert soak.differences(calm[::-1], calm, expected) == []
    found = [calm[0], calm[0], {**calm[1], "text": "else"}, calm[2], {"problem": "p", "sample": 9, "text": ""}]
    assert soak.differences(found, calm, expected) == [
        "sample ('p', 0) is stored 2 times",
        "sample ('p', 3) is lost",
        "sample ('p', 9) was not asked for",
        "sample ('p', 1) differs from the calm run",
    ]


@pytest.mark.parametrize("leak", [0, 200_000])
def test_growth_after_warm_up_is_noticed(leak):
    """A hundred chunks at 500 MB of resident and 4 MB of live memory, with noise and much warming up before."""
    rng = np.random.default_rng(0)
    chunks = np.arange(150)
    resident = 5e8 - 1e8 * np.exp(-chunks / 10) + leak * chunks + 1e6 * rng.standard_normal(150)
    live = 4e6 + leak / 100 * chunks + 1e4 * rng.random(150)
    found = soak.growth(pd.DataFrame({"resident": resident, "live": live}))
    assert (found["resident"] > soak.MAX_GROWTH) == (found["live"] > soak.MAX_GROWTH) == bool(leak)
