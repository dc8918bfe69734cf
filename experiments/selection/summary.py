"""What the records say: tables with intervals."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from kinetics_jax.attention_names import spoken_kind
from kinetics_jax.policies import BlockTopK, parse_policy
from kinetics_jax.traces import write_whole
from selection.mass import PAGES_BY_MASS, TOKENS_BY_MASS

RESAMPLES = 10_000
BOUNDS = {TOKENS_BY_MASS: "best tokens (bound)", PAGES_BY_MASS: "best pages (bound)"}


def rule_and_budget(name: str) -> tuple[str, int]:
    """`block_topk:budget=64,page_size=16,summary=min_max` → (`block top-k, min max`, 64); dense has budget 0."""
    kind, _, options = name.partition(":budget=")
    if kind in BOUNDS:
        return BOUNDS[kind], int(options)
    policy = parse_policy(name)
    if isinstance(policy, BlockTopK):
        return f"{spoken_kind(policy.kind)}, {policy.summary.replace('_', ' ')}", policy.budget
    return spoken_kind(policy.kind), getattr(policy, "budget", 0)


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap of a mean over windows `[windows]`, which are what is drawn anew."""
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def mass_table(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Mean over windows of the kept share, a row for each rule, budget and layer; layer -1 is the mean of all layers
    but the first, which the policies leave dense, with its interval.
    """
    held: dict[tuple[str, int], list[list[float]]] = {}
    for record in records:
        for name, layers in record["held"].items():
            held.setdefault(rule_and_budget(name), []).append(layers)
    rows = []
    for (rule, budget), of_windows in held.items():
        layers = np.array(of_windows)  # [windows, layers]
        searched = layers[:, 1:].mean(axis=1)
        low, high = interval(searched)
        row = {"rule": rule, "budget": budget, "windows": len(layers)}
        rows.append({**row, "layer": -1, "mass": float(searched.mean()), "low": low, "high": high})
        rows += [{**row, "layer": layer, "mass": float(mass)} for layer, mass in enumerate(layers.mean(axis=0))]
    return _rounded(rows)


def perplexity_table(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Perplexity by rule and budget, and its ratio to dense's on the same windows, with the ratio's interval."""
    by_policy: dict[str, dict[str, float]] = {}
    for record in records:
        by_policy.setdefault(record["policy"], {})[record["unit"]] = record["nll"]
    dense = by_policy.get("dense", {})
    rows = []
    for name, of_windows in by_policy.items():
        units = sorted(of_windows.keys() & dense.keys())
        if not units:
            continue
        nll = np.array([of_windows[unit] for unit in units])
        more = nll - np.array([dense[unit] for unit in units])
        rule, budget = rule_and_budget(name)
        low, high = (float(np.exp(end)) for end in interval(more))
        row = {"rule": rule, "budget": budget, "windows": len(units), "perplexity": float(np.exp(nll.mean()))}
        rows.append({**row, "ratio": float(np.exp(more.mean())), "low": low, "high": high})
    return _rounded(rows)


def needle_table(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Numbers found, by rule, budget, length and depth, with Wilson's 95 % interval, and their mean log-likelihood.

    Depth -1 is all depths, length -1 the lengths in which every budget was tried.
    """
    asked = [
        (*rule_and_budget(record["policy"]), record["length"], depth, right, likelihood)
        for record in records
        for depth, right, likelihood in zip(record["depths"], record["right"], record["log_likelihood"], strict=True)
    ]
    if not asked:
        return pd.DataFrame()
    table = pd.DataFrame(asked, columns=["rule", "budget", "length", "depth", "right", "log_likelihood"])
    beyond = table[table["length"] > table["budget"].max()].assign(length=-1)
    whole = pd.concat([table, table.assign(depth=-1.0), beyond.assign(depth=-1.0), beyond])
    rows = []
    for key, group in whole.groupby(["rule", "budget", "length", "depth"], sort=False):
        right, count = int(group["right"].sum()), len(group)
        ends = binomtest(right, count).proportion_ci(method="wilson")
        row = dict(zip(("rule", "budget", "length", "depth"), key, strict=True))
        row |= {"asked": count, "found": right, "share": right / count, "low": ends.low, "high": ends.high}
        rows.append({**row, "log_likelihood": float(group["log_likelihood"].mean())})
    return _rounded(rows)


def agreement_table(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """The masked forward beside decoding token by token, as recorded."""
    return pd.DataFrame(records).drop(columns=["part", "unit"], errors="ignore")


def tables(records: list[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """Every table by its name."""
    parts = {part: [record for record in records if record["part"] == part] for part in MAKERS}
    return {name: make(parts[part]) for part, (name, make) in MAKERS.items()}


MAKERS = {
    "agreement": ("agreement", agreement_table),
    "mass": ("mass", mass_table),
    "text": ("perplexity", perplexity_table),
    "needle": ("needles", needle_table),
}


def write_csv(found: dict[str, pd.DataFrame], folder: Path) -> None:
    """`selection_NAME.csv` of every table that is not empty."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in found.items():
        if len(table):
            write_whole(folder / f"selection_{name}.csv", table.to_csv(index=False))


def wide(table: pd.DataFrame, value: str) -> pd.DataFrame:
    """Rules down, budgets across."""
    return table.pivot_table(index="rule", columns="budget", values=value, sort=False)


def spoken(found: dict[str, pd.DataFrame]) -> str:
    """The tables that fit a terminal."""
    parts = []
    if len(table := found["agreement"]):
        parts += ["masked forward beside decoding", table.to_string(index=False)]
    if len(table := found["mass"]):
        parts += [
            "attention mass kept, mean of layers from 1 on",
            wide(table[table["layer"] == -1], "mass").to_string(),
        ]
    if len(table := found["perplexity"]):
        dense = table[table["budget"] == 0]
        parts += [f"perplexity over dense's ({float(dense['perplexity'].iloc[0]):.2f})"]
        parts += [wide(table[table["budget"] > 0], "ratio").to_string()]
    if len(table := found["needles"]):
        for length, part in table[table["depth"] == -1].groupby("length"):
            spelling = "in prompts longer than every budget" if length == -1 else f"at {length} tokens"
            parts += [f"share of needles found {spelling}", wide(part, "share").to_string()]
    return "\n\n".join(parts)


def _rounded(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows).round(5)
