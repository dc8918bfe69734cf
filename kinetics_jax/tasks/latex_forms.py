r"""Forms of LaTeX that people write and the comparer misreads, each with one that it reads."""

from __future__ import annotations

import re

FORMS = [
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^\s*([+-]?[0-9]+(?:\.[0-9]+)?)[eE]([+-]?[0-9]{1,3})\s*$", r"\1\\times 10^{\2}"),  # 1e3, as programs write
        (r"(?<=[0-9)}])i(?![A-Za-z])", " i"),  # 5i, where `i` is only seen as a word of its own
        (r"\\log_(?:e|\{e\})(?![A-Za-z])", r"\\ln"),
        (r"\\sqrt\s*\[\s*([0-9a-z]+)\s*\]\s*([0-9a-zA-Z])(?![0-9])", r"\\sqrt[\1]{\2}"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\exp\s*\(([^()]*)\)", r"e^{\1}"),
        (r"\\exp\s*\{([^{}]*)\}", r"e^{\1}"),
        (r"\\frac\s*([0-9])\s*([0-9])(?![0-9])", r"\\frac{\1}{\2}"),
        (r"\\frac\s*([0-9])\s*\{", r"\\frac{\1}{"),
        (r"\\frac\s*\{([^{}]*)\}\s*([0-9])", r"\\frac{\1}{\2}"),
        (r"(?<![0-9.])([0-9]+) +([0-9]+)/([0-9]+)(?![0-9])", r"\1\\frac{\2}{\3}"),  # 4 2/3
        (r"(\.[0-9]*)\\dot\s*\{?([0-9])\}?([0-9]*)\\dot\s*\{?([0-9])\}?", r"\1\\overline{\2\3\4}"),
        (r"(\.[0-9]*)\\dot\s*\{?([0-9])\}?(?![0-9])", r"\1\\overline{\2}"),
        (r"\\overline\s*\{?\s*([0-9]+)\s*\}?", r"\\overline{\1}"),
        (r"^([+-]?[0-9]{1,3}) ([0-9]{3})$", r"\1\2"),  # 1 000
        (r"^([+-]?[0-9]{1,3}) ([0-9]{3}) ([0-9]{3})$", r"\1\2\3"),
        (r"(?<=[0-9])\.([0-9]*)\(([0-9]+)\)$", r".\1\\overline{\2}"),  # 0.(3)
        (r"^(.*[0-9].*)=\s*([A-Za-z])$", r"\2=\1"),  # 5 = x
        (r"\{\s*([^{}]+?)\s*\\choose\s*([^{}]+?)\s*\}", r"\\binom{\1}{\2}"),
        (r"^([^{}]+?)\s*\\choose\s*([^{}]+?)$", r"\\binom{\1}{\2}"),
        (r"\*", r"\\cdot "),
        (
            r"\\(sin|cos|tan|cot|sec|csc)\s*\(?\s*([0-9.]+)\s*\^\s*\{?\s*\\circ\s*\}?\s*\)?",
            r"\\\1(\\frac{\2\\pi}{180})",
        ),
        (r"\^\s*\{?\s*\\circ\s*\}?", ""),
        (r"\\in\s*\\mathbb\{[RZNQC]\}(?!\S)", ""),
        (r"\\pmod\s*\{?([0-9]+)\}?|\(\s*\\b?mod\s*([0-9]+)\s*\)|\\[bp]?mod\s*\{?([0-9]+)\}?", r"\\pmod{\1\2\3}"),
    )
]  # fmt: skip
RELATION = r"(<|>|\\le(?![a-z])|\\ge(?![a-z]))"
BUILT = re.compile(r"\\?\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\{R\}\s*)?(?:\||:)\s*(.+?)\\?\}")
REVERSED = re.compile(r"([\[\]])([^\[\]();]+)[,;]([^\[\]();]+)([\[\]])")
DOUBLE = re.compile(rf"([^<>=]+?)\s*{RELATION}\s*([A-Za-z])\s*{RELATION}\s*([^<>=]+?)")
SINGLE = re.compile(rf"([^<>=]+?)\s*{RELATION}\s*([^<>=]+?)")
REPEATED = re.compile(r"(-?[0-9]*\.[0-9]*?)([0-9]+?)\2{1,}\s*\\ldots")
MODULUS = re.compile(r"^(.*?)\s*\\pmod\{([0-9]+)\}$")


def respell(latex: str) -> str:
    """The same formula in forms that the comparer reads."""
    for pattern, replacement in FORMS:
        latex = pattern.sub(replacement, latex)
    latex = latex.strip()
    if (match := REPEATED.fullmatch(latex)) and len(latex[latex.index(".") + 1 :].split("\\")[0].strip()) >= 3:
        latex = f"{match[1]}\\overline{{{match[2]}}}"
    if match := BUILT.fullmatch(latex):
        latex = interval(match[2]) or latex
    if (match := REVERSED.fullmatch(latex)) and (match[1] == "]" or match[4] == "["):
        begin, end = "(" if match[1] == "]" else "[", ")" if match[4] == "[" else "]"
        latex = f"{begin}{match[2]},{match[3]}{end}"
    return latex


def interval(condition: str) -> str | None:
    """The interval that a condition on one variable says: 2 < x, 2 < x <= 5; None of any other text."""
    condition = condition.strip()
    if match := DOUBLE.fullmatch(condition):
        low, first, _, second, high = match.groups()
        if first[:2] in (">", "\\g"):
            if second[:2] not in (">", "\\g"):
                return None
            low, first, second, high = high, second, first, low
        elif second[:2] not in ("<", "\\l"):
            return None
        return f"{'(' if first in '<>' else '['}{low},{high}{')' if second in '<>' else ']'}"
    if match := SINGLE.fullmatch(condition):
        left, relation, right = match.groups()
        if re.fullmatch(r"[A-Za-z]", right) and not re.fullmatch(r"[A-Za-z]", left):
            left, right = right, left
            relation = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}[relation]
        if not re.fullmatch(r"[A-Za-z]", left):
            return None
        strict = relation in "<>"
        if relation in ("<", "\\le"):
            return f"(-\\infty,{right}{')' if strict else ']'}"
        return f"{'(' if strict else '['}{right},\\infty)"
    return None


def modulus(latex: str) -> tuple[str, int] | None:
    r"""(number, modulus) of `5 \pmod{7}` and `x \equiv 5 \pmod{7}`; None of any other formula."""
    match = MODULUS.fullmatch(latex)
    if match is None or int(match[2]) == 0:
        return None
    return re.split(r"\\equiv|=", match[1])[-1].strip(), int(match[2])
