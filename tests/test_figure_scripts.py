"""experiments/figures: the numbers behind every figure, on small made-up samples and on costs."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

FIGURES = Path(__file__).parents[1] / "experiments" / "figures"
sys.path.append(str(FIGURES))

import figure_3  # noqa: E402
import figure_9  # noqa: E402

from kinetics_jax.config import ModelConfig  # noqa: E402
from kinetics_jax.economics.cost import generation_cost  # noqa: E402

PNG = b"\x89PNG\r\n\x1a\n"
LARGEST_PNG = 300_000


def is_figure(path: Path) -> bool:
    data = path.read_bytes()
    return data.startswith(PNG) and 5_000 < len(data) < LARGEST_PNG


def test_figure_3_attention_outweighs_parameters(tmp_path, capsys):
    figure_3.main(["--out", str(tmp_path)])
    assert "figure_3_ratio.csv" in capsys.readouterr().out
    assert is_figure(tmp_path / "figure_3.png")
    ratio = pd.read_csv(tmp_path / "figure_3_ratio.csv")
    assert list(ratio.columns) == ["model", "parameters", "output_tokens", "phi"]
    for _, rows in ratio.groupby("model"):
        assert (np.diff(rows["phi"]) > 0).all()
    at = ratio[ratio["output_tokens"] == 4096].sort_values(by="parameters")
    assert (np.diff(at["phi"]) < 0).all()  # the smaller the model, the more of its cost is attention
    assert at["phi"].iloc[0] > 100
    memory = pd.read_csv(tmp_path / "figure_3_kv_memory.csv")
    assert 32768 * memory["kv_bytes_per_token"].max() == 8 * 2**30  # the published 8 GiB of 32B at 32K tokens
    assert 0 < memory["exponent"].iloc[0] < 0.25


@pytest.mark.parametrize(("law", "costs"), [("FLOPs", [7.0, 900.0]), ("eFLOPs", [50.0, 2e4])])
def test_figure_3_affordable_lengths_are_the_last_that_fit(law, costs):
    model = ModelConfig.named("4B")
    how = {"prompt": 100, "convention": "traffic", "chip": "h100"}
    table = figure_3.affordable([model], costs, law, **how)
    for cost, tokens in zip(table["cost"], table["output_tokens"], strict=True):
        here, beyond = (
            generation_cost(model, prompt_tokens=100, output_tokens=n, hardware="h100") for n in (tokens, tokens + 1)
        )
        if law == "FLOPs":
            assert here.compute <= cost < beyond.compute
        else:
            assert here.total <= cost < beyond.total
    assert figure_3.affordable([model], [1e-9], law, **how)["output_tokens"].iloc[0] == 0


def test_figure_9_pages_and_budgets(tmp_path):
    figure_9.main(["--out", str(tmp_path), "--output", "4096"])
    assert is_figure(tmp_path / "figure_9.png")
    table = pd.read_csv(tmp_path / "figure_9_cost.csv")
    parts = ["search", "chosen KV", "parameters"]
    np.testing.assert_allclose(table[parts].sum(axis=1), table["total"])
    assert (table["of_dense"] > 0).all()
    for _, rows in table.groupby("page_size"):
        assert (np.diff(rows["total"]) > 0).all()
        assert rows["search"].nunique() == 1  # the paper charges it on every step, whatever the budget
    for _, rows in table.groupby("budget"):
        np.testing.assert_allclose(rows["search"] * rows["page_size"], (rows["search"] * rows["page_size"]).iloc[0])
    assert table["in_paper"].sum() == 5
    with pytest.raises(SystemExit) as stopped:
        figure_9.main(["--out", str(tmp_path), "--budget", "100"])
    assert stopped.value.code == 2
