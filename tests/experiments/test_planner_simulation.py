"""What the planner says of how sure it is, on simulated samples whose truth is known: recorded, and a few anew."""

import json

import planner_simulation
import pytest
from paths import ROOT

RECORDED = json.loads((ROOT / "experiments/results/planner_simulation.json").read_text())


@pytest.mark.parametrize(
    "row", RECORDED["rows"], ids=lambda row: f"{row['population']}-{row['problems']}-{row['limit']:g}"
)
def test_what_is_recorded_holds(row):
    slack = 3 * (0.05 * 0.95 / RECORDED["repetitions"]) ** 0.5
    assert row["set"] >= 0.95 - slack
    assert row["interval"] >= 0.95 - slack
    assert row["run"] >= 0.95 - slack
    assert row["size"] <= row["of"]
    assert abs(row["expected"]) < row["reported"] + 0.03  # what is expected is not further off than what was measured
    assert row["regret_said"] < row["regret"] + 0.07


def test_what_is_said_to_be_sure_is_so():
    alike = [row for row in RECORDED["rows"] if row["population"] == "alike"]  # there every one is wrong
    others = [row for row in RECORDED["rows"] if row["population"] != "alike"]
    assert sum(row["surely"] for row in others) > 0
    assert sum(row["wrong"] for row in others) <= 0.05 * sum(row["surely"] for row in others)
    assert sum(row["wrong"] for row in alike) <= 0.05 * RECORDED["repetitions"] * len(alike)
    for bin_ in RECORDED["calibration"]:
        if bin_["problems"] == 96 and bin_["choices"] >= 50:
            assert abs(bin_["said"] - bin_["were"]) < 0.2


def test_the_page_has_what_is_recorded():
    page = (ROOT / "docs/results/speed.md").read_text()
    assert planner_simulation.markdown(RECORDED) in page
    asked = 3 * RECORDED["repetitions"] * len(RECORDED["rows"]) // 3
    assert f"{RECORDED['surely']} of {asked:,} runners-up" in page
    assert f"{RECORDED['wrong']} of them wrongly" in page


@pytest.mark.slow
def test_a_few_repetitions_anew():
    rows = planner_simulation.simulate(["mixed", "alike"], [10, 30], 6)
    assert len(rows) == 2 * 2 * 6 * 3
    assert rows["set"].mean() >= 0.9
    assert rows["interval"].mean() >= 0.85
    assert rows["wrong"].sum() <= 1
    table = planner_simulation.summary(rows)
    assert list(table["problems"]) == [10] * 3 + [30] * 3 + [10] * 3 + [30] * 3
    assert planner_simulation.calibration(rows)["choices"].sum() == len(rows)
