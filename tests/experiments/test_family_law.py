"""The script that measures what the ledger family shows, from end to end on checkpoints that know nothing."""

import json
import sys

import family_law
import pytest
import train_family
from training.checkpoint import write_checkpoint
from training.decoder import random_arrays

from kinetics_jax.tasks import ledger

SIZES = "ledger-23k", "ledger-37k"


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A work folder with two sizes of two seeds, and a grid that takes seconds."""
    for name in SIZES:
        config = train_family.FAMILY[name].config()
        for seed in (0, 1):
            folder = tmp_path / "models" / train_family.member(name, seed)
            params = random_arrays(config, seed)
            write_checkpoint(folder, config, ledger.vocabulary(), ledger.EOS, ledger.UNK, params)

    monkeypatch.setattr(family_law, "BUDGETS", (32,))
    monkeypatch.setattr(family_law, "SCORED", (4, 2))
    monkeypatch.setattr(ledger, "MAX_OUTPUT", 20)
    return tmp_path


@pytest.mark.slow
def test_what_it_measures_of_models_that_know_nothing(work, monkeypatch, capsys):
    out = work / "law.json"
    monkeypatch.setattr(sys, "argv", ["family_law.py", "--work", str(work), "--json", str(out)])
    family_law.main()
    said = capsys.readouterr().out
    assert "ledger:\n  1 does not hold: sparse at least as accurate over 1.000 [1.000, 1.000] of the costs" in said
    assert "2 does not hold" in said
    assert "3 not found" in said
    document = json.loads(out.read_text())
    assert document["seeds"] == [0, 1]
    assert document["costs"] == {"hardware": "h100", "batch": 64, "kv_bytes": 4, "weight_bytes": 4}
    for task in ("ledger", "route"):
        rows = document[task]["configurations"]
        assert [(row["model"], row["N"]) for row in rows] == [(name, n) for name in SIZES for n in (1, 2, 1, 2)]
        assert all(row["accuracy"] == 0 and row["cost"] > row["flops"] > 0 for row in rows)
    assert len(document["ledger"]["majority"]) == 8
    assert document["route"]["majority"] == []
    assert len(list((work / "runs").glob("*/*/run.json"))) == 16


def test_seeds_without_a_size_are_refused(work):
    (work / "models" / "ledger-37k-s1" / "config.json").rename(work / "kept.json")
    folder = work / "models" / "ledger-37k-s1"
    folder.rename(work / "elsewhere")
    with pytest.raises(SystemExit, match="every seed needs the same sizes"):
        family_law.plan_of(work, quick=False, shipped=False, seeds=[0, 1])
    assert list(family_law.plan_of(work, quick=False, shipped=False, seeds=[0]).models) == [0]
    with pytest.raises(SystemExit, match="trained are none"):
        family_law.plan_of(work / "nowhere", quick=True, shipped=False, seeds=[0])


def test_names():
    assert family_law.size_of("ledger-23k-s3") == "ledger-23k"
    assert family_law.size_of("ledger-23k") == "ledger-23k"
