"""Exact comparison of plain numbers."""

from fractions import Fraction

import pytest

from kinetics_jax.tasks.exact import based, compare_numbers, rational, thousands


@pytest.mark.parametrize(
    ("given", "known", "verdict"),
    [
        ("42", "42", True),
        ("42", "43", False),
        ("042", "42", True),
        ("+42", "42", True),
        ("-0", "0", True),
        ("1,234,567", "1234567", True),
        ("1,23", "123", None),
        ("42.", "42", True),
        ("0.50", r"\frac{1}{2}", True),
        (".5", "1/2", True),
        ("-1/2", r"-\frac{1}{2}", True),
        (r"\frac{-1}{2}", r"\frac{1}{-2}", True),
        (r"-\dfrac{-1}{2}", "0.5", True),
        (r"\tfrac {7}{14}", "1/2", True),
        (r"\frac{14}{3}", r"\frac{3}{14}", False),
        ("1/0", "1", None),
        ("0.1", "0.10000000000000000001", False),
        ("0.33333", "1/3", False),
        ("0.333333", "1/3", True),
        ("0.333334", "1/3", True),  # within one unit of the last place
        ("0.333335", "1/3", False),
        ("0.666666", "2/3", True),
        ("0.666667", "2/3", True),
        ("-0.666667", "2/3", False),
        ("1/3", "0.3333333", True),
        ("0.000033", "1/30000", False),  # two significant digits
        ("0.000067", ".0000672", False),
        ("0.500000001", "1/2", False),
        (r"0.\overline{3}", "1/3", True),
        (r"0.1\overline{6}", "1/6", True),
        (r"-0.\overline{9}", "-1", True),
        (r"3\overline{3}", "33", None),
        ("52_8", "52_{8}", True),
        ("52_8", "42_{10}", True),
        ("52_8", "52_7", False),
        ("58_8", "58_8", None),  # no such digit
        ("52_8", "52", None),
        ("x", "1", None),
        ("", "1", None),
        (".", "1", None),
        ("1e3", "1000", None),
        ("9" * 100_000, "9", False),
        ("0" * 100_000 + "9", "9", True),
        ("9" * 100_000, "0.5", None),
        ("9" * 100_000 + "/7", "9", None),
    ],
)
def test_compare_numbers(given, known, verdict):
    assert compare_numbers(given, known) is verdict


def test_thousands():
    assert [thousands(text) for text in ("-1,234,567.8", "3,4", "(1, 2)", "1,2345")] == [
        "-1234567.8",
        "3,4",
        "(1, 2)",
        "1,2345",
    ]


def test_values():
    assert rational(r"4\frac{2}{3}") == Fraction(14, 3)
    assert rational("4 2/3") == Fraction(14, 3)
    assert rational(r"-1\frac{1}{2}") == Fraction(-3, 2)
    assert rational("42/3") == 14
    assert rational("x") is rational("1/0") is rational("9" * 2000) is None
    assert based("46_{16}") == 70
    assert based("-1A_{16}") == -26
    assert based("x_1") is based("x_{12}") is based("46") is None
