"""The example's policy, installed as its docstring says: by a distribution on the path that declares an entry point."""

import json
import re
import runpy
import sys

import numpy as np
import pytest
from command_line import kinetics
from installed_example import installed_example
from paths import ROOT

import kinetics_jax as kj
from kinetics_jax.attention.policies.registry import POLICIES

EXAMPLE = ROOT / "examples" / "own_policy.py"
POLICY = "fading_topk:budget=16,fade=0.5"
SAMPLE = ("--task", "builtin", "--limit", "2", "--n", "2", "--slots", "4", "--max-tokens", "24")


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
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    dense, fading = (int(line.rpartition(": ")[2].split()[0]) for line in capsys.readouterr().out.splitlines())
    assert 0 < fading < dense / 2


@pytest.mark.slow
def test_the_formula_of_the_page_is_what_its_samples_count():
    """docs/attention.md shows the policy and the formula of its cost."""
    example, page = runpy.run_path(str(EXAMPLE)), (ROOT / "docs" / "attention.md").read_text()
    (formula,) = re.findall(r"```python\n(    def step_counts.*?)```", page, re.DOTALL)
    (shown,) = re.findall(r"```python\n(@dataclasses.*?)```", page, re.DOTALL)
    assert shown in EXAMPLE.read_text()
    names = {**example, "np": np, "base": example["FadingTopK"]}
    head = "@dataclasses.dataclass(frozen=True)\nclass Priced(base):\n    kind, price = 'fading_priced', 'formula'\n"
    exec(head + formula, names)
    lm, policy = kj.load("chase-131k"), names["Priced"](budget=16)
    for sample in lm.generate(["n7>n2 n3:+5"], n=2, attention=policy, sampling=kj.Sampling(max_tokens=50)):
        prompt, steps = np.float64(sample.prompt_tokens), np.float64(len(sample.output_tokens) - 1)
        counts = policy.counts(prompt, steps, lm.config.num_layers)
        assert sample.attended_tokens == lm.config.num_kv_heads * (counts.forced.total + counts.chosen.total)
        assert sample.summary_vectors == lm.config.num_kv_heads * counts.vectors.total > 0 or steps < 16


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
    declared = json.loads(kinetics("doctor", "--json").stdout)["policies_of_packages"]
    assert declared == {"fading_topk": "own_policy:FadingTopK of the package own-policy"}
    report = tmp_path / "report.html"
    said = kinetics("frontier", tmp_path / "own", tmp_path / "window", "--report", report).stderr
    assert all("attention and search cost what the samples counted" in text for text in (said, report.read_text()))
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
