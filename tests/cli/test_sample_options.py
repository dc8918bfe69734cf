"""`kinetics sample` and `grade` with own graders, multiple choice and prompts: what they take, keep and refuse."""

import json

import pytest
from command_line import kinetics

from kinetics_jax.assets import builtin_models
from kinetics_jax.runs.folder import read_run

MODEL = builtin_models()[0]
SOURCE = """
def even(text, answer, problem):
    if problem["level"] == 2:
        raise KeyError("level")
    return len(text) % 2 == 0

def judge(text, answer):
    return len(text)
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a grader and problems."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(SOURCE)
    rows = [{"question": f"start {i} at n1", "level": i} for i in (1, 2)]
    (tmp_path / "free.jsonl").write_text("\n".join(map(json.dumps, rows)))
    rows = [
        {"question": "n1", "options": ["x", "y"], "answer": "B"},
        {"question": "n2", "options": ["x", "y"], "answer": "A"},
    ]
    (tmp_path / "choices.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def sample(*flags, code=0):
    return kinetics("sample", MODEL, "--n", 1, "--max-tokens", 4, "--out", "run", *flags, code=code).stderr


@pytest.mark.slow
def test_a_run_by_an_own_grader(here):
    by = ("--problems", "free.jsonl", "--template", "bare", "--grader", "mine:even")  # no known answers
    said = sample(*by, "--score", "mine.py:judge")
    assert "grader mine:even, problem 'free-1': raises KeyError: 'level' in line 4 of mine.py" in said
    run = read_run("run")
    assert [record["correct"] is None for record in run.samples] == [
        record["problem"] == "free-1" for record in run.samples
    ]
    assert all(record["score"] == len(record["text"]) for record in run.samples)
    assert run.header["grader"]["function"] == "mine:even"
    assert run.problems["free-0"]["fields"] == {"level": 1}
    assert sample(*by, "--score", "mine.py:judge")  # goes on
    said = sample(*by, code=2)
    assert 'score: {"function": "mine.py:judge"' in said
    assert "with the grader and score that the folder has by now" in said
    (here / "mine.py").write_text(SOURCE + "\n")
    assert "grader.fingerprint: " in sample(*by, "--score", "mine.py:judge", code=2)
    said = kinetics("grade", "run", "--grader", "mine.py:even", code=2).stderr
    assert "run: holds grades by your own grader mine:even, which would be replaced; --overwrite replaces them" in said
    done = kinetics("grade", "run", "--grader", "mine.py:even", "--score", "mine.py:judge", "--overwrite")
    assert "2 samples" in done.stdout


@pytest.mark.slow
def test_a_run_of_multiple_choice(here):
    asked = ("--problems", "choices.jsonl", "--choices", "--shuffle-choices", 3, "--instruction", "Choose.")
    sample(*asked)
    run = read_run("run")
    assert run.header["grader"] == {"function": "choice"}
    assert run.header["shuffled_choices"] == 3
    assert run.header["instruction"] == "Choose."
    for problem in run.problems.values():
        first, second = problem["choices"]
        assert problem["prompt"] == f"{problem['question']}\n\nA) {first}\nB) {second}\n\nChoose.\n\n"
    assert "shuffled_choices: 3 stored, 4 asked for" in sample(*asked[:4], 4, *asked[5:], code=2)
    assert 'instruction: "Choose." stored, null asked for' in sample(*asked[:5], code=2)
    assert kinetics("grade", "run").stdout.endswith("0 grades changed\n")  # by letters again


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("--grader", "mine:gone"), "grader mine:gone cannot be loaded: there is no 'gone' in it"),
        (("--grader", "mine"), "grader 'mine' is not known (known: math, choice; your own: module:function"),
        (("--score", "nothing:f"), "nothing:f: no module 'nothing' with a source file is found"),
        (("--grader-seconds", 0), "--grader-seconds must be in 0 … 86400, got 0.0"),
        (("--grader-seconds", 5), "--grader-seconds goes with a function of your own"),
        (("--choices",), "--choices goes with --problems FILE"),
        (("--shuffle-choices", 1), "--choice-columns and --shuffle-choices go with --choices"),
        (("--problems", "choices.jsonl", "--choices", "--shuffle-choices", -1), "--shuffle-choices must be at least 0"),
        (("--system", "x"), "a system text stands in a chat template only, and prompts are bare"),
        (("--instruction", "x"), "bare prompts are the question alone"),
        (("--prompt-template", "none.j2"), "none.j2: no such file"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sampled(here, flags, why):
    assert why in sample(*flags, code=2)
    assert not (here / "run").exists()


def test_flags_of_grade():
    assert (
        "--score scores whole samples; leave it out with --caps"
        in kinetics("grade", "run", "--caps", 4, "--score", "mine:judge", code=2).stderr
    )
