r"""What wraps an answer is taken off: styles, colours, boxes, delimiters, check marks; text becomes words.

`plain` writes every answer in one form: LaTeX in which words stand in `\text{…}` and nothing else does, one word each.
"""

from __future__ import annotations

import re

from kinetics_jax.tasks.characters import to_latex
from kinetics_jax.tasks.vocabulary import each_of

MAX_DEPTH = 40  # of braces; nobody writes deeper answers

STYLES = frozenset(
    each_of(
        "underline uline boxed fbox box framebox bm boldsymbol mathbf pmb ensuremath displaystyle textstyle "
        "scriptstyle mathop mathord colorbox textcolor color fcolorbox mathit mathsf mathtt "
        "mathcal emph large Large LARGE huge Huge normalsize small bf bfseries rm it tt displaylimits limits "
        "nolimits"
    )
)
TEXTS = frozenset(
    each_of("text mbox hbox textrm textbf textit textsf texttt textnormal textsc textup mathrm operatorname")
)
COLOURED = {"textcolor": 1, "color": 1, "colorbox": 1, "fcolorbox": 2}  # arguments that are colours
DROPPED = frozenset(
    each_of(
        "checkmark square blacksquare qed Box Diamond hfill quad qquad left right big Big bigl bigr Bigl Bigr "
        "middle displaystyle textstyle scriptstyle noindent newline par bigg Bigg biggl biggr"
    )
)
SPACING = frozenset(",;:! >/")  # \, and so on
RENAMED = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "nicefrac": "frac", "sfrac": "frac", "flatfrac": "frac",
    "degree": "circ", "leq": "le", "geq": "ge", "leqslant": "le", "geqslant": "ge", "neq": "ne", "bar": "overline",
    "varnothing": "emptyset", "dots": "ldots", "cdots": "ldots", "dotsc": "ldots", "dotsb": "ldots", "dotso": "ldots",
    "dbinom": "binom", "tbinom": "binom", "thickapprox": "approx", "simeq": "approx", "smallsetminus": "setminus",
    "infin": "infty", "R": "mathbb{R}", "reals": "mathbb{R}", "land": "text{and}", "lor": "text{or}", "lbrace": "{",
    "rbrace": "}",
}  # fmt: skip
SIGNS = {
    "lt": "<", "gt": ">", "langle": "(", "rangle": ")", "lbrack": "[", "rbrack": "]", "imath": "i", "lvert": "|",
    "rvert": "|", "vert": "|", "mid": "|", "colon": ":", "minus": "-", "pounds": "£", "euro": "€", "ast": "*",
    "textdollar": "\\$", "percent": "\\%",
}  # fmt: skip

WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|['-](?=[^\W\d_])|\.(?=[^\W\d_](?![^\W\d_])))*", re.UNICODE)
PIECES = re.compile(r"\\[A-Za-z]+\*?|\\.|[{}]|[^\\{}]+|\\", re.DOTALL)
BETWEEN_DIGITS = re.compile(r"(?<=[0-9])(?:(?:\{,\}|\\[,!;: ]|~|,\\!)\s*)+(?=[0-9]{3}(?![0-9]))")
ENDING = " \t\r\n~.,;"


class TooDeep(ValueError):
    """Braces nested deeper than `MAX_DEPTH`, or that do not match."""


def plain(answer: str) -> str:
    """The answer in that form. Raises TooDeep where braces do not match or nest too deep."""
    text = to_latex(answer)
    text = BETWEEN_DIGITS.sub("", text)
    return trimmed("".join(_unwrapped(_parsed(text), False)))


def trimmed(text: str) -> str:
    """The text without spaces, full stops and commas at its end, whole-text delimiters and braces."""
    while True:
        before = text
        text = text.strip().strip("`")
        kept = text.rstrip(ENDING)
        text = text if text.endswith("..") else kept
        for begin, end in (
            ("**", "**"),
            ("*", "*"),
            ("__", "__"),
            ("$$", "$$"),
            ("$", "$"),
            ("\\(", "\\)"),
            ("\\[", "\\]"),
            ('"', '"'),
        ):
            if text.startswith(begin) and text.endswith(end) and len(text) > len(begin) + len(end):
                inner = text[len(begin) : -len(end)]
                if begin not in inner and end not in inner:
                    text = inner
        if text.startswith("{") and text.endswith("}") and _closes_last(text):
            text = text[1:-1]
        if text == before:
            return text


def _closes_last(text: str) -> bool:
    """Whether the brace that opens the text is closed by its last character."""
    depth = 0
    escaped = False
    for index, character in enumerate(text):
        if escaped:
            escaped = False
            continue
        escaped = character == "\\"
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return index == len(text) - 1
    return False


Tree = list  # of pieces of text, and of trees for what stands in braces


def _parsed(text: str) -> Tree:
    stack: list[Tree] = [[]]
    for match in PIECES.finditer(text):
        piece = match[0]
        if piece == "{":
            stack.append([])
            if len(stack) > MAX_DEPTH:
                raise TooDeep("braces are nested too deep")
        elif piece == "}":
            if len(stack) == 1:
                raise TooDeep("a brace is closed that was never opened")
            group = stack.pop()
            stack[-1].append(group)
        else:
            stack[-1].append(piece)
    if len(stack) > 1:
        raise TooDeep("a brace is never closed")
    return stack[0]


def _unwrapped(tree: Tree, text: bool) -> list[str]:
    """The pieces of a tree in plain form; `text` where they stand in text mode."""
    out: list[str] = []
    index = 0
    while index < len(tree):
        piece = tree[index]
        index += 1
        if isinstance(piece, list):
            inner = _unwrapped(piece, text)
            out += inner if text else ["{", *inner, "}"]
            continue
        if not piece.startswith("\\"):
            out.append(words_marked(piece) if text else piece)
            continue
        name = piece[1:].rstrip("*")
        if name in COLOURED:
            for _ in range(COLOURED[name]):
                index = _skipped(tree, index)
            out.append(" ")
        elif name in TEXTS or name in STYLES:
            index, argument = _argument(tree, index)
            if argument is not None:
                if name in TEXTS:
                    out += [" ", *_texted(argument), " "]
                else:
                    inner = _unwrapped(argument, text)
                    out += ["{", *inner, "}"] if out and out[-1].endswith(("^", "_")) else [" ", *inner, " "]
        elif name in DROPPED or name in SPACING or name == "":
            out.append(" ")
        elif name in RENAMED:
            new = RENAMED[name]
            out.append(f"\\{new}" if new in "{}" else f"\\{new} ")
        elif name in SIGNS:
            out.append(f" {SIGNS[name]} ")
        elif text and not name.isalpha() and name not in "$%&#_":
            out.append(name)
        else:
            out.append(piece)
    return out


def _skipped(tree: Tree, index: int) -> int:
    """The index after spaces and one argument in braces or brackets."""
    while index < len(tree) and isinstance(tree[index], str) and not re.sub(r"\[[^\]]*\]", "", tree[index]).strip():
        index += 1  # \textcolor[rgb]{1,0,0}
    return index + 1 if index < len(tree) and isinstance(tree[index], list) else index


def _argument(tree: Tree, index: int) -> tuple[int, Tree | None]:
    """The index after an argument in braces, and the argument; None where no brace follows."""
    after = _skipped(tree, index)
    if after == index or not isinstance(tree[after - 1], list):
        return index, None
    return after, tree[after - 1]


def _texted(argument: Tree) -> list[str]:
    """Text in plain form: `$…$` in it is mathematics, a lone i, e or d too."""
    inner = "".join(piece if isinstance(piece, str) else "{}" for piece in argument)
    if inner.strip() in ("i", "e"):
        return [inner.strip()]
    out: list[str] = []
    parts: list[Tree] = [[]]
    for piece in argument:
        if isinstance(piece, str) and "$" in piece and not piece.startswith("\\"):
            first, *rest = piece.split("$")
            parts[-1].append(first)
            parts += [[each] for each in rest]
        else:
            parts[-1].append(piece)
    for number, part in enumerate(parts):
        out += _unwrapped(part, number % 2 == 0)
    return out


def words_marked(text: str) -> str:
    r"""Text with each word in `\text{…}`, its digits and signs left as they are."""
    return WORD.sub(lambda match: f"\\text{{{match[0]}}}", text.replace("$", "\\$"))
