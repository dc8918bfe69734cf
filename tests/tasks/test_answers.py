"""Where answers stand, how they are respelled, and exact numbers."""

import pytest

from kinetics_jax.tasks.answers import (
    compare_numbers,
    completed,
    last_answer_box,
    respell,
    split_reasoning,
    thousands,
    undecorated,
)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>a</think>b", ("<think>a", "b")),
        ("a</think>b", ("a", "b")),  # templates that open the reasoning in the prompt
        ("a</think>b</think>c", ("a</think>b", "c")),
        ("<think>a", ("<think>a", "")),
        ("a", ("", "a")),
        ("", ("", "")),
    ],
)
def test_split_reasoning(text, parts):
    assert split_reasoning(text) == parts


@pytest.mark.parametrize(
    ("prompt", "text", "whole"),
    [
        ("<user>q<assistant><think>\n", "7 and", "<think>7 and"),
        ("<user>q<assistant><think>", "a</think>b", "<think>a</think>b"),
        ("<user>q<assistant>", "7", "7"),
        ("<user>q<assistant><think>\n\n</think>\n\n", "7", "7"),
        ("<user>What does <think> mean?<assistant>", "7", "7"),  # the question's own tag
        ("", "7", "7"),
    ],
)
def test_completed(prompt, text, whole):
    assert completed(prompt, text) == whole
    assert split_reasoning(completed(prompt, text))[0].startswith("<think>") is (whole != text)


@pytest.mark.parametrize(
    ("text", "box"),
    [
        (r"\boxed{1} \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\fbox{7}", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed 7", "7"),
        (r"$\boxed 42.$", "42"),
        (r"\boxed -1/2 $", "-1/2"),
        (r"\boxed C", "C"),
        (r"\boxed x_1", None),
        (r"\boxed 7x", None),
        (r"\boxed \frac12", None),
        (r"\boxed{1} \boxed 2", "2"),
        (r"\fbox{1} \boxed {}", "1"),
        (r"\boxed{}", None),
        ("\\boxed" + " " * 200_000 + "x", "x"),
        ("\\boxed" + " " * 200_000 + "!", None),
        ("\\boxed " * 100_000, None),
        ("\\boxed{" * 100_000 + "7" + "}" * 100_000, "7"),
    ],
)
def test_last_answer_box(text, box):
    assert last_answer_box(text) == box


@pytest.mark.parametrize(
    ("given", "known", "verdict"),
    [
        ("42", "42", True),
        ("42", "43", False),
        (" $042$ ", "42", True),
        ("+42", "42", True),
        ("-0", "0", True),
        ("**42**", "42", True),
        (r"\mathbf{42}", "42", True),
        (r"\boldsymbol{\frac{1}{2}}.", "0.5", True),
        ("$42$.", "42", True),
        ("42\\ ", "42~", True),
        ("42..", "42", None),
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


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        (r" 8 \pi\ ", r"8 \pi"),
        (r"8 \pi\;", r"8 \pi"),
        (r"**$\bm{X}.$**,", "X"),
        (r"\mathbf {\frac{\sqrt{3}}{2}}", r"\frac{\sqrt{3}}{2}"),
        (r"\mathbf{a}+\mathbf{b}", r"\mathbf{a}+\mathbf{b}"),  # the first brace is not closed by the last
        ("**1** or **2**", "**1** or **2**"),
        ("$1$ or $2$", "$1$ or $2$"),
        ("1, 2, ...", "1, 2, ..."),
        (r"\left\{ x \right.", r"\left\{ x \right."),
        ("5!", "5!"),
        ("~.", ""),
        ("****", "****"),
        ("$", "$"),
        (r"\bm{" * 100_000, r"\bm{" * 100_000),
    ],
)
def test_undecorated(answer, plain):
    assert undecorated(answer) == plain


def test_thousands():
    assert [thousands(text) for text in ("-1,234,567.8", "3,4", "(1, 2)", "1,2345")] == [
        "-1234567.8",
        "3,4",
        "(1, 2)",
        "1,2345",
    ]


@pytest.mark.parametrize(
    ("latex", "plain"),
    [
        (r"1\,000", "1000"),
        (r"10,\!080", r"10,\!080"),  # math-verify reads this one
        (r"1\,00", r"1\,00"),
        (r"5~\text{cm}", r"5 \text{cm}"),
        (r"5\ \text{cm}", r"5 \text{cm}"),
        (r"1 \\ 2", r"1 \\ 2"),  # a new row
        ("1~000", "1000"),
        ("1e3", r"1\times 10^{3}"),
        ("1e3x", "1e3x"),
        ("5i", "5 i"),
        (r"\sin x", r"\sin x"),
        (r"1 - 12\mathrm{i}", "1 - 12 i"),
        (r"\log_e 2", r"\ln 2"),
        (r"\log_{10} 2", r"\log_{10} 2"),
        (r"\left\langle 1,2\right\rangle", "( 1,2)"),
        ("90°", r"90^\circ"),
    ],
)
def test_respell(latex, plain):
    assert respell(latex) == plain
