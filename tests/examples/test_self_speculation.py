"""The example of self-speculation, run as its docstring says."""

import re
import runpy
import sys

import pytest
from paths import ROOT

from kinetics_jax.assets import builtin_models

EXAMPLE = ROOT / "examples" / "self_speculation.py"


@pytest.mark.slow
def test_it_is_lossless_and_says_what_it_gained(capsys, monkeypatch):
    assert len(EXAMPLE.read_text().splitlines()) <= 60
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), builtin_models()[0]])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    printed = capsys.readouterr().out
    assert "in 8 of 8 samples" in printed
    assert 1 < float(re.findall(r"gives ([0-9.]+) tokens", printed)[0]) < 4
    agreement, tail = map(float, re.findall(r"agreement of .*: ([0-9.]+), 5th percentile ([0-9.]+)", printed)[0])
    assert 0 <= tail <= 1  # skewed: either may be the smaller
    assert 0 < agreement < 1
    assert 30 < float(re.findall(r"([0-9]+)% of the cost", printed)[0]) < 200
