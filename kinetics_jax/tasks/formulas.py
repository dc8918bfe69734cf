"""A reading: what an answer says, in one form; and formulas without words."""

from __future__ import annotations

import dataclasses
import re
from fractions import Fraction

from kinetics_jax.tasks.latex_forms import respell
from kinetics_jax.tasks.tokens import Token, latex
from kinetics_jax.tasks.units import Unit
from kinetics_jax.tasks.vocabulary import each_of

# Commands that the comparer reads; an answer with any other is unread.
COMMANDS = frozenset(
    each_of(
        r"\frac \sqrt \pi \theta \alpha \beta \gamma \delta \lambda \mu \sigma \phi \omega \rho \tau \epsilon "
        r"\varepsilon \varphi \psi \xi \eta \zeta \kappa \nu \chi \Delta \Gamma \Omega \Sigma \Pi \Phi \Theta "
        r"\Lambda \pm \mp \times \div \cdot \infty \cup \cap \setminus \emptyset \in \le \ge \ne \approx \sin "
        r"\cos \tan \cot \sec \csc \arcsin \arccos \arctan \sinh \cosh \tanh \log \ln \exp \binom \overline "
        r"\sum \prod \int \lim \lfloor \rfloor \lceil \rceil \mathbb \to \pmod \bmod \mod \gcd \det \max \min "
        r"\lg \circ \dot \vec \hat \choose \prime \ell \angle \triangle \parallel \perp \partial \infinity "
        r"\cong \equiv \backslash \ldots \surd"
    )
)


@dataclasses.dataclass(frozen=True)
class Reading:
    """`kind`: formula, words, time, date, list or unread. `text` is a canonical spelling: equal texts say the same.

    A formula's `core` is its LaTeX without words, `scale` what words multiply it by. A list has `parts`. `choice` is
    the letter of a multiple choice that the answer names. `moment` holds the fields of a time or date. `summed` tells
    of a formula that it was several amounts, in which units nobody knows. `why` says what made an answer unread.
    """

    kind: str
    text: str
    core: str = ""
    scale: Fraction = Fraction(1)
    unit: Unit | None = None
    parts: tuple[Reading, ...] = ()
    choice: str | None = None
    moment: tuple[int | None, ...] = ()
    summed: bool = False
    why: str = ""


def formula(tokens: list[Token], text: str) -> Reading:
    """An answer without words. Commands that nothing here knows leave it unread."""
    for index, token in enumerate(tokens):
        if (
            token.kind == "command"
            and token.text.split("{")[0] not in (r"\begin", r"\end")
            and token.text not in COMMANDS
        ):
            return Reading("unread", text, why=f"{token.text} is not read")
        if not token.text.isascii() and token.kind != "space":
            return Reading("unread", text, why=f"{token.text!r} is not read")
        if token.text == "'" and index and tokens[index - 1].kind == "number":
            return Reading("unread", text, why="minutes of arc, or feet, are not read")
        if token.kind == "sign" and token.text in ("?", '"', "@", "#", "\\#"):
            return Reading("unread", text, why=f"{token.text!r} is not read")
    if re.match(r"0 x [0-9A-Fa-f]", text):
        return Reading("unread", text, why="numbers as programs write them are not read")
    return Reading("formula", text, core=respell(latex(tokens)))


def fraction_latex(value: Fraction) -> str:
    r"""The value in LaTeX, with its sign in front: `-\frac{1}{2}`, `3`."""
    if value.denominator == 1:
        return str(value.numerator)
    return f"{'-' if value < 0 else ''}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
