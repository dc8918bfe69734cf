"""A run in a line: how many samples it holds, how many are right, how they ended, how long they are."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

from kinetics_jax.runs.whole_run import run_agreement, run_speculation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kinetics_jax.analysis.samples import RunData
    from kinetics_jax.runs.folder import Run


def run_totals(run: Run) -> dict[str, Any]:
    """Samples; how many have a verdict (`graded`) and how many have none (`undecided`, the `nonfinite` ones among them,
    whose logits were not finite); how many were `cut` at max_tokens; the share of all that is `correct`, undecided ones
    counted as unsolved, and the mean tokens of a sample (None without any). Where records have them, agreement with
    dense attention and what speculation gave and cost (`runs.whole_run`).
    """
    samples = len(run.samples)
    ended = collections.Counter(record["finish_reason"] for record in run.samples)
    grades = [None if record["finish_reason"] == "nonfinite" else record["correct"] for record in run.samples]
    undecided, right = grades.count(None), grades.count(True)
    tokens = sum(len(record["output_tokens"]) for record in run.samples)
    return {
        "samples": samples,
        "graded": samples - undecided,
        "undecided": undecided,
        "nonfinite": ended["nonfinite"],
        "cut": ended["length"],
        "correct": right / samples if samples else None,
        "mean_output_tokens": tokens / samples if samples else None,
        **run_agreement(run),
        **run_speculation(run),
    }


def run_summary(run: Run) -> str:
    """`run_totals` in words: 9 samples, 0.000 correct, 9 of 9 cut at max_tokens (24), 24.0 tokens each."""
    totals = run_totals(run)
    samples = totals["samples"]
    parts = [f"{samples} samples"]
    if samples:
        parts.append(f"{totals['correct']:.3f} correct")
    if totals["undecided"]:
        why = f", {totals['nonfinite']} of them with logits that are not finite" if totals["nonfinite"] else ""
        parts.append(f"{totals['undecided']} of {samples} undecided{why} (counted as unsolved)")
    if totals["cut"]:
        parts.append(cut_words(totals["cut"], samples, run.header.get("sampling", {}).get("max_tokens")))
    if samples:
        parts.append(f"{totals['mean_output_tokens']:.1f} tokens each")
    if "agreement" in totals:
        parts.append(
            f"agreement with dense attention {totals['agreement']:.3f} (5th percentile {totals['agreement_p5']:.3f})"
        )
    if "accepted_length" in totals:
        parts.append(
            f"{totals['accepted_length']:.2f} tokens a round of speculation ({totals['accepted']:.0%} of drafts kept) "
            f"at {totals['speculation_cost']:.0%} of the cost of dense decoding"
        )
    return ", ".join(parts)


def cut_words(cut: int, samples: int, cap: int | None) -> str:
    """9 of 9 cut at max_tokens (24)."""
    return f"{cut} of {samples} cut at max_tokens{f' ({cap})' if cap else ''}"


def ending_lines(runs: Iterable[RunData]) -> list[str]:
    """A line for every model and attention of which samples were cut at max_tokens or had logits that are not finite,
    where the samples say how they ended.
    """
    ended: dict[tuple[str, str], collections.Counter[str | None]] = collections.defaultdict(collections.Counter)
    samples: collections.Counter[tuple[str, str]] = collections.Counter()
    caps: dict[tuple[str, str], int | None] = {}
    for run in runs:
        of = run.model, str(run.attention)
        ended[of].update(run.ended)
        samples[of] += len(run.problem)
        caps[of] = run.settings.get("max_tokens")
    lines = []
    for of, reasons in ended.items():
        told = []
        if cut := reasons["length"]:
            told.append(cut_words(cut, samples[of], caps[of]))
        if nonfinite := reasons["nonfinite"]:
            told.append(f"{nonfinite} of {samples[of]} with logits that are not finite")
        if told:
            lines.append(f"{' '.join(of)}: {', '.join(told)}")
    return lines
