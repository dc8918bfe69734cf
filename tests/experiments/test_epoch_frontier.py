"""Real graded samples, if this machine has them: the numbers that their own description quotes, and what is drawn."""

import json

import numpy as np
import pandas as pd
import pytest
from epoch_frontier import GPT_OSS_120B, SHAPES, evaluate, maker, short_name, undated
from paths import SHARED

DATA = SHARED / "traces/epoch_otis_mock_aime.csv"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.exists(), reason="../shared/data/traces/epoch_otis_mock_aime.csv does not exist")
def test_real_samples(tmp_path, capsys):
    evaluate(DATA, tmp_path)
    summary = json.loads((tmp_path / "epoch_summary.json").read_text())
    assert (summary["runs"], summary["samples"]) == (126, 45_280)
    assert "CC BY 4.0" in summary["source"]
    (quoted,) = summary["pass_at_k"].values()
    assert [row["k"] for row in quoted] == [1, 2, 4, 8, 16]
    np.testing.assert_allclose([row["accuracy"] for row in quoted], [0.074, 0.125, 0.195, 0.268, 0.311], atol=5e-4)
    assert all(row["low"] < row["accuracy"] < row["high"] for row in quoted)
    frontier = pd.DataFrame(summary["token_frontier"])
    assert frontier["tokens"].is_monotonic_increasing
    assert frontier["accuracy"].is_monotonic_increasing
    assert not set(frontier["model"]) & set(summary["left_out_of_the_envelope"])
    tokens = pd.read_csv(tmp_path / "epoch_tokens.csv")
    assert tokens["model"].nunique() == summary["runs_with_complete_token_counts"]
    assert tokens[["tokens", "low", "high"]].notna().all(axis=None)
    assert set(pd.read_csv(tmp_path / "epoch_cost.csv")["model"]) == set(SHAPES)
    for name in ("epoch_tokens.png", "epoch_pass_at_k.png"):
        assert (tmp_path / name).stat().st_size > 20_000
    assert "Qwen2.5-32B-Instruct" in capsys.readouterr().out


def test_names_and_shapes():
    name = "sagemaker/Qwen/Qwen2.5-32B-Instruct (NRC)"
    assert (short_name(name), maker(name)) == ("Qwen2.5-32B-Instruct", "Qwen")
    assert undated("gpt-5.1-2025-11-13") == undated("gpt-5.1") == "gpt-5.1"
    assert undated("claude-opus-4-5-20251101") == "claude-opus-4-5"
    assert 5.0e9 < GPT_OSS_120B.matmul_parameters < 5.3e9  # its makers say 5.1e9 active
    assert 21e9 < SHAPES["qwen3-235b-a22b-thinking-2507"][0].active_parameters < 23e9
