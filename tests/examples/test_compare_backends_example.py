"""The example's backend, in a file of its own: found, chosen for its op, compared with the reference."""

import runpy
import sys

import pytest
from kinetics_kernels import kernel_files
from paths import ROOT

EXAMPLE = ROOT / "examples" / "compare_backends.py"


def test_it_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 60


@pytest.mark.slow
def test_it_runs(monkeypatch, capsys):
    monkeypatch.setattr(kernel_files, "_packages", [*kernel_files._packages])
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    for name in [name for name in sys.modules if name.split(".")[0] == "my_kernels"]:
        del sys.modules[name]
    said = capsys.readouterr().out
    assert "found: paged_decode=halves" in said
    texts = [
        line.partition(": ")[2] for line in said.splitlines() if line.startswith(("xla: ", "paged_decode=halves: "))
    ]
    assert len(texts) == 2
    assert texts[0] == texts[1]
    assert "| append_kv xla, select_pages xla, paged_decode halves |" in said
    assert "| paged_decode: cases | 2 of 2 |" in said
    assert "| beyond the bounds | 0 |" in said
