"""The second research policy: it carries its choice, costs what block top-k costs, and stands on a frontier."""

import json
import runpy

import pytest
from command_line import kinetics
from installed_example import installed_example
from paths import ROOT

from kinetics_jax.attention.policies.registry import POLICIES

EXAMPLE = ROOT / "examples" / "research_policy.py"
SAMPLE = ("--task", "builtin", "--limit", "2", "--n", "2", "--slots", "4", "--max-tokens", "24")
OPTIONS = "budget=16,page_size=4"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    yield from installed_example(EXAMPLE, tmp_path / "site", monkeypatch)


def test_it_is_short_and_uses_public_names_only():
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 40
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert imports == ["import dataclasses", "import jax.numpy as jnp", "import kinetics_jax as kj"]


@pytest.mark.slow
def test_it_runs(capsys):
    try:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    finally:
        POLICIES.pop("sticky_topk", None)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":budget")[0] for line in lines] == ["sticky_topk"] * 3
    assert all(0 <= float(line.rpartition(" ")[2]) <= 1 for line in lines)


@pytest.mark.slow
def test_sampled_by_entry_point_and_priced_by_formula_and_by_count_alike(installed, tmp_path):
    sticky, plain = (f"{kind}:{OPTIONS}" for kind in ("sticky_topk", "block_topk"))
    kinetics("sample", "chase-131k", *SAMPLE, "--attention", f"{sticky},stick=2", "--out", tmp_path / "sticky")
    kinetics("sample", "chase-131k", *SAMPLE, "--attention", plain, "--out", tmp_path / "plain")
    spelled = json.loads((tmp_path / "sticky" / "run.json").read_text())["policy"]
    assert spelled == f"{sticky},stick=2"
    costs = {}
    for source in ("formula", "counts"):
        ended = kinetics("frontier", tmp_path / "sticky", tmp_path / "plain", "--costs-from", source, "--json")
        costs[source] = {row["attention"]: row["cost"] for row in json.loads(ended.stdout)}
    assert set(costs["formula"]) == set(costs["counts"]) == {spelled, plain}
    for name, cost in costs["formula"].items():
        assert costs["counts"][name] == pytest.approx(cost, rel=1e-6)
