"""The example of an own grader runs and tells what it promises."""

import re
import runpy

import pytest
from paths import ROOT

EXAMPLE = ROOT / "examples" / "own_grader.py"


def test_what_its_functions_say():
    names = runpy.run_path(str(EXAMPLE))
    question = {"question": "n1:*2+1 n1>n2 n2:+5 n2>end start 4 at n1"}
    text = "*2+1 9 @n1 n2 +5 14 @n2 end \\boxed{14}"
    assert names["grade"](text, "14") == {"correct": True, "answer": "14"}
    assert names["grade"](text.replace("{14}", "{15}"), "15") == {"correct": False, "answer": "15"}
    assert names["grade"]("", "14") == {"correct": False, "answer": None}
    assert names["obeys"](text, "", question) == 1
    assert names["obeys"](text.replace("9", "8"), "", question) == 0  # one wrong value makes two hops wrong


@pytest.mark.slow
def test_it_runs(capsys):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "graded by own_grader.py:grade, scored by own_grader.py:obeys"
    told = [re.fullmatch(r"chase-\d+: (\d) of 4 right; best score (\S+) is (True|False)", line) for line in lines]
    assert len(told) == 6
    assert all(told)
    assert sum(match[3] == "True" for match in told) > sum(int(match[1]) for match in told) / 4
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 60
