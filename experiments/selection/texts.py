"""Texts that every machine has on which this runs, windows of them, and needles hidden in them.

Nothing is downloaded: the Python language reference that `help()` shows and the source of some of its library (PSF
licence), the docstrings of SciPy and of SymPy (BSD licences), and the pages with which the packages that are needed
describe themselves. Their words depend on the installed versions, which the results record by a hash.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import platform
from typing import NamedTuple

import numpy as np

from kinetics_jax.errors import UserError
from kinetics_jax.language_model import LanguageModel

# Not scipy.signal: one of its docstrings prints a set, in another order each time.
SCIPY_MODULES = ("interpolate", "linalg", "optimize", "stats")
LIBRARY_MODULES = (
    "argparse",
    "csv",
    "difflib",
    "fractions",
    "heapq",
    "imaplib",
    "mailbox",
    "statistics",
    "tarfile",
    "zipfile",
)
PACKAGES = (
    "flax",
    "huggingface_hub",
    "jax",
    "jaxtyping",
    "numpy",
    "pandas",
    "scipy",
    "tokenizers",
    "tqdm",
    "transformers",
    "tyro",
)
NAMES = ("Amsterdam", "Berlin", "Cairo", "Dublin", "Helsinki", "London", "Madrid", "Moscow", "Paris", "Rome", "Tokyo")
DIGITS = 5
GOLDEN = (5**0.5 - 1) / 2
RUN = 8  # tokens that count as repeated when they follow each other in the prefix too
MOST_REPEATED = 0.25
MOST_PLACES = 200


class Window(NamedTuple):
    """Token ids: `prefix` is prefilled densely; of `scored`, after it, all but the last are inputs, all but the first
    targets. `repeated` is the share of them that stands in the prefix too, as `repeated` says.
    """

    source: str
    start: int
    prefix: list[int]
    scored: list[int]
    repeated: float


class Haystack(NamedTuple):
    """A prompt with needles, without its question; `depths` are the shares of the text before each needle."""

    source: str
    prompt: list[int]
    names: list[str]
    numbers: list[str]
    depths: list[float]


def python_reference() -> str:
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    return "\n\n".join(topics[name] for name in sorted(topics))


def scipy_docstrings() -> str:
    texts = []
    for name in SCIPY_MODULES:
        module = importlib.import_module(f"scipy.{name}")
        members = (getattr(module, member) for member in sorted(module.__all__))
        texts += [inspect.getdoc(member) or "" for member in members if inspect.isfunction(member)]
    return "\n\n".join(filter(None, texts))


def sympy_docstrings() -> str:
    module = importlib.import_module("sympy")
    members = (getattr(module, name) for name in sorted(module.__all__))
    texts = [
        inspect.getdoc(member) or "" for member in members if inspect.isclass(member) or inspect.isfunction(member)
    ]
    return "\n\n".join(dict.fromkeys(filter(None, texts)))  # aliases and inherited docstrings once


def library_code() -> str:
    return "\n\n".join(inspect.getsource(importlib.import_module(name)) for name in LIBRARY_MODULES)


def package_pages() -> str:
    pages = (importlib.metadata.metadata(name).json.get("description") for name in PACKAGES)
    return "\n\n".join(str(page) for page in pages if page)


SOURCES = {
    "python": python_reference,
    "scipy": scipy_docstrings,
    "code": library_code,
    "pages": package_pages,
    "sympy": sympy_docstrings,
}


def _piece(lm: LanguageModel, text: str) -> list[int]:
    """Token ids of a part of a prompt: nothing is added."""
    return lm.encode(text, add_special_tokens=False)


def tokenise_sources(lm: LanguageModel) -> dict[str, list[int]]:
    """Token ids of every source."""
    return {name: _piece(lm, text()) for name, text in SOURCES.items()}


def describe_sources(tokens: dict[str, list[int]]) -> dict[str, dict[str, object]]:
    """The identity of the texts: number of tokens, a hash of them, and the version they came with."""
    versions = {"python": platform.python_version(), "scipy": importlib.import_module("scipy").__version__}
    return {
        name: {
            "version": versions.get(name),
            "tokens": len(ids),
            "blake2b": hashlib.blake2b(np.array(ids, np.int32).tobytes(), digest_size=8).hexdigest(),
        }
        for name, ids in tokens.items()
    }


def repeated(ids: list[int], cut: int) -> float:
    """The share of the runs of RUN tokens behind `cut` that stand in the text before it too: 1 for a copy."""
    runs = [tuple(ids[i : i + RUN]) for i in range(len(ids) - RUN + 1)]
    before, behind = set(runs[: cut - RUN + 1]), runs[cut:]
    return sum(run in before for run in behind) / len(behind)


def window(tokens: dict[str, list[int]], index: int, prefix: int, scored: int) -> Window:
    """The window `index`, from each source in turn.

    Places are spread by the golden ratio, so that more windows do not move earlier ones. Passed over are places within
    half a prefix of an earlier window, and near-verbatim ones: those where more than MOST_REPEATED of the text to
    predict stands in the prefix, so that it can be copied. Raises UserError if a text has no such place left.
    """
    source = list(tokens)[index % len(tokens)]
    ids = tokens[source]
    room = len(ids) - prefix - scored - 1
    if room < 0:
        raise UserError(f"text {source!r} has {len(ids)} tokens; a window takes {prefix + scored + 1}")
    taken: list[tuple[int, float]] = []
    for place in range(MOST_PLACES):
        start = int(room * ((0.5 + place * GOLDEN) % 1))
        if any(abs(start - other) < prefix // 2 for other, _ in taken):
            continue
        share = repeated(ids[start : start + prefix + scored + 1], prefix)
        if share > MOST_REPEATED:
            continue
        taken.append((start, share))
        if len(taken) > index // len(tokens):
            cut = start + prefix
            return Window(source, start, ids[start:cut], ids[cut : cut + scored + 1], share)
    asked = index // len(tokens) + 1
    raise UserError(f"text {source!r} has {len(taken)} windows that do not repeat themselves, {asked} are asked for")


def haystack(lm: LanguageModel, tokens: dict[str, list[int]], index: int, length: int, needles: int) -> Haystack:
    """A prompt of `length` tokens with `needles` secret numbers at even depths; `index` is its seed."""
    rng = np.random.default_rng([index, length])
    source = list(tokens)[index % len(tokens)]
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[:needles]]
    numbers = ["".join(map(str, rng.integers(0, 10, DIGITS))) for _ in names]
    head = _piece(lm, "<|im_start|>user\nRead this text and remember the secret numbers in it.\n\n")
    planted = [
        _piece(lm, f"\nThe secret number of {name} is {number}.\n") for name, number in zip(names, numbers, strict=True)
    ]
    room = length - len(head) - sum(map(len, planted))
    start = int(rng.integers(0, len(tokens[source]) - room))
    text = tokens[source][start : start + room]
    depths = [(i + 0.5) / needles for i in range(needles)]
    cuts = [0, *(round(depth * room) for depth in depths), room]
    prompt = list(head)
    for begin, end, needle in zip(cuts[:-1], cuts[1:], [*planted, []], strict=True):
        prompt += text[begin:end] + needle
    return Haystack(source, prompt, names, numbers, depths)


def questions(lm: LanguageModel, hay: Haystack) -> list[tuple[list[int], list[int]]]:
    """For each needle the tokens of the question, up to the number in the answer, and those of the number."""
    return [
        (
            _piece(
                lm,
                f"\n\nWhat is the secret number of {name}?<|im_end|>\n"
                f"<|im_start|>assistant\nThe secret number of {name} is",
            ),
            _piece(lm, f" {number}"),
        )
        for name, number in zip(hay.names, hay.numbers, strict=True)
    ]
