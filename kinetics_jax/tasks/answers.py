r"""Where a text states its answer. No jax.

What follows the reasoning counts: its last box or `<answer>` tag. Where it has neither, as in a text cut short, the
last box of the reasoning counts, unless what follows says `the answer is …` in a sentence that ends. A text without any
box is read for `the answer is …`, else its last sentence with a number or a formula. Empty boxes never count.
"""

from __future__ import annotations

import itertools
import re

from kinetics_jax.tasks.grading import last_boxed
from kinetics_jax.tasks.vocabulary import CHANGERS

_NAMES = "think|thinking|thought|thoughts|reasoning|reason|reflection|scratchpad|seed:think"
OPENING = re.compile(
    rf"<\|?(?:{_NAMES}|begin_of_(?:thought|reasoning|thinking))\|?>|\[(?:THINK|REASONING)\]|◁think▷", re.IGNORECASE
)
CLOSING = re.compile(
    rf"<\|?(?:/(?:{_NAMES})|end_of_(?:thought|reasoning|thinking)|/?end_(?:think|thinking))\|?>"
    r"|\[/(?:THINK|REASONING)\]|◁/think▷",
    re.IGNORECASE,
)
OPENINGS, CLOSINGS = ("<", "[THINK", "[REASON", "◁"), ("<", "[/", "◁/")  # how they begin
BRACED_BOX = re.compile(r"\\(?:boxed|fbox|box|framebox)\s*\{")
BARE_BOX = re.compile(r"\\(?:boxed|fbox|box)\s+([+-]?[0-9](?:[0-9.,/]*[0-9])?|[A-Za-z])(?![\w{])")
EMPTY_BOX = re.compile(r"\$?\\(?:boxed|fbox|box)\s*\{[\s{}]*\}\$?")
OPEN_BOX = re.compile(r"\$?\\(?:boxed|fbox|box)\s*\{.*|\\box[a-z]*$", re.DOTALL)
BOXES = re.compile(r"\\boxed\{[^{}]*\}(?:[\s$]*(?:,|and|or|,\s*and)[\s$]*\\boxed\{[^{}]*\})+")
ANSWER_TAGS = ("answer", "final_answer")

TAIL = 4000  # characters from the end in which a text without a box is searched
MENTION = 120  # characters of a sentence's end that may be an answer; more is talk about the problem
ALONE = re.compile(r"[\s*$#]*(?:\(?[A-J]\)?|[-+]?[0-9][0-9.,/]*)[\s*$.]*")
SAYS = re.compile(r"\b(?:answer|option|choice)[*_\s]*(?:(?:is|are|was)\b|:|=|\n)[*_:\s]*|####\s", re.IGNORECASE)
COPULA = re.compile(
    r"(?<![A-Za-z\\])(?:is|are|was|equals?|be|gives?|yields?|gets?|got|costs?|makes?|earns?|has|have|had|pays?|needs?|totals?|obtain|"
    r"found|find|total of|to be)(?![A-Za-z])\**:?",
    re.IGNORECASE,
)
SENTENCE_END = re.compile(r"(?<![A-Z])[.!?](?:\**\s+(?=[A-Z\"*\\$(#<0-9-])|\**\s*$)|\n")
FORMULA = re.compile(r"\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|(?<!\\)\$[^$]+\$", re.DOTALL)
HINT = re.compile(r"[0-9]|\([A-J]\)|(?<!\\)\$[^$]+\$|\\\(|\\\[|[½¼¾⅓⅔π√∞∅]")


def split_reasoning(text: str) -> tuple[str, str]:
    """(reasoning, final answer): cut at the last closing tag. Reasoning that never ends leaves no final answer."""
    for start in CLOSINGS:
        if closed := _last(CLOSING, start, text):
            return text[: closed.start()], text[closed.end() :]
    return (text, "") if any(_last(OPENING, start, text) for start in OPENINGS) else ("", text)


def _last(tag: re.Pattern[str], start: str, text: str) -> re.Match[str] | None:
    """The last tag that begins so. Texts are long and tags are few: far faster than a search with the pattern."""
    at = text.rfind(start)
    while at >= 0:
        if match := tag.match(text, at):
            return match
        at = text.rfind(start, 0, at)
    return None


def completed(prompt: str, text: str) -> str:
    """What a model wrote, with the tag that opens its reasoning in front where the prompt ends with that tag.

    Some chat templates open the reasoning themselves. A text cut short then shows no sign of being reasoning, and would
    be graded by its last number. A tag earlier in the prompt, in the question for one, opens nothing.
    """
    prompt = prompt.rstrip()[-40:]
    opened = [match for match in OPENING.finditer(prompt) if match.end() == len(prompt)]
    return opened[-1][0] + text if opened else text


