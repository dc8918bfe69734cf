"""experiments/weight_prices.py: ratios computed independently, the recorded tables, and the documentation."""

import json

import numpy as np
import pandas as pd
import pytest
import weight_prices
from paths import ROOT

from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig
from kinetics_jax.costs.hardware import HARDWARE
from kinetics_jax.costs.step_time import step_seconds

MEMORY = list(weight_prices.MEMORY)
RECORDED = json.loads(weight_prices.RESULTS.read_text(encoding="utf-8"))


def row(hardware, chips, model, memory="data sheet"):
    return next(
        each
        for each in RECORDED["ratios"]
        if (each["hardware"], each["chips"], each["model"], each["memory"]) == (hardware, chips, model, memory)
    )


@pytest.mark.parametrize(
    ("hardware", "chips", "model", "without", "full", "batch"),
    [
        ("h100", 1, "0.6B", 5.46, 4.77, 36),
        ("h100", 1, "8B", 4.87, 2.05, 21),
        ("h100", 1, "14B", 4.48, 1.53, 15),
        ("h100", 1, "32B", 4.24, 1.03, 1),
        ("h100", 1, "30B-A3B", 5.37, 1.19, 6),
        ("h200", 1, "8B", 4.58, 2.63, 43),
        ("h200", 1, "32B", 3.81, 1.34, 13),
        ("h200", 8, "8B", 4.58, 4.16, 395),
        ("h200", 8, "32B", 3.81, 2.94, 211),
    ],
)
def test_ratios_computed_independently(hardware, chips, model, without, full, batch):
    """By a separate computation: both at the smaller batch, memory of the data sheet, no communication."""
    found = row(hardware, chips, model)
    assert (round(found["without"], 2), round(found["full_same"], 2)) == (without, full)
    assert min(found["full_batches"]) == batch


def test_weights_make_dense_and_sparse_more_alike():
    for each in RECORDED["ratios"]:
        assert 1 < each["full"] < each["fit"] < each["without"]
        assert all(fit > full for fit, full in zip(each["fit_batches"], each["full_batches"], strict=True))


def test_the_recorded_tables_and_the_page_are_up_to_date():
    def same(old, new, where=""):
        assert type(old) is type(new), where
        if isinstance(new, dict):
            assert old.keys() == new.keys(), where
            for name in new:
                same(old[name], new[name], f"{where}.{name}")
        elif isinstance(new, list):
            for i, (a, b) in enumerate(zip(old, new, strict=True)):
                same(a, b, f"{where}[{i}]")
        elif isinstance(new, float):
            assert old == pytest.approx(new, rel=1e-6), where
        else:
            assert old == new, where

    same(RECORDED, weight_prices.tables())
    page = (ROOT / "docs" / "economics.md").read_text(encoding="utf-8")
    for table in weight_prices.markdown(RECORDED).split("\n\n"):
        assert table.strip() in page
    sheet, driver = row("h100", 1, "8B"), row("h100", 1, "8B", "driver")
    gains = [
        100 * (row("h100", 1, "32B", memory)["full" if memory == "data sheet" else "fit"] - 1) for memory in MEMORY
    ]
    router = max(RECORDED["routers"], key=lambda each: each["counted_over_read"])
    text = " ".join(page.split())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{driver['without']:.2f} with the weights left out, {driver['fit']:.2f} with the batch that fits" in readme
    for sentence in (
        f"is {sheet['without']:.2f} times as cheap with the weights left out, {driver['fit']:.2f} times with the batch "
        f"that fits ({sheet['fit']:.2f} in 80 decimal GB), and {sheet['full_same']:.2f} times if all "
        f"{min(sheet['full_batches'])} sequences are given room",
        f"gains {gains[0]:.0f} to {gains[1]:.0f} %",
        f"over-counted up to {router['counted_over_read']:.2f} times, at a batch of {router['batch']};",
    ):
        assert sentence in text


def test_even_routers_use_the_experts_that_are_counted():
    """The simulation itself: with equal popularity it finds what the closed form says, and a skewed one fewer."""
    rng = np.random.default_rng(1)
    for batch in (1, 8, 64):
        even = weight_prices.read_experts(np.ones(128), 8, batch, rng)
        assert even == pytest.approx(128 * (1 - (1 - 8 / 128) ** batch), rel=0.02)
        assert weight_prices.read_experts(np.arange(1.0, 129) ** -0.8, 8, batch, rng) <= even
    most = max(each["counted_over_read"] for each in RECORDED["routers"])
    assert 1.15 < most < 1.25


def test_the_script_prints_and_writes(tmp_path, capsys):
    out = tmp_path / "sub" / "weights.json"
    weight_prices.main(["--json", "--out", str(out)])
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text(encoding="utf-8")) == RECORDED


def test_eight_devices_on_the_page_of_speed():
    """docs/results/speed.md against the recorded prediction, and that against the cost model of today."""
    recorded = pd.read_csv(ROOT / "docs" / "results" / "step_scaling.csv")
    fleet = recorded[recorded["panel"] == "devices"].set_index(["runner", "devices"])["predicted ms"]
    page = " ".join((ROOT / "docs" / "results" / "speed.md").read_text(encoding="utf-8").split())
    times = {runner: fleet[runner, 1] / fleet[runner, 8] for runner in ("dense", "sparse")}
    said = f"{times['dense']:.1f} times as quick as one with dense attention, {times['sparse']:.1f} times with sparse."
    assert said in page
    now = [
        1e3 / 8 * step_seconds(ModelConfig.named("8B"), Dense(), HARDWARE["h100"], contexts=[32_768] * 8, chips=chips)
        for chips in (1, 2, 4, 8)
    ]
    np.testing.assert_allclose(fleet["dense"], now, rtol=1e-5)
