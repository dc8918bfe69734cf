"""experiments/builtin_accuracy.py: what is recorded, and the tables of README and model card that print it."""

import json

import builtin_accuracy
import numpy as np
import pandas as pd
import pytest
from paths import ROOT

from kinetics_jax.assets import builtin_models

RECORDED = json.loads(builtin_accuracy.RESULTS.read_text(encoding="utf-8"))
README, CARD = (ROOT / name for name in ("README.md", "kinetics_jax/assets/README.md"))


@pytest.fixture(scope="module")
def measured():
    """(model, temperature) → quantity → (mean, low, high)."""
    return {
        (model, temperature): builtin_accuracy.quantities(counts)
        for model, by_temperature in RECORDED["models"].items()
        for temperature, counts in by_temperature.items()
    }


def row(page, model):
    """The cells of the first row of a page's tables that begins with the model."""
    lines = page.read_text(encoding="utf-8").splitlines()
    return [cell.strip() for cell in next(line for line in lines if line.startswith(f"| {model} |")).split("|")[1:-1]]


def test_every_model_has_a_count_of_every_problem():
    assert list(RECORDED["models"]) == builtin_models()
    for by_temperature in RECORDED["models"].values():
        for counts in by_temperature.values():
            right, early, vote = (np.array(counts[name]) for name in ("right", "early", "majority"))
            assert right.shape == early.shape == vote.shape == (132,)
            assert np.all((early >= 0) & (early <= right) & (right <= builtin_accuracy.SAMPLES))
            assert np.all((vote >= 0) & (vote <= 1))
            assert np.all(vote[right == 0] == 0)
            assert np.all(vote[right == builtin_accuracy.SAMPLES] == 1)


def test_a_vote_is_never_better_than_someone_who_knows(measured):
    for found in measured.values():
        assert found["pass@1"][0] <= found["pass@8"][0]
        assert found["majority of 8"][0] <= found["pass@8"][0] + 1e-6
        assert all(0 <= low < high <= 1 and low <= mean <= high for mean, low, high in found.values())


def test_the_readme_prints_what_is_recorded(measured):
    for model in RECORDED["models"]:
        found = measured[model, "1.0"]
        expected = [builtin_accuracy.cell(found["pass@1"])]
        expected += [builtin_accuracy.cell(found[name]) for name in ("pass@8", "majority of 8")]
        expected += [f"{found['half the output'][0]:.3f}"]
        assert row(README, model)[1:5] == expected


def test_the_card_prints_what_is_recorded(measured):
    names = ("pass@1", "pass@8", "majority of 8", "half the output")
    for model in RECORDED["models"]:
        expected = [builtin_accuracy.cell(measured[model, "1.0"][name]) for name in names]
        expected += [builtin_accuracy.cell(measured[model, "0.8"][name]) for name in names[:3]]
        assert row(CARD, model)[4:] == expected


def test_the_seed_moves_more_than_the_interval_says(measured):
    """The other seed of chase-171k solved 0.352, as the card says."""
    mean, low, high = measured["chase-171k", "1.0"]["pass@1"]
    times = round((mean - 0.352) / ((high - low) / 2))
    for page in (README, CARD):
        text = " ".join(page.read_text(encoding="utf-8").split())
        assert "0.352" in text
        assert f"{times} times" in text


def test_the_script_prints_what_is_recorded(capsys):
    builtin_accuracy.main(["--recorded"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[0].startswith("chase-131k | 1.0 | 0.1")


def test_what_the_card_says_of_the_demo_is_recorded():
    """Shares of the weights' reads in a dense sample at the demo's 64 slots; dense alone on its frontier above 70 %."""
    rows = pd.read_csv(ROOT / "experiments" / "results" / "cpu" / "demo_frontier.csv")
    assert set(rows["batch"]) == {64}
    single = rows[(rows["attention"] == "dense") & (rows["N"] == 1)]
    shares = 100 * (1 - single["cost_without_weights"] / single["cost"])
    text = " ".join(CARD.read_text(encoding="utf-8").split())
    assert f"are {min(shares):.0f} to {max(shares):.0f} % of the cost of one dense sample" in text
    assert set(rows.loc[rows["on_frontier"] & (rows["accuracy"] > 0.7), "attention"]) == {"dense"}
    assert "every point of its frontier above 70 % is dense" in text
