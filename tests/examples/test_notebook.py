"""The notebook's cells run in order, in a folder of their own, and end with a frontier and a figure."""

import json

import pytest
from paths import ROOT

from kinetics_jax.attention.policies import registry

NOTEBOOK = ROOT / "examples" / "own_policy_on_the_frontier.ipynb"


def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_it_is_stored_without_outputs():
    code = [cell for cell in cells() if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.slow
def test_its_cells_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "notebook"}
    try:
        for cell in cells():
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    finally:
        registry.POLICIES.pop("half_recent", None)
    table = names["table"]
    assert set(table["attention"]) == {str(policy) for policy in names["policies"].values()}
    assert table["accuracy"].between(0, 1).all()
    own = table[table["attention"].str.startswith("half_recent")]
    dense = table[table["attention"] == "dense"]
    assert own["cost"].min() < dense["cost"].min()
    assert names["figure"].axes
    assert (tmp_path / "notebook-runs" / "own" / "run.json").exists()
