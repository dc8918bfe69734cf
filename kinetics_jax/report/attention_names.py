"""Short names for attentions that are shown together: what they share is stated once, what differs is kept.

Works on spellings (`block_topk:budget=64,page_size=16`), as tables hold them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class AttentionNames:
    """`details` by attention, largest budget first: what differs from others of its kind, "budget 64"; empty
    for dense. `note`: what the attentions of each kind share, "block top-k: page size 16".
    """

    details: dict[str, str]
    note: str

    def short(self, attention: str) -> str:
        """`block top-k, budget 64`."""
        return ", ".join(filter(None, (spoken_kind(kind_of(attention)), self.details[attention])))


def attention_names(attentions: Iterable[str]) -> AttentionNames:
    """Names of the attentions, each given once or more."""
    spellings = sorted(dict.fromkeys(attentions), key=lambda name: -_budget(_options(name)))
    shared: dict[str, dict[str, str]] = {}
    for kind in dict.fromkeys(map(kind_of, spellings)):
        shared[kind] = _shared([_options(name) for name in spellings if kind_of(name) == kind])
    details = {
        name: ", ".join(_words(*option) for option in _options(name).items() if option[0] not in shared[kind_of(name)])
        for name in spellings
    }
    return AttentionNames(details, _note(shared))


def kind_of(attention: str) -> str:
    """`block_topk` of `block_topk:budget=64,page_size=16`."""
    return attention.partition(":")[0]


def spoken_kind(kind: str) -> str:
    """`block_topk` as `block top-k`."""
    return kind.replace("topk", "top-k").replace("_", " ")


def _options(attention: str) -> dict[str, str]:
    parts = attention.partition(":")[2].split(",")
    return {name: value for name, _, value in (part.partition("=") for part in parts if part)}


def _budget(options: dict[str, str]) -> float:
    """In tokens; a policy of another package may call something else a budget, or none."""
    try:
        return float(options.get("budget") or float(options.get("pages", 0)) * float(options.get("page_size", 1)))
    except ValueError:
        return 0.0


def _shared(options: list[dict[str, str]]) -> dict[str, str]:
    """What all attentions of a kind have in common; never their budget."""
    return {
        name: value
        for name, value in options[0].items()
        if name not in ("budget", "pages") and all(other.get(name) == value for other in options)
    }


def _note(shared: dict[str, dict[str, str]]) -> str:
    """What all sparse kinds share is stated once, then what each kind's members share, like kinds together."""
    sparse = {kind: options for kind, options in shared.items() if kind != "dense"}
    common = set.intersection(*(set(options.items()) for options in sparse.values())) if len(sparse) > 1 else set()
    kinds: dict[str, list[str]] = {}
    if common:
        kinds[", ".join(_words(*option) for option in sorted(common))] = ["sparse"]
    for kind, options in sparse.items():
        if own := [_words(*option) for option in options.items() if option not in common]:
            kinds.setdefault(", ".join(own), []).append(spoken_kind(kind))
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in kinds.items())


def _words(name: str, value: str) -> str:
    """`page_size`, `2` as `page size 2`."""
    return f"{name.replace('_', ' ')} {value}"
