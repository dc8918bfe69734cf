"""The coverage experiment: what its committed result promises, that the page shows it, and a small run of it."""

import json

import numpy as np
import pandas as pd
import pytest
from interval_cases.populations import ALIKE, EASY, POPULATIONS, beta, epoch_runs, losing, those
from interval_cases.tables import AIM, TABLES, markdown, read, show, write
from interval_coverage import accuracy_cells, law_cells, main, noninferiority_cells, pair_cells
from paths import ROOT, SHARED

RESULT = ROOT / "experiments/results/interval_coverage.json"
PAGE = ROOT / "docs/intervals.md"
EPOCH = SHARED / "public/epoch_gpqa_otis/samples.csv.gz"
SMALL = {"repetitions": 200, "draws": 200, "offset repetitions": 0, "truth": 50_000, "seed": 0}


@pytest.fixture(scope="module")
def committed():
    return {name: pd.DataFrame(rows) for name, rows in read(RESULT).items()}


def test_the_page_shows_the_committed_result():
    page = PAGE.read_text()
    tables = markdown(read(RESULT))
    assert set(tables) == set(TABLES)
    for name, table in tables.items():
        assert table in page, f"the table of {name} is another: experiments/interval_coverage.py --tables {RESULT}"


def test_accuracies_hold_what_the_page_promises(committed):
    cells = committed["accuracies"]
    assert set(cells["population"]) == set(POPULATIONS)
    told = (
        (cells["population"] == "10 % fail outright, the rest 0.9")
        & (cells["P"] == 15)
        & (cells["n"] == 64)
        & (cells["k"] == 1)
    )
    assert cells["held"][told].item() == 0.863  # said on the page
    for table in (cells[~told], committed["Epoch runs"]):
        assert table["truth"].between(0.02, 0.98).all()
        assert (table["P"] >= 10).all()
        assert table["held"].min() >= AIM
        assert table["bootstrap held"].min() < 0.5
    ordinary = pd.concat([cells[~cells["population"].isin(ALIKE)], committed["Epoch runs"]])
    assert ordinary["ratio"][ordinary["bootstrap held"] >= AIM].max() <= 1.3


def test_differences_hold_what_the_page_promises(committed):
    for name in ("differences", "Epoch pairs"):
        cells = committed[name]
        told = (cells["population"] == "5 % lost, Beta(12, 1)") & (cells["P"] == 30) & (cells.get("n") == 32)
        assert cells["held"][~told].min() >= AIM
        assert cells["held"][told].min() == pytest.approx(0.896) if told.any() else name == "Epoch pairs"
    test = committed["non-inferiority"]
    solved = test[test["population"].str.contains("solve")]  # one side, or both, solve all
    assert len(solved) == 4 * 3 * 4
    assert solved["error"].max() <= 0.035
    assert solved["bootstrap error"].max() > 0.5
    assert solved["power"][(solved["P"] == 100) & (solved["fail outright"] >= 0.05)].min() > 0.8
    assert test["error"].max() <= 0.05  # wherever both lose something


def test_power_laws_hold_what_the_page_promises(committed):
    laws = committed["power laws"]
    assert laws[["exponent", "scale"]][~laws["offset"]].min(axis=None) >= AIM
    assert laws[["exponent", "scale"]][laws["offset"]].min(axis=None) >= 0.9  # 40 repetitions, ± 3.4 %
    assert set(laws["points"]) == {4, 6, 8, 12, 20, 24}


def test_a_small_run_of_every_kind(tmp_path):
    cells = list(accuracy_cells({"mixed": beta(1, 1), "never": those(np.zeros(3))}, (10,), ((8, 1), (8, 8)), SMALL))
    assert [row["k"] for row in cells] == [1, 8]  # what is never solved is left out
    assert cells[0]["truth"] == pytest.approx(0.5, abs=0.005)
    pairs = pair_cells({"lost": losing(0.05, beta(1, 1))}, (10,), (8,), SMALL)
    assert pairs[0]["truth"] == pytest.approx(-0.025, abs=0.003)
    for row in (*cells, *pairs):
        assert 0.9 <= row["held"] <= 1
        assert row["ratio"] == row["width"] / row["bootstrap width"]
    test = noninferiority_cells({"both solve all": EASY["both solve all"]}, (30,), SMALL)
    assert {row["bootstrap power"] for row in test} == {1.0}
    assert max(row["error"] for row in test) == 0 < min(row["bootstrap error"] for row in test[:2])
    tables = {
        "accuracies": cells,
        "differences": pairs,
        "non-inferiority": test,
        "power laws": law_cells(SMALL | {"repetitions": 20}),
    }
    write(tmp_path / "out.json", SMALL, tables)
    assert json.loads((tmp_path / "out.json").read_text())["nominal"] == 0.95
    assert list(read(tmp_path / "out.json")) == list(tables)
    for name in tables:
        assert name in show(tables)


def test_a_file_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", ["interval_coverage.py", "--epoch", str(tmp_path / "none.csv")])
    with pytest.raises(SystemExit, match=r"none\.csv: no such file"):
        main()
    other = tmp_path / "other.csv"
    other.write_text("task,run,problem,correct\nelse,a,b,1\n")
    with pytest.raises(SystemExit, match=r"other\.csv: no run of"):
        epoch_runs(other)


@pytest.mark.skipif(not EPOCH.exists(), reason=f"{EPOCH} does not exist")
def test_real_runs_are_whole():
    runs = epoch_runs(EPOCH)
    assert len(runs) == 88
    assert {len(rates) for rates in runs.values()} == {45}
