"""Graders and verifiers of the user's own: what they return, and all that can go wrong in them."""

import functools
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import own
import pytest

from kinetics_jax.tasks.graders import Grading, grading, open_grader
from kinetics_jax.tasks.grading import Grade
from kinetics_jax.tasks.math_grading import GradingError
from kinetics_jax.tasks.own_functions import FunctionError, OwnGrader, OwnScore, own_function

OWN = Path(__file__).with_name("own.py")
PROBLEM = {"id": "p", "scale": 4, "unit": "cm"}


def running(group):
    """The processes of a group that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, of = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended meanwhile
            continue
        found += [path.parent.name] if int(of) == group and state != "Z" else []
    return found


def ends(group):
    """Whether all processes of a group end within a while."""
    deadline = time.monotonic() + 20
    while running(group) and time.monotonic() < deadline:
        time.sleep(0.02)
    return running(group) == []


def graded(name, text="the 42 text", **settings):
    """The grade of one text, and what was told."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with OwnGrader(own_function(f"{OWN}:{name}"), **settings) as grader:
            grade = grader(text, "42", PROBLEM)
            assert grader(text, "42", PROBLEM) == grade  # whatever the first call did
    return grade, [str(each.message) for each in told]


@pytest.mark.parametrize(
    ("name", "grade"),
    [
        ("good", Grade(True, "42 text")),
        ("scores", Grade(True, "42 text", score=11 / 4)),
        ("tells", Grade(True, "cm")),
        ("reads", Grade(True, "42 text")),
        ("defaults", Grade(True, "42 text")),
        ("numpy_bool", Grade(True, "42 text", score=0.5)),
    ],
)
def test_what_a_grader_may_return(name, grade):
    assert graded(name) == (grade, [])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("raises", "raises ValueError: two lines of xxx"),
        ("says_yes", "returns 'yes' (str), not True or False"),
        ("says_nothing", "returns None (NoneType), not True or False"),
        ("says_nan", "returns the score 'nan', no finite number"),
        ("says_much", "returns a mapping with 'colour'; it may hold correct, score, answer"),
        ("half_a_pair", "returns the answer '\\ud800', no text"),
        ("length", "returns 11.0, not True or False"),
        ("exits", "exits (sys.exit(3))"),
        ("exits_at_once", "exits (its process ended with code 7)"),
    ],
)
def test_what_goes_wrong_is_a_reason_and_told_once(name, why):
    grade, told = graded(name)
    assert (grade.correct, grade.grader, grade.answer) == (None, "error", "42 text")
    assert grade.why.startswith(f"own.py:{name} {why}")
    assert len(grade.why) < 300
    assert len(told) == 1
    assert told[0].startswith(f"grader own.py:{name}, problem 'p': {why}")
    assert "\n" not in told[0]


def test_one_kind_of_fault_is_told_once_whatever_the_value():
    texts = ("a", "bb (c)", "ccc: d")
    for function, kind in ((own.length, OwnGrader), (own.answers_length, OwnGrader), (own.says_back, OwnScore)):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with kind(own_function(function)) as call:
                for text in texts:
                    call(text, "42", PROBLEM)
        assert len(told) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
@pytest.mark.parametrize("name", ["hangs", "forks_and_hangs"])
def test_one_that_hangs_is_ended_with_all_that_it_started(name):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        with OwnGrader(own_function(f"{OWN}:{name}"), seconds=0.3) as grader:
            group = grader.calls._process.popen.pid
            grade = grader("hang", "42", PROBLEM)
            assert (grade.correct, grade.grader) == (None, "timeout")
            assert "in 0.3 s" in grade.why
            assert ends(group)
            if name == "hangs":
                assert grader("goes on", "42", PROBLEM).correct is True
    assert len(told) == 1


def test_what_is_printed_goes_nowhere_and_is_told(capfd):
    grade, told = graded("prints")
    assert grade.correct is True
    assert told == ["grader own.py:prints: prints ('looking at the 42 text\\n'); what it prints goes nowhere"]
    assert capfd.readouterr() == ("", "")


def test_a_reason_can_always_be_written():
    with OwnGrader(own_function(own.half_a_pair)) as grader, pytest.warns(UserWarning, match="raises ValueError"):
        assert "ValueError: ?" in grader("text", "raise", PROBLEM).why


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_fork_does_not_answer_for_the_grader():
    for name in ("forks", "pools"):
        grade, told = graded(name)
        assert grade.correct is True
        assert len(told) == 1
        assert "a copy that comes back from it is ended" in told[0]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nothing_of_the_kind", "there is no 'nothing_of_the_kind' in it"),
        ("VALUE", "'VALUE' is no function but 3"),
        ("waits", "'waits' is async; write a plain function"),
        ("yields", "'yields' is a generator"),
        ("takes_one", r"it takes \(text\); it is called with \(text, answer\) or \(text, answer, problem\)"),
    ],
)
def test_what_is_no_grader_is_refused_before_anything_is_graded(name, why):
    with (
        pytest.raises(FunctionError, match=f"grader own.py:{name} cannot be loaded: {why}"),
        OwnGrader(own_function(f"{OWN}:{name}")),
    ):
        pass


