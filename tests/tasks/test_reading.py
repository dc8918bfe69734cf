"""What an answer says once its wrapping is off: words beside a number are read, or the answer is unread."""

from fractions import Fraction

import pytest

from kinetics_jax.tasks.number_words import count_of
from kinetics_jax.tasks.reading import read
from kinetics_jax.tasks.wrapping import TooDeep, plain


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        (r"\textbf{42}", "42"),
        (r"\color{blue}{42}", "42"),
        (r"\textcolor[rgb]{1,0,0}{42}", "42"),
        (r"{\color{red}42}", "42"),
        (r"\mathrm{46\,cm}", r"46 \text{cm}"),
        (r"\text{46 units}", r"46 \text{units}"),
        (r"\text{in $x$ steps}", r"\text{in} x \text{steps}"),
        (r"**$\bm{X}.$**,", "X"),
        ("½", r"\frac{1}{2}"),
        ("x²⁰", "x^{20}"),
        ("−５", "-5"),
        ("٤٢", "42"),
        ("10\u202f000", "10000"),
        ("3√(2)", r"3\sqrt{2}"),
        (r"1{,}000", "1000"),
        ("5!", "5!"),
        ("1, 2, ...", "1, 2, ..."),
    ],
)
def test_plain(answer, form):
    assert plain(answer) == form


@pytest.mark.parametrize("answer", ["{", "}", r"\frac{1}{", "{" * 60 + "}" * 60])
def test_braces_that_do_not_match(answer):
    with pytest.raises(TooDeep):
        plain(answer)
    assert read(answer).kind == "unread"


@pytest.mark.parametrize(
    ("answer", "core", "scale", "kinds"),
    [
        ("46", "46", 1, None),
        (r"46\text{ million}", "46000000", 1, None),
        (r"x\text{ million}", "x", 10**6, None),
        (r"46\text{ and a half}", r"\frac{93}{2}", 1, None),
        (r"\text{negative } 46", "-46", 1, None),
        (r"46 \text{ cm}^2", "46", 1, (("length", 2),)),
        (r"46 \text{ km/h}", "46", 1, (("length", 1), ("time", -1))),
        (r"5 \text{ feet } 6 \text{ inches}", r"\frac{4191}{2500}", 1, (("length", 1),)),
        (r"\$5.00", "5.00", 1, (("US money", 1),)),
        (r"5\%", "5", 1, (("percent", 1),)),
        (r"60^\circ", "60", 1, (("angle", 1),)),
        (r"46 \text{ red marbles}", "46", 1, (("things:red marble", 1),)),
        (r"\text{The answer is } 46", "46", 1, None),
        (r"46^{\text{th}}", "46", 1, None),
        (r"\{x \mid 2 \le x < 5\}", "[2,5)", 1, None),
        ("[2, 5[", "[2, 5)", 1, None),
        ("0.333...", r"0.\overline{3}", 1, None),
    ],
)
def test_formulas(answer, core, scale, kinds):
    reading = read(answer)
    assert reading.kind == "formula", reading
    assert (reading.core, reading.scale) == (core, scale)
    assert (reading.unit.kinds if reading.unit else None) == kinds


@pytest.mark.parametrize(
    "answer",
    [
        r"46 \text{ or more}",
        r"\text{not } 46",
        r"8 \text{ if } n \text{ is even, } 9 \text{ otherwise}",
        r"\text{between } 8 \text{ and } 9",
        r"46\text{ pairs}",
        r"46\text{ ninths}",
        r"46^\circ 30'",
        r"46\text{M}",
        r"46\text{ remainder } 3",
        r"46\text{ fold}",
        r"\foo{46}",
        "46?",
        r"17\text{ is prime}",
        "0x2E",
    ],
)
def test_what_is_unread_says_why(answer):
    reading = read(answer)
    assert reading.kind == "unread"
    assert reading.why


def test_words_times_and_dates():
    assert read(r"\text{an Ellipse}") == read("ellipse")
    assert (read("ellipse").kind, read("ellipse").text) == ("words", "ellipse")
    assert read(r"\text{3:45 p.m.}").moment == (2, 3, 45, None)
    assert read("15:45").moment == (0, 15, 45, None)
    assert read("20 June 2024").moment == read("2024-06-20").moment == (2024, 6, 20)
    assert read(r"\textbf{(B)}\ 46").choice == "B"
    assert read(r"\text{(A) or (B)}").choice is None
    assert [part.core for part in read(r"3\text{ cats and }5\text{ dogs}").parts] == ["3", "5"]


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ("forty-six", 46),
        ("one hundred and twenty", 120),
        ("two thousand five hundred", 2500),
        ("three million", 3 * 10**6),
        ("two dozen", 24),
        ("two and a half", Fraction(5, 2)),
        ("two-thirds", Fraction(2, 3)),
        ("half", Fraction(1, 2)),
        ("minus seven", -7),
        ("fifth", None),
        ("twenty twenty", None),
        ("one two", None),
        ("million", None),
        ("six of them", None),
    ],
)
def test_number_words(words, value):
    assert count_of(words.split()) == value
