"""Mathematical answers: hand-judged pairs, hostile ones, and a process that may hang, die or run out of memory."""

import json
import os
import re
import signal
import sys
import time
import warnings
from pathlib import Path

import pytest
from paths import SHARED

from kinetics_jax.tasks import math_grading
from kinetics_jax.tasks.grading import Grade
from kinetics_jax.tasks.math_grading import GradingError, MathGrader, grader_for, readable_problems
from kinetics_jax.tasks.problems import Problem, load_problem_file

# answer, response, correct: what a careful person says of them without the question (null: nobody can tell);
# known: why the grader says otherwise, where it does.
HERE = Path(__file__).parent
FILES = {
    name: [json.loads(line) for line in (HERE / name).read_text("utf-8").splitlines()]
    for name in ("answer_pairs.jsonl", "worded_pairs.jsonl")
}
RECALL = {"answer_pairs.jsonl": 0.99, "worded_pairs.jsonl": 0.87}  # share of pairs with a verdict, at least
SETS = SHARED / "problems"
TIMEOUT = 1.5  # seconds: what hangs would hang for longer too


def boxed(latex):
    return "\\boxed{" + latex + "}"


@pytest.fixture(scope="module")
def grader():
    with MathGrader(timeout=TIMEOUT) as grader:
        yield grader


@pytest.fixture(scope="module")
def patient():
    with MathGrader(timeout=60) as grader:
        yield grader


def works(grader):
    """Whether the grader's process answers, started anew if need be."""
    return grader(boxed("x+x"), "2x") == Grade(correct=True, answer="x+x")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:not graded")
@pytest.mark.parametrize("name", FILES)
def test_no_verdict_is_wrong(patient, name):
    """A verdict is what a careful person says; where the grader has none, it says so."""
    judged = [(pair, patient(pair["response"], pair["answer"]).correct) for pair in FILES[name]]
    wrong = [
        (pair["answer"], pair["response"], verdict)
        for pair, verdict in judged
        if verdict is not None and verdict is not pair["correct"] and "known" not in pair
    ]
    assert wrong == []
    told = [(pair, verdict) for pair, verdict in judged if pair["correct"] is not None]
    decided = sum(verdict is not None for _, verdict in told)
    right = [verdict for pair, verdict in told if pair["correct"]]
    print(f"{name}: {decided} of {len(told)} decided, {right.count(True)} of {len(right)} right answers found")
    assert decided / len(told) >= RECALL[name]
    assert right.count(True) / len(right) >= 0.98


def test_what_the_pairs_are():
    for name, pairs in FILES.items():
        assert len({(pair["answer"], pair["response"]) for pair in pairs}) == len(pairs) >= 470
        assert all(sum(pair["correct"] is right for pair in pairs) > 150 for right in (True, False)), name
    known = [pair["known"] for pairs in FILES.values() for pair in pairs if "known" in pair]
    assert len(known) == 2


@pytest.mark.parametrize(
    ("text", "answer", "grade"),
    [
        (boxed(r"\frac{2}{4}"), "0.5", Grade(True, r"\frac{2}{4}")),
        (boxed("41"), "42", Grade(False, "41")),
        (boxed(" ~"), r"\pi", Grade(False, " ~")),
        (boxed("5") + ". I enclosed it in " + boxed(""), "5", Grade(True, "5")),
        ("<think>the answer is " + boxed("5") + " in " + boxed(" "), "5", Grade(True, "5")),
        ("<think>the answer is $x$", r"\pi", Grade(False, None)),
        (" \n", r"\pi", Grade(False, None)),
        (boxed("9" * 1_000_000), "9", Grade(False, "9" * 1_000_000)),
    ],
)
def test_the_fast_path_starts_no_process(text, answer, grade):
    with MathGrader() as grader:
        assert grader(text, answer) == grade
        grader.check(["42", "-1/2", r"\frac{1}{3}"])
        assert grader._process is None


