r"""Known answers that no final answer can match, told by their text alone."""

import pytest

from kinetics_jax.tasks.known_answers import fault, keep_lost, without_noise


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("The answer is 42.", "a sentence: give the final answer alone, '42'"),
        ("Answer: 42", "a sentence: give the final answer alone, '42'"),
        ("42 (an integer)", "cannot be read"),
        ("\x0crac{1}{2}", r"a backslash was lost: \frac became a control character"),
        ("\theta", r"a backslash was lost: \theta"),
        ("2 \times 3", r"a backslash was lost: \times"),
        ("\x08eta", r"a backslash was lost: \beta"),
        ("rac{1}{2}", "a backslash was lost before 'rac{'"),
        ("heta", "a backslash was lost before 'heta'"),
        ("0.10000000149011612", "rounding noise of a float: write 0.1"),
        ("-0.30000000000000004", "rounding noise of a float: write -0.3"),
        ("01-Feb", "a date, as spreadsheets make of a fraction"),
        ("Feb-01", "a date"),
        ("The slope is positive and so the function rises", "a sentence"),
        ("first expand both of the squares then collect terms by degree", "prose of 10 words"),
        (r"\foo{", "cannot be read: a brace is never closed"),
        (r"\foo 3", r"cannot be read: \foo is not read"),
        ("x" * 4001, "4001 characters"),
    ],
)
def test_faults(answer, why):
    assert fault(answer).startswith(why)


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "42",
            r"\frac{1}{2}",
            r"\text{even}",
            "½",
            "12:00",
            "true",
            r"1 - \frac{1}{\mathrm{e}}",
            "(B) 25",
            "x = 5",
            "2,3",
        ),
        *("3.14159265358979", "0.0009765625", "0.12345678901234567", "20 June", "None of these", r"\text{no solution}"),
        *(r"1, 2, \ldots, n", r"5 \pmod 7", "5 feet 6 inches", "a\tb", "5 million", "[2, 5[", "46_{16}"),
    ],
)
def test_what_can_be_matched(answer):
    assert fault(answer) is None


def test_noise():
    assert without_noise("0.1") is without_noise("1/3") is without_noise("1e-3") is without_noise("12") is None
    assert without_noise("0.6999999999999998") == "0.7"
    assert without_noise("0.1234567890123456") is None
    assert without_noise("16777216.0") is None


def test_space_around_an_answer_goes_but_no_lost_command():
    assert [keep_lost(text) for text in (" 42\n", "\t42", "\theta", " \x0crac12 ")] == [
        "42",
        "42",
        "\theta",
        "\x0crac12",
    ]
