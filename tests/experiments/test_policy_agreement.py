"""experiments/policy_agreement.py: a row for every kind of policy, of samples that the policy drew."""

import json
import sys

import policy_agreement
import pytest
from paths import ROOT
from selection import compared, summary
from tiny import tiny_config, tiny_prompts, write_checkpoint

import kinetics_jax as kj
from kinetics_jax.attention.policies.registry import POLICIES


def test_every_kind_is_compared():
    kinds = {policy.kind for policy in compared.of_every_kind(256, 1024)}
    assert kinds == set(POLICIES) - {"dense", "gated_block_topk"}  # a gate is of one model: its file is asked for
    names = [summary.rule_and_budget(str(policy))[0] for policy in compared.of_every_kind(256, 1024)]
    assert len(set(names)) == len(names)
    assert "top p pages, p 0.9" in names


@pytest.mark.slow
def test_a_row_is_of_the_policys_own_samples(tmp_path):
    config = tiny_config(num_hidden_layers=2)
    lm = kj.load(write_checkpoint(tmp_path / "tiny", config, seed=8), dtype="float32")
    prompts = [prompt[:40] for prompt in tiny_prompts(2, first=40)]
    sparse = kj.UnbiasedBlockTopK(budget=16, page_size=4, dense_layers=())
    rows = [policy_agreement.row_of(lm, policy, prompts, 12, 0) for policy in (kj.Dense(), sparse)]
    assert rows[0]["agreement"] == pytest.approx(1, abs=1e-5)
    assert rows[0]["agreement_p5"] == pytest.approx(1, abs=1e-5)
    assert rows[0]["read"] == pytest.approx(1)
    assert 0 < rows[1]["agreement_p5"] <= rows[1]["agreement"] < 0.999
    assert 0.2 < rows[1]["read"] < 0.5  # 13 to 16 of 41 to 52 tokens
    lines = policy_agreement.markdown(rows[::-1]).splitlines()
    assert lines[2].startswith("| `dense` | 100.0 | 1.000 | 1.000 | 100.0 |")
    assert str(sparse) in lines[3]


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["policy_agreement.py", "--model", str(tmp_path / "none.gguf")])
    with pytest.raises(SystemExit, match="2"):
        policy_agreement.main()
    assert capsys.readouterr().err.count("\n") == 1


def test_the_page_shows_what_is_recorded():
    recorded = json.loads(
        (ROOT / "experiments" / "results" / "cpu" / "policy_agreement.json").read_text(encoding="utf-8")
    )
    assert policy_agreement.markdown(recorded["rows"]) in (ROOT / "docs" / "attention.md").read_text(encoding="utf-8")
    kinds = {row["attention"].partition(":")[0] for row in recorded["rows"]}
    assert set(POLICIES) - kinds == {"gated_block_topk"}  # there is no trained gate to measure