def test_what_a_grade_tells(patient):
    assert patient("so it is $\\frac{\\pi}{2}$.", "\\pi/2") == Grade(True, "\\frac{\\pi}{2}.")
    assert patient("I give up.", "\\pi/2") == Grade(False, None)
    assert patient("The answer is $x$, for " + boxed(""), "x") == Grade(
        True, "x"
    )  # the text, where all boxes are empty
    assert patient(boxed("90°"), "90^\\circ") == Grade(True, "90°")  # as it was written


HOSTILE = {
    "a megabyte of LaTeX": boxed("\\frac{1}{2}+" * 90_000 + "x"),
    "a megabyte without a box": "$\\frac{1}{2}+$ and 3 " * 60_000,
    "10,000 nested braces": boxed("{" * 10_000 + "x" + "}" * 10_000),
    "1500 nested braces": boxed("{" * 1500 + "x" + "}" * 1500),
    "nested fractions": boxed("\\frac{1}{" * 300 + "x" + "}" * 300),
    "a huge power of x": boxed("x^{(10^{10})}"),
    "a tower of powers": boxed("9^{9^{9^9}}"),
    "a tower without a box": "The answer is 9^9^9^9^9",
    "a factorial": boxed("(10^9)!"),
    "an expansion": boxed("(x+y+z+w)^{400}"),
    "a long product": boxed("\\prod_{k=1}^{1000000} (x+k)"),
    "division by zero": boxed("\\frac{1}{0}"),
    "NUL bytes": boxed("1\x002\x00x"),
    "lone surrogates": boxed("\ud800x\udfff"),
    "lone surrogates without a box": "the answer is $\ud800$",
    "unbalanced braces": "\\boxed{x}}}}}}}{{{{",
    "a box never closed": "\\boxed{\\frac{1}{2}",
    "100,000 digits": boxed("9" * 100_000),
    "a fraction of 100,000 digits": boxed("\\frac{" + "9" * 100_000 + "}{7}"),
    "3900 digits": boxed("\\frac{" + "9" * 3900 + "}{x}"),
    "100,000 digits without a box": "The answer is " + "9" * 100_000,
    "100,000 boxes never closed": "\\boxed{" * 100_000,
    "100,000 boxes in a box": "\\boxed{" * 100_000 + "}" * 100_000,
    "4000 dollars": "$" * 4000,
    "a program": boxed("__import__('os').abort()"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.filterwarnings("ignore:not graded")
def test_hostile_answers(grader, name):
    assert works(grader)  # also: the answer before did no harm
    began = time.monotonic()
    grade = grader(HOSTILE[name], "\\frac{x}{3}")
    assert time.monotonic() - began < TIMEOUT + 2
    assert grade.grader in ("ok", "timeout", "error")
    assert grade.correct is (False if grade.grader == "ok" else None)


@pytest.mark.slow
def test_a_hang_is_a_timeout():
    with MathGrader(timeout=1) as grader:
        assert works(grader)
        first = grader._process.popen.pid
        with pytest.warns(UserWarning, match=r"not graded \(timeout\): no verdict in 1 s; answer '9\^"):
            grade = grader(boxed("9^{9^{9^9}}"), "\\frac{x}{3}")
        assert grade == Grade(correct=None, answer="9^{9^{9^9}}", grader="timeout")
        assert works(grader)
        assert grader._process.popen.pid != first


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_death_is_an_error_and_the_next_request_works():
    from threading import Timer

    with MathGrader(timeout=30) as grader:
        assert works(grader)
        killer = Timer(0.3, os.kill, [grader._process.popen.pid, signal.SIGKILL])
        killer.start()
        with pytest.warns(UserWarning, match=r"not graded \(error\): its process died \(-9\)"):
            grade = grader(boxed("9^{9^{9^9}}"), "\\frac{x}{3}")
        killer.join()
        assert (grade.correct, grade.grader) == (None, "error")
        assert works(grader)
        os.kill(grader._process.popen.pid, signal.SIGKILL)  # between two requests: nobody's answer is lost
        grader._process.popen.wait()
        assert works(grader)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the peak of memory is known on Linux only")
def test_running_out_of_memory_is_an_error():
    with MathGrader(timeout=60, memory=1 << 28) as grader:
        assert works(grader)
        with pytest.warns(UserWarning, match=r"not graded \(error\): out of memory"):
            grade = grader(boxed("(x+y+z+w)^{400}"), "\\frac{x}{3}")  # unequal, says math-verify
        assert (grade.correct, grade.grader) == (None, "error")
        assert works(grader)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
def test_an_interrupt_leaves_no_stale_reply():
    with MathGrader(timeout=30) as grader:
        assert works(grader)
        process = grader._process.popen
        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(KeyboardInterrupt):
                grader(boxed("9^{9^{9^9}}"), "\\frac{x}{3}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert process.poll() is not None  # not left behind
        assert works(grader)


def test_known_answers_that_cannot_be_read():
    with MathGrader(timeout=30) as grader:
        with pytest.warns(UserWarning, match=r"the known answer '\\\\foo\{' cannot be read: a brace is never closed"):
            grade = grader(boxed("x"), "\\foo{")
        assert (grade.correct, grade.grader) == (None, "error")
        grader.check(["x", "42", "\\text{even}"])
        with pytest.raises(
            GradingError, match=r"^1 known answer cannot be graded: '\\\\foo\{' \(cannot be read: a brace"
        ):
            grader.check(["x", "\\foo{", "\\foo{"])
        for bad in ("\\foo{" * 700, "\\foo{" * 100_000):  # read, and too long to be
            with pytest.raises(GradingError, match="1 known answer cannot be graded") as caught:
                grader.check([bad])
            assert len(str(caught.value)) < 400
        with pytest.raises(GradingError, match=r"\(4001 characters, at most 4000 are read\)"):
            grader.check(["x" * 4001])
        with pytest.warns(UserWarning, match="cannot be read") as warned:
            grader(boxed("x"), "\\foo{" * 700)
        assert len(str(warned[0].message)) < 400


def test_all_bad_known_answers_are_counted_and_the_first_named():
    answers = {
        "a": "42",
        "b": "The answer is 42.",
        "c": "\frac{1}{2}",
        "d": "x",
        "e": "01-Feb",
        "f": "0.10000000149011612",
    }
    with MathGrader(timeout=30) as grader, pytest.raises(GradingError) as caught:
        grader.check(answers)
    message = str(caught.value)
    assert message.startswith("4 known answers cannot be graded: b: 'The answer is 42.' (a sentence: give the final ")
    assert "c: " in message
    assert "e: " in message
    assert " and 1 more; mend them" in message
    assert "--skip-unreadable" in message
    assert len(message) < 600


def test_what_is_left_out_is_told_and_not_graded():
    problems = [Problem("a", "?", "42"), Problem("b", "?", "The answer is 42.")]
    with pytest.raises(GradingError, match="1 known answer cannot be graded: b: "):
        readable_problems(problems, "set.jsonl")
    with pytest.warns(UserWarning, match="left out: 1 known answer cannot be graded: b: "):
        assert readable_problems(problems, "set.jsonl", skip_unreadable=True) == problems[:1]
    with pytest.warns(UserWarning, match="left out"), pytest.raises(GradingError, match="no problem is left"):
        readable_problems(problems[1:], "set.jsonl", skip_unreadable=True)
    answers = {problem.id: problem.answer for problem in problems}
    with warnings.catch_warnings(record=True) as told, grader_for("set.jsonl", answers, skip_unreadable=True) as grader:
        assert grader(boxed("42"), "42") == Grade(True, "42")
        assert grader(boxed("42"), "The answer is 42.") == Grade(None, "42", "error")
    assert [str(each.message)[:55] for each in told] == ["left out: 1 known answer cannot be graded: b: 'The answ"]
    with (
        pytest.raises(GradingError, match=r"1 known answer cannot be graded: b: 'x' \(not an integer\)"),
        grader_for("builtin", {"a": "7", "b": "x"}),
    ):
        pass


@pytest.mark.slow
@pytest.mark.skipif(not SETS.exists(), reason="the problem sets are not here")
def test_known_answers_of_the_hub_tasks_are_readable(patient):
    files = {"aime24": "aime24.jsonl", "aime25": "aime25.jsonl", "amc23": "amc23.jsonl", "gsm8k": "gsm8k_test.jsonl"}
    for task, name in (files | {"math500": "math500.json"}).items():
        problems = load_problem_file(SETS / name, task=task)
        patient.check(problem.answer for problem in problems)


def test_a_missing_library_is_told(monkeypatch, tmp_path):
    (tmp_path / "math_verify.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with MathGrader() as grader, pytest.warns(UserWarning, match="math-verify does not start: ImportError: not here"):
        assert grader(boxed("x"), "2x").grader == "error"
    needed = r"^math-verify does not start: ImportError: not here; without it '2x' cannot be graded$"
    with MathGrader() as grader, pytest.raises(GradingError, match=needed):
        grader.check(["42", "2x", "3x"])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits on address space and its peak")
def test_lower_limits_on_memory_hold(monkeypatch, tmp_path):
    """A limit that the process comes with, lower than the grader's own, is what an answer runs out of."""
    lower = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 28, 1 << 28))"
    (tmp_path / "sitecustomize.py").write_text(lower)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with MathGrader(timeout=60) as grader:
        assert works(grader)
        with pytest.warns(UserWarning, match=r"not graded \(error\): out of memory"):
            grade = grader(boxed("(x+y+z+w)^{400}"), "\\frac{x}{3}")
        assert (grade.correct, grade.grader) == (None, "error")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="sitecustomize stands in for another system")
def test_systems_that_refuse_the_limit(monkeypatch, tmp_path):
    refuse = "import resource\ndef setrlimit(*_): raise ValueError('current limit exceeds maximum limit')\n"
    (tmp_path / "sitecustomize.py").write_text(refuse + "resource.setrlimit = setrlimit\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with MathGrader(timeout=30, memory=1 << 20) as grader:  # refused, so nothing is ever too much
        grader.check(["2x"])
        assert works(grader)
        assert grader(boxed("x"), "2x") == Grade(correct=False, answer="x")


def test_stored_cut_grades_know_all_of_the_grader():
    """Every module that takes part in a verdict is among the files whose bytes identify the grader."""
    folder = Path(math_grading.__file__).parent
    taking_part, left = set(), ["math_grading", "math_worker"]
    while left:
        name = left.pop()
        if name not in taking_part:
            taking_part.add(name)
            left += re.findall(r"from kinetics_jax\.tasks\.(\w+) import", (folder / f"{name}.py").read_text("utf-8"))
    assert {path.stem for path in math_grading.SOURCES} == taking_part - {"grading", "problems", "ledger"}


def test_grader_for():
    with grader_for("builtin", ["7"]) as grader:
        assert grader(boxed("07"), "7").correct is True
    with (
        pytest.raises(GradingError, match=r"1 known answer cannot be graded: 'x' \(not an integer\)"),
        grader_for("builtin", ["7", "x"]),
    ):
        pass
    with grader_for("math500", ["\\pi"]) as grader:
        assert grader(boxed("\\frac{2\\pi}{2}"), "\\pi").correct is True
        process = grader._process.popen
    assert process.poll() is not None  # ended with the block
    with pytest.raises(GradingError, match="must be positive"):
        MathGrader(timeout=0)


def test_no_warning_about_forks():
    """jax warns where a process with its threads forks; a grader starts processes in the middle of a run."""
    import jax

    jax.numpy.zeros(1).block_until_ready()
    with warnings.catch_warnings(), MathGrader() as grader:
        warnings.simplefilter("error")
        assert works(grader)