@pytest.mark.parametrize(
    ("source", "why"),
    [("import nothing_of_the_kind", "raises ModuleNotFoundError"), ("def f(", "SyntaxError"), ("exit(1)", "exits")],
)
def test_a_module_that_does_not_load(tmp_path, source, why):
    (tmp_path / "broken.py").write_text(source)
    with (
        pytest.raises(FunctionError, match=rf"broken.py:f cannot be loaded: .*{why}"),
        OwnGrader(own_function(f"{tmp_path}/broken.py:f")),
    ):
        pass


@pytest.mark.parametrize(
    ("spelling", "why"),
    [
        ("grade", "names no function; write module:function"),
        ("a b:grade", "neither a module nor a file"),
        ("own:1", "names no function"),
        ("nothing_of_the_kind:grade", "no module 'nothing_of_the_kind' with a source file is found"),
        ("/nothing/of_the_kind.py:grade", "there is no file"),
        ("sys:exit", "no module 'sys' with a source file"),
    ],
)
def test_spellings(spelling, why):
    with pytest.raises(FunctionError, match=why):
        own_function(spelling)


def test_functions_are_found_by_name():
    assert own_function(own.good).identity == own_function("own:good").identity
    assert own_function(own.good).fingerprint == own_function(f"{OWN}:good").fingerprint
    for function in (lambda text, answer: True, print, OwnGrader.__call__, functools.partial(own.good)):
        with pytest.raises(FunctionError):
            own_function(function)


def test_a_module_of_the_working_directory_and_its_package(tmp_path, monkeypatch):
    package = tmp_path / "mine" / "graders"
    package.mkdir(parents=True)
    (tmp_path / "mine" / "__init__.py").write_text("raise RuntimeError('imported in this process')\n")
    (package / "__init__.py").write_text("")
    (package / "strict.py").write_text("def grade(text, answer): return True\n")
    monkeypatch.chdir(tmp_path)
    function = own_function("mine.graders.strict:grade")  # nothing of it is imported
    assert function.source == package / "strict.py"
    (tmp_path / "mine" / "__init__.py").write_text("")
    with OwnGrader(function) as grader:
        assert grader("", "", {}).correct is True


def test_a_grader_that_changes_while_it_grades_ends_the_run(tmp_path):
    shutil.copy(OWN, tmp_path / "mine.py")
    with OwnGrader(own_function(f"{tmp_path}/mine.py:exits_at_once")) as grader:
        (tmp_path / "mine.py").write_text("def exits_at_once(text, answer): return True\n")
        with pytest.warns(UserWarning, match="exits"):
            assert grader("", "", PROBLEM).correct is None
        with pytest.raises(FunctionError, match=r"mine.py has changed since the first grade; what is graded is kept"):
            grader("", "", PROBLEM)


def test_a_verifier_scores():
    with OwnScore(own_function(own.length)) as score:
        assert score("four", "", PROBLEM) == (4.0, None)
    with (
        OwnScore(own_function(own.good)) as score,
        pytest.warns(UserWarning, match="score own:good, problem 'p': returns"),
    ):
        assert score("four", "4", PROBLEM) == (None, "own:good returns False, no finite number")


def test_grader_and_verifier_together():
    with open_grader("builtin", {}, grading("math", own.length)) as grader:
        assert grader("\\boxed{7}", "7", PROBLEM) == Grade(True, "7", score=9.0)
    twice = pytest.raises(GradingError, match="grader own:scores returns a score, and own:length scores too")
    with open_grader("builtin", {}, grading(own.scores, own.length)) as grader, twice:
        grader("\\boxed{7}", "7", PROBLEM)
    with pytest.raises(GradingError, match=r"grader 'maths' is not known \(known: math, choice; your own: module"):
        grading("maths")
    assert grading(seconds=5) == Grading(seconds=5)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
def test_the_worker_ends_with_its_parent():
    script = (
        "from kinetics_jax.tasks.own_functions import OwnGrader, own_function\n"
        f"grader = OwnGrader(own_function('{OWN}:good')).__enter__()\n"
        "print(grader.calls._process.popen.pid, flush=True)\n"
        "import os; os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    worker = int(done.stdout)
    assert ends(worker)
