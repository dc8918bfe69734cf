"""The example runs as its docstring says, in a folder of its own."""

import re
import runpy
import sys

import pytest
from paths import ROOT

EXAMPLE = ROOT / "examples" / "planning.py"


def test_it_is_short():
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 60
    assert not [line for line in lines if line.startswith(("import", "from")) and "._" in line]


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(tmp_path / "runs")])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    chosen = {rule: int(n) for rule, n in re.findall(r"^(\w+): 0\.9 by .* N = (\d+):", said, re.MULTILINE)}
    assert chosen["majority"] > chosen["pass"]  # without somebody who knows it takes more samples
    assert (tmp_path / "runs" / "small" / "run.json").exists()
