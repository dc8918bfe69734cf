"""The example of budget forcing runs, and forced answers are worth something."""

import re
import runpy

import pytest
from paths import ROOT

EXAMPLE = ROOT / "examples" / "budget_forcing.py"


@pytest.mark.slow
def test_it_runs(capsys):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    head, *rows, again, agreed = capsys.readouterr().out.splitlines()
    assert head.split() == ["budget", "cut", "short", "made", "to", "answer"]
    budgets, cut, made = zip(*(map(int, row.split()) for row in rows), strict=True)
    assert budgets == (32, 48, 64)
    assert all(more >= fewer for fewer, more in zip(cut, made, strict=True))
    assert sum(made) > sum(cut)
    assert list(cut) == sorted(cut)  # the same draws, cut later
    right, of = map(int, re.fullmatch(r"looked again: (\d+) of (\d+) right", again).groups())
    trusted, both = map(int, re.fullmatch(r"both answers agree: (\d+) of (\d+) right", agreed).groups())
    assert of == 24
    assert trusted / both > right / of
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 60
