"""The decision rules by name, and what each is in words; rules.py computes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd

Rule = Literal["pass", "majority", "weighted", "best-of-verifier", "average"]
WORDS: dict[str, str] = {
    "pass": "pass@N (any of N right)",
    "majority": "majority (the most frequent answer)",
    "weighted": "weighted vote (the answer with the largest sum of a verifier's scores)",
    "best-of-verifier": "best score (the answer with a verifier's highest score)",
    "average": "average (of N samples, each by itself)",
}
AXES: dict[str, str] = {  # of a figure
    "pass": "Problems solved, pass@N (any of N right, %)",
    "majority": "Right by majority of N (%)",
    "weighted": "Right by weighted vote of N (%)",
    "best-of-verifier": "Right by a verifier's best score of N (%)",
    "average": "Right samples, average of N (%)",
}
SCORED = ("weighted", "best-of-verifier")
VOTES = ("majority", "weighted")
MONOTONE = ("pass", "average")  # more samples are never worse


def rule_of(table: pd.DataFrame) -> str:
    """The rule that a table's accuracies are of; `pass` for a table that says none, as those before rules were."""
    return str(table["rule"].iloc[0]) if "rule" in table else "pass"


def rule_line(rule: str) -> str:
    """A sentence on what an accuracy is, and what the rule takes."""
    needs = {
        "pass": ": it needs someone who knows which answer is right",
        "average": ": the same whatever N",
    }
    return f"Accuracy is {WORDS[rule]}{needs.get(rule, '')}."


def short_name(rule: str, trials: int | str = "N") -> str:
    """`pass@8`, `majority of 8`; with N by itself `pass@N`, `majority of N`."""
    return f"pass@{trials}" if rule == "pass" else f"{WORDS[rule].partition(' (')[0]} of {trials}"
