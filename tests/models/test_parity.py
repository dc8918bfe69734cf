"""The same logits as transformers: against committed goldens, and live where torch is installed."""

import json

import numpy as np
import pytest
from paths import ROOT
from tiny import PARITY_CASES, tiny_config, write_checkpoint

import kinetics_jax as kj

GOLDEN = np.load(ROOT / "tests" / "golden" / "logits.npz")


def relative_error(ours, theirs) -> float:
    """Largest difference over the largest magnitude."""
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


@pytest.mark.slow
@pytest.mark.parametrize("case", PARITY_CASES)
def test_logits_match_committed_goldens(case, tmp_path):
    config = tiny_config(**PARITY_CASES[case])
    lm = kj.load(write_checkpoint(tmp_path, config, seed=7), dtype="float32")
    tokens = np.random.default_rng(1).integers(0, config["vocab_size"], GOLDEN[case].shape[:2])
    assert relative_error(lm.logits(tokens), GOLDEN[case]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("case", PARITY_CASES)
def test_logits_match_transformers_live(case, shards, tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = tiny_config(**PARITY_CASES[case])
    write_checkpoint(tmp_path, config, seed=11, shards=shards)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    tokens = np.random.default_rng(2).integers(0, config["vocab_size"], (3, 70))
    with torch.no_grad():
        expected = theirs(torch.tensor(tokens)).logits.numpy()
    assert relative_error(kj.load(tmp_path, dtype="float32").logits(tokens), expected) < 1e-5
    # What transformers itself writes back (its config spelling, its shards) loads to the same logits.
    theirs.save_pretrained(tmp_path / "saved", max_shard_size="20KB")
    assert "rope_parameters" in json.loads((tmp_path / "saved" / "config.json").read_text())
    assert relative_error(kj.load(tmp_path / "saved", dtype="float32").logits(tokens), expected) < 1e-5
