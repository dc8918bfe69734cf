"""Exact integers in boxes."""

import pytest

from kinetics_jax.tasks.grading import Grade, grade_integer, last_boxed


@pytest.mark.parametrize(
    ("text", "boxed"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2", "1"),
        (r"\boxed{}", None),
        (r"\boxed{5}. I enclosed it in \boxed{}.", "5"),
        (r"\boxed{5} \boxed{ { }\boxed{}\n}".replace("\\n", "\n"), "5"),
        (r"\boxed{5} \boxed{{6}}", "{6}"),
        (r"\boxed{5} \boxed{6{}}", "6{}"),
        ("42", None),
        (r"\boxed 42", None),
        (r"\boxed{" * 50, None),
        (r"\boxed{" * 100_000, None),  # one pass: this must not take minutes
        (r"\boxed{a \boxed{7} b}", "7"),
        (r"} \boxed{3} }}", "3"),
    ],
)
def test_last_boxed(text, boxed):
    assert last_boxed(text) == boxed


@pytest.mark.parametrize(
    ("text", "answer", "correct"),
    [
        (r"\boxed{42}", "42", True),
        (r"\boxed{ 042 }", "42", True),
        (r"\boxed{+42}", "42", True),
        (r"\boxed{-42}", "42", False),
        (r"\boxed{-0}", "0", True),
        (r"\boxed{42.0}", "42", False),
        (r"\boxed{4 2}", "42", False),
        (r"\boxed{}", "42", False),
        (r"\boxed{٤٢}", "42", False),
        ("42", "42", False),
        ("", "0", False),
        (r"\boxed{" + "9" * 100_000 + "}", "9", False),
        (r"\boxed{" + "0" * 100_000 + "9}", "9", True),
        (r"\boxed{" + "0" * 100_000 + "x}", "9", False),  # one pass: this must not take minutes
    ],
)
def test_integers(text, answer, correct):
    assert grade_integer(text, answer).correct is correct


def test_what_a_grade_tells():
    assert grade_integer(r"\boxed{x}", "7") == Grade(correct=False, answer="x", grader="ok")
    assert grade_integer("no box", "7") == Grade(correct=False, answer=None, grader="ok")
    with pytest.raises(ValueError, match="'x' is not an integer"):
        grade_integer(r"\boxed{7}", "x")
