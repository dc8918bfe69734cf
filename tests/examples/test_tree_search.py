"""The example of a tree search runs, and its verifier reads hops."""

import re
import runpy

import pytest
from paths import ROOT

EXAMPLE = ROOT / "examples" / "tree_search.py"


def test_its_verifier():
    obeys = runpy.run_path(str(EXAMPLE))["obeys"]
    question = "n1:*2+1 n1>n2 n2:+5 n2>end n3>n1 n3:+5 start 4 at n1"
    text = "*2+1 9 @n1 n2 +5 14 @n2 end \\boxed{14}"
    assert obeys(question, text)
    assert all(obeys(question, text[:end]) for end in (0, 10, 14, 23))
    for wrong in (
        text.replace("9", "8"),
        text.replace("@n2", "@n3"),
        text.replace("{14}", "{15}"),
        "*2+1 9 @n1 end \\boxed{9}",
        "\\boxed{4}",
    ):
        assert not obeys(question, wrong)


@pytest.mark.slow
def test_it_runs(capsys):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    whole, tree = (
        re.fullmatch(r"(?:whole texts|tree search): (\d+) of 12 solved, (\d+) tokens", line).groups()
        for line in capsys.readouterr().out.splitlines()
    )
    assert int(tree[0]) >= int(whole[0])
    assert int(tree[1]) < int(whole[1])
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 60
