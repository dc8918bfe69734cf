r"""Characters that people and models write for LaTeX: ½, x², 10⁵, −5, ４２, ٤٢, 1 000 with a narrow space, π, ≤."""

from __future__ import annotations

import re
import unicodedata

_COMMANDS = {
    "±": "pm", "∓": "mp", "×": "times", "÷": "div", "·": "cdot", "⋅": "cdot", "∙": "cdot", "•": "cdot",
    "∞": "infty", "∪": "cup", "∩": "cap", "∅": "emptyset", "∈": "in", "∖": "setminus", "≤": "le", "⩽": "le",
    "≦": "le", "≥": "ge", "⩾": "ge", "≧": "ge", "≠": "ne", "≈": "approx", "≃": "approx", "≅": "cong", "≡": "equiv",
    "…": "ldots", "⋯": "cdots", "→": "to", "∠": "angle", "√": "surd", "π": "pi", "θ": "theta", "α": "alpha",
    "β": "beta", "γ": "gamma", "δ": "delta", "λ": "lambda", "μ": "mu", "σ": "sigma", "φ": "phi", "ω": "omega",
    "✓": "checkmark", "✔": "checkmark", "✅": "checkmark", "∎": "blacksquare", "■": "blacksquare", "□": "square",
    "⟨": "langle", "⟩": "rangle",
}  # fmt: skip
_PLAIN = {
    "−": "-", "–": "-", "‐": "-", "‑": "-", "﹣": "-", "∗": "*", "∕": "/", "⁄": "/", "∶": ":", "’": "'", "‘": "'",
    "′": "'", "″": "''", "“": '"', "”": '"', "«": '"', "»": '"', "⁺": "^{+}", "٫": ".", "٬": ",", "،": ",", "، ": ",",
    "。": ".", "、": ",", "℃": r"^\circ C", "℉": r"^\circ F", "°": r"^\circ ", "º": r"^\circ ", "½": r"\frac{1}{2}",
}  # fmt: skip
_TABLE: dict[int, str] = {ord(key): f"\\{name} " for key, name in _COMMANDS.items()}
_TABLE |= {ord(key): value for key, value in _PLAIN.items() if len(key) == 1}
_TABLE |= dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\ufe0f\u00ad"), "")
_SPACES = "\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻ⁿ", "0123456789-n", strict=True))
_LOWERED = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_GROUPED = re.compile(rf"(?<=[0-9])[{_SPACES}](?=[0-9]{{3}}(?![0-9]))")
_RUN = re.compile(f"[{''.join(_RAISED)}]+|[{''.join(_LOWERED)}]+")
_ROOT = re.compile(r"([∛∜√])\s*(?:\(([^()]*)\)|([0-9]+(?:\.[0-9]+)?|[A-Za-z]))")
_INDEX = {"√": "", "∛": "[3]", "∜": "[4]"}


def _script(match: re.Match[str]) -> str:
    run = match[0]
    if run[0] in _LOWERED:
        return "_{" + "".join(_LOWERED[each] for each in run) + "}"
    return "^{" + "".join(_RAISED[each] for each in run) + "}"


def _one(character: str) -> str:
    """A single character outside ASCII: a fraction, a digit of any script, a full-width form; itself otherwise."""
    if character in _SPACES:
        return " "
    if (digit := unicodedata.decimal(character, None)) is not None:
        return str(digit)
    plain = unicodedata.normalize("NFKC", character)
    if len(plain) == 3 and plain[1] == "⁄":
        return f"\\frac{{{plain[0]}}}{{{plain[2]}}}"
    return plain if plain.isascii() else character


def to_latex(text: str) -> str:
    """The text with such characters as LaTeX; text in ASCII as it is."""
    if text.isascii():
        return text
    text = _RUN.sub(_script, text)
    text = _ROOT.sub(lambda m: f"\\sqrt{_INDEX[m[1]]}{{{m[2] or m[3]}}}", text)
    text = text.translate(_TABLE)
    text = "".join(c if c.isascii() or c in _SPACES else _one(c) for c in text)
    text = _GROUPED.sub("", text)
    return text if text.isascii() else "".join(" " if c in _SPACES else c for c in text)
