"""experiments/reference_defects.py: its table against published numbers, the recorded one, and the documentation."""

import json
import re

import numpy as np
import pytest
import reference_defects
from defects import choices
from defects.rows import BEHAVIOURS, DEFECTS
from paths import ROOT


@pytest.fixture(scope="module")
def table():
    return reference_defects.defect_table()


def test_every_defect_has_a_number_or_a_test(table):
    assert list(DEFECTS) == list(range(1, 16))
    covered = {row["defect"] for row in table["rows"]} | {int(what.partition(":")[0]) for what in BEHAVIOURS}
    assert covered == set(DEFECTS)
    for tests in BEHAVIOURS.values():
        for test in tests:
            path, _, name = test.partition("::")
            assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), test


def test_published_numbers_are_reproduced(table):
    """Golden values of the published code, and the published forms put right."""
    published = [row["published"] for row in table["rows"]]
    right = [row["right"] for row in table["rows"]]
    for golden in (1694.4701, 11830.456, 2320.4534, 20.498386, 63871.459):
        assert golden in published
    for golden in (1645.1998, 56.091243):
        assert golden in right
    memory = [row["published"] for row in table["rows"] if row["quantity"].startswith("memory")]
    assert [round(value, 2) for value in memory] == [-1.93]
    fits = next(row for row in table["rows"] if "the fits at x = 1000" in row["case"])
    assert fits["published"] == pytest.approx(1000, rel=0.05)  # the published fits agree with the published formula


def test_published_labels_stand_eleven_costs_too_far_right(table):
    """45 over 20 in steps of a 99th of the factor 2000: eleven costs afford nothing, and eleven steps are 2.33."""
    rows = {row["quantity"]: row for row in table["rows"] if row["defect"] == 11 and "labels" in row["case"]}
    assert rows["costs that a change of models stands too far right"]["published"] == 11
    assert rows["cost at which models change, over where they do"]["ratio"] == pytest.approx(2000 ** (11 / 99))
    assert "2.33" in DEFECTS[11][0]
    assert rows["costs with their own label, %"]["published"] < 100


def test_the_recorded_table_and_the_page_are_up_to_date(table):
    recorded = json.loads(reference_defects.RESULTS.read_text(encoding="utf-8"))
    assert recorded["behaviours"] == table["behaviours"]
    assert recorded["defects"] == {str(number): defect for number, defect in table["defects"].items()}
    for old, new in zip(recorded["rows"], table["rows"], strict=True):
        numbers = ("published", "right", "ratio")
        assert {k: v for k, v in old.items() if k not in numbers} == {k: v for k, v in new.items() if k not in numbers}
        assert (old["ratio"] is None) == (new["ratio"] is None) == (new["right"] == 0)
        np.testing.assert_allclose([old[k] or 0 for k in numbers], [new[k] or 0 for k in numbers], rtol=1e-6)
    page = (ROOT / "docs" / "economics.md").read_text(encoding="utf-8")
    assert reference_defects.markdown(recorded) in page
    for wrong, right in DEFECTS.values():
        assert f"| {wrong} | {right} |" in page
    for tests in BEHAVIOURS.values():
        assert all(f"`{test}`" in page for test in tests)


def test_the_synthetic_set_is_what_it_says():
    rates = choices.solve_rates()
    assert rates.shape == (6, 30)
    np.testing.assert_allclose(100 * rates.mean(axis=1), list(choices.AIME24.values()), rtol=1e-9)
    assert (np.diff(rates, axis=0) > 0).all()


def test_the_script_prints_and_writes(tmp_path, capsys, table):
    out = tmp_path / "sub" / "table.json"
    reference_defects.main(["--json", "--out", str(out)])
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads(out.read_text(encoding="utf-8"))
    assert [row["ratio"] for row in json.loads(printed)["rows"]] == [row["ratio"] for row in table["rows"]]
    reference_defects.main(["--out", str(out)])
    printed = capsys.readouterr().out
    assert [int(n) for n in re.findall(r"^(\d+)\. ", printed, re.MULTILINE)] == list(DEFECTS)
    reference_defects.main(["--markdown", "--out", str(out)])
    assert capsys.readouterr().out == reference_defects.markdown(table)
