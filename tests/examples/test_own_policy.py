"""The example's policy, installed as its docstring says: by a distribution on the path that declares an entry point."""

import importlib
import json
import runpy
import sys

import pytest
from command_line import kinetics
from paths import ROOT

from kinetics_jax.attention.policies.registry import POLICIES

EXAMPLE = ROOT / "examples" / "own_policy.py"
POLICY = "fading_topk:budget=16,fade=0.5"
SAMPLE = ("--task", "builtin", "--limit", "2", "--n", "2", "--slots", "4", "--max-tokens", "24")


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """What pip leaves of the example's folder, its lines of pyproject.toml taken from the docstring."""
    text = EXAMPLE.read_text()
    entry = next(line.strip() for line in text.splitlines() if line.strip().startswith("fading_topk = "))
    site = tmp_path / "site"
    info = site / "own_policy-0.1.dist-info"
    info.mkdir(parents=True)
    (site / "own_policy.py").write_text(text)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-policy\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[kinetics_jax.policies]\n{entry}\n".replace('"', ""))
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    yield
    POLICIES.pop("fading_topk", None)
    sys.modules.pop("own_policy", None)


def test_it_is_short_and_uses_public_names_only():
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 40
    imports = [line for line in lines if line.startswith(("import ", "from "))]
    assert imports == ["import dataclasses", "import jax.numpy as jnp", "import kinetics_jax as kj"]


@pytest.mark.slow
def test_it_runs(capsys):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    dense, fading = (float(line.rpartition(": ")[2].split()[0]) for line in capsys.readouterr().out.splitlines())
    assert 0 < fading < dense


@pytest.mark.slow
def test_sampled_priced_by_count_and_on_a_frontier_beside_a_built_in_one(installed, tmp_path):
    runs = {"own": POLICY, "window": "sliding_window:budget=16"}
    for name, policy in runs.items():
        kinetics("sample", "chase-131k", *SAMPLE, "--attention", policy, "--out", tmp_path / name)
    header = json.loads((tmp_path / "own" / "run.json").read_text())
    records = [json.loads(line) for line in (tmp_path / "own" / "samples.jsonl").read_text().splitlines()]
    assert (header["policy"], header["schema"]) == (POLICY, 3)
    assert all(record["attended_tokens"] > 0 and record["summary_vectors"] > 0 for record in records)

    ended = kinetics("frontier", tmp_path / "own", tmp_path / "window", "--json")
    assert f"{POLICY}: attention and search cost what the samples counted" in ended.stderr
    rows = json.loads(ended.stdout)
    assert {(row["attention"], row["costs_from"]) for row in rows} == {
        (POLICY, "counts"),
        ("sliding_window:budget=16", "formula"),
    }
    assert all(row["cost"] > 0 for row in rows)
    plan = json.loads(kinetics("plan", tmp_path / "own", "--seconds", "100", "--json").stdout)
    assert plan["costs_from"] == {f"chase-131k {POLICY}": "counts"}
    for command in (
        ("frontier", tmp_path / "own", "--costs-from", "formula"),
        ("cost", "--model", "8B", "--output", "100", "--attention", POLICY),
    ):
        assert f"{POLICY} has no formula of its cost" in kinetics(*command, code=2).stderr


@pytest.mark.slow
def test_uninstalled_its_run_names_the_kind_and_the_cure(installed, tmp_path, monkeypatch):
    run = tmp_path / "own"
    kinetics("sample", "chase-131k", *SAMPLE, "--attention", POLICY, "--out", run)
    POLICIES.pop("fading_topk")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry != str(tmp_path / "site")])
    for command in (
        ("frontier", run),
        ("plan", run, "--seconds", "1"),
        ("frontier", run, "--report", tmp_path / "a.html"),
    ):
        said = kinetics(*command, code=2).stderr
        assert "'fading_topk' is not known (known: dense, " in said
        assert "by an entry point 'kinetics_jax.policies' of an installed package" in said
        assert "Traceback" not in said
