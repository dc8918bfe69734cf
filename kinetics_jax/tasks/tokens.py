"""An answer in plain form as tokens: numbers, words, commands and signs, each with its depth in braces and brackets."""

from __future__ import annotations

import dataclasses
import itertools
import re

from kinetics_jax.tasks.vocabulary import FUNCTIONS, SYMBOLS, UNITS, WORDS

PIECE = re.compile(
    r"\\text\{(?P<word>[^{}]*)\}|(?P<escaped>\\[$%{}&#_|])|(?P<command>\\[A-Za-z]+)|(?P<row>\\\\)"
    r"|(?P<grouped>(?<![0-9,])[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?(?![0-9]|,[0-9]))"
    r"|(?P<number>[0-9]+(?:\.[0-9]+)?|\.[0-9]+)|(?P<letters>[^\W\d_]+(?:\.[A-Za-z](?![A-Za-z]))*)|(?P<space>\s+|~)"
    r"|(?P<dots>\.\.\.+)|(?P<sign>.)",
    re.DOTALL,
)
OPEN, CLOSE = "([{", ")]}"
MATRIX = re.compile(r"\\(?:begin|end)\s*\{[a-z]*matrix\*?\}|\\(?:begin|end)\s*\{(?:array|cases)\}(?:\{[^{}]*\})?")


@dataclasses.dataclass(frozen=True)
class Token:
    """`kind`: word, number, command, letter, sign or space; `depth` counts the brackets around it; a word's `plain` is
    its text in lower case without dots, that of others their LaTeX.
    """

    kind: str
    text: str
    depth: int

    @property
    def plain(self) -> str:
        return self.text.lower().replace(".", "") if self.kind == "word" else self.text


def tokenize(plain: str) -> list[Token]:
    """The tokens of an answer in plain form (`wrapping.plain`). Runs of letters are words or products of letters."""
    tokens: list[Token] = []
    depth = 0
    index = 0
    while index < len(plain):
        if plain[index] == "\\" and (array := MATRIX.match(plain, index)):
            depth += 1 if array[0].startswith("\\begin") else -1
            tokens.append(Token("command", array[0], max(depth, 0)))
            index = array.end()
            continue
        match = PIECE.match(plain, index)
        assert match is not None  # its last alternative takes any character
        index = match.end()
        kind, text = match.lastgroup or "sign", match[0]
        if kind == "word":
            tokens.append(Token("word", match["word"], depth))
        elif kind == "grouped" and depth == 0:
            tokens.append(Token("number", text.replace(",", ""), depth))
        elif kind == "grouped":  # (3,400) is a pair
            for piece in text.split(","):
                tokens += [Token("number", piece, depth), Token("sign", ",", depth)]
            tokens.pop()
        elif kind == "letters":
            tokens += _letters(text, depth, tokens, plain[index : index + 1])
        elif kind in ("number", "space", "command"):
            tokens.append(Token(kind, " " if kind == "space" else text, depth))
        elif kind == "dots":
            tokens.append(Token("command", r"\ldots", depth))
        else:
            if text in OPEN or text == r"\{":
                tokens.append(Token("sign", text, depth))
                depth += 1
                continue
            if text in CLOSE or text == r"\}":
                depth = max(depth - 1, 0)
            tokens.append(Token("sign", text, depth))
    return _articles(tokens)


def _letters(run: str, depth: int, before: list[Token], after: str) -> list[Token]:
    """A run of letters outside of text: a function's name, a word, or a product of variables."""
    low = run.lower().replace(".", "")
    if run in FUNCTIONS:
        return [Token("command", f"\\{run}", depth)]
    stem = low[:-1] if low.endswith("s") else low
    follows_number = _follows_number(before)
    if len(run) > 1 and (low in SYMBOLS or low in ("nd", "rd", "st", "th", "am", "pm", "ad", "bc", "k", "bn", "mn")):
        if follows_number or "." in run:
            return [Token("word", run, depth)]
    elif len(run) > 1 and (low in WORDS or (stem in UNITS and len(stem) > 2)):
        return [Token("word", run, depth)]
    if len(run) >= 4 and not _alphabetical(run):
        return [Token("word", run, depth)]
    if len(run) == 3 and run[0].isupper() and run[1:].islower():
        return [Token("word", run, depth)]
    return [Token("letter", each, depth) for each in run if each != "."]


def _follows_number(before: list[Token]) -> bool:
    last = next((token for token in reversed(before) if token.kind != "space"), None)
    return last is not None and (last.kind in ("number", "word") or last.text in ("}", "/", ")", "\\pi"))


def _alphabetical(run: str) -> bool:
    """abcd, wxyz, ABCD: variables in their order."""
    return all(ord(right) == ord(left) + 1 for left, right in itertools.pairwise(run))


def _articles(tokens: list[Token]) -> list[Token]:
    """Single letters a and I between words are words."""
    out = list(tokens)
    for index, token in enumerate(tokens):
        if token.kind == "letter" and token.text in ("a", "A", "I") and len(tokens) > 0:
            near = [tokens[at] for at in (index - 2, index + 2) if 0 <= at < len(tokens)]
            spaces = [tokens[at].kind == "space" for at in (index - 1, index + 1) if 0 <= at < len(tokens)]
            if any(each.kind == "word" for each in near) and all(spaces):
                out[index] = Token("word", token.text, token.depth)
    return out


def latex(tokens: list[Token]) -> str:
    """The LaTeX of tokens; commands are kept apart from letters that follow."""
    out: list[str] = []
    for token in tokens:
        text = f"\\text{{{token.text}}}" if token.kind == "word" else token.text
        if out and text[:1].isalnum() and re.search(r"\\[A-Za-z]+$", out[-1]):
            out.append(" ")
        out.append(text)
    return "".join(out).strip()