def last_answer_box(text: str) -> str | None:
    r"""What the last box holds: as `last_boxed`, with `\fbox{…}`, `\boxed {…}` and `\boxed 5` read too."""
    text = BRACED_BOX.sub(r"\\boxed{", text)
    return last_boxed(BARE_BOX.sub(r"\\boxed{\1}", text))


def all_boxes(text: str) -> list[str]:
    """What the boxes of a text hold, each once, as far as they hold no box themselves."""
    held = re.findall(r"\\(?:boxed|fbox)\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}", text)
    return list(dict.fromkeys("".join(box.split()) for box in held if box.strip()))


def stated_answer(text: str) -> str | None:
    """The answer that a text states, as it is written; None where it states none."""
    reasoning, final = split_reasoning(text)
    if (marked_last := marked(final)) is not None:
        return marked_last
    reasoned = marked(reasoning)
    tail = _tail(final)
    said = _said(tail)
    if reasoned is not None:
        # A sentence that a cut has shortened begins as the box does: "The answer is 4." of 4.5.
        sure = said is not None and said[1] and not reasoned.strip().startswith(said[0].rstrip("."))
        return said[0] if said is not None and sure else reasoned
    return said[0] if said is not None else _last_mentioned(tail)


def marked(text: str) -> str | None:
    """What the last box or answer tag holds."""
    if (tagged := _tagged(text)) is not None:
        return tagged
    several = text.count("\\boxed") > 1
    chains = list(BOXES.finditer(text, max(len(text) - TAIL, 0))) if several else []
    if chains and "\\boxed" not in text[chains[-1].end() :]:
        return ", ".join(re.findall(r"\\boxed\{([^{}]*)\}", chains[-1][0]))  # the roots are \boxed{1} and \boxed{2}
    return last_answer_box(text)


def _tagged(text: str) -> str | None:
    """What the last `<answer>…</answer>` holds, unless a box stands in or after it."""
    if "</" not in text:
        return None
    low = text.lower()
    for name in ANSWER_TAGS:
        end = low.rfind(f"</{name}>")
        begin = low.rfind(f"<{name}>", 0, max(end, 0))
        if begin >= 0 and (held := text[begin + len(name) + 2 : end]).strip() and "\\box" not in text[begin:]:
            return held.strip()
    return None


def _tail(text: str) -> str:
    """The end of a text, from the start of a line where possible; without boxes that are empty or not closed."""
    text = text.rstrip()
    if len(text) > TAIL:
        tail = text[-TAIL:]
        _, newline, lines = tail.partition("\n")
        text = lines if newline and lines.strip() else tail
    return OPEN_BOX.sub("", EMPTY_BOX.sub("", text)).rstrip()


def _said(text: str) -> tuple[str, bool] | None:
    """What follows the last `the answer is`, and whether its sentence ends; None where nothing does."""
    for match in reversed(list(SAYS.finditer(text))):
        begin = match.end()
        formula = FORMULA.match(text, begin)
        end = SENTENCE_END.search(text, formula.end() if formula else begin)
        said = text[begin : end.start() if end else len(text)]
        if said.strip(" *_.$") and not BRACED_BOX.search(said) and "\\box" not in said:
            return undollared(said), end is not None
    return None


def _last_mentioned(text: str) -> str | None:
    """The end of the last sentence with a number or a formula, from its last verb on; None where there is none."""
    if ALONE.fullmatch(text):
        return text.strip()
    edges = [0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)]
    for begin, end in reversed(list(itertools.pairwise(edges))):
        sentence = text[begin:end]
        if not HINT.search(sentence) or re.fullmatch(r"[\s*#]*[0-9]+[.)]\s*", sentence):
            continue
        mentioned = undollared(sentence[_value_begins(sentence) :])
        return mentioned if len(mentioned) <= MENTION else None
    return None


def _value_begins(sentence: str) -> int:
    """Where a sentence comes to its value: after its last verb, else at its number; 0 where words may change it."""
    outside = FORMULA.sub(lambda match: "\0" * len(match[0]), sentence)  # verbs are no part of formulas
    verbs = [verb.end() for verb in COPULA.finditer(outside) if HINT.search(sentence, verb.end())]
    if verbs:
        return verbs[-1]
    first = re.search(r"[-+(\\$]*(?:[0-9]|\0|\([A-J]\))", outside)
    if first is None or CHANGERS & set(re.findall("[a-z']+", outside[: first.start()].lower())):
        return 0
    return first.start()


def undollared(text: str) -> str:
    r"""Prose without the delimiters of its formulas; a lone `$` is a dollar."""
    text = re.sub(r"\\[()\[\]]|\$\$", " ", text)
    text = re.sub(r",?\s+(?:for|in|inside|within|as|so)\s*$", "", text)  # what a box followed that is gone
    if len(re.findall(r"(?<!\\)\$", text)) % 2:
        return re.sub(r"(?<!\\)\$", r"\\$", text).strip()
    return re.sub(r"(?<!\\)\$", "", text).strip().strip("*").strip()
