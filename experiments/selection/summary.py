"""Tables with intervals from the records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.registry import parse_policy
from kinetics_jax.files import write_atomic
from kinetics_jax.report.attention_names import spoken_kind
from selection.mass import FORCED, PAGES_BY_MASS, TOKENS_BY_MASS

RESAMPLES = 10_000
APART = ("p", "ratio", "schedule", "select_every", "weights")  # options that name a rule
BOUNDS = {TOKENS_BY_MASS: "best tokens (bound)", PAGES_BY_MASS: "best pages (bound)", FORCED: "always kept"}


def rule_and_budget(name: str) -> tuple[str, int]:
    """`block_topk:budget=64,page_size=16,summary=min_max` → (`block top-k, min_max`, 64); dense has budget 0."""
    kind, _, options = name.partition(":budget=")
    if kind in BOUNDS:
        return BOUNDS[kind], int(options)
    policy = parse_policy(name)
    if type(policy) is BlockTopK:
        return f"{spoken_kind(policy.kind)}, {policy.summary}", policy.budget
    apart = [text for text in name.partition(":")[2].split(",") if text.partition("=")[0] in APART]
    words = [spoken_kind(policy.kind), *(text.replace("_", " ").replace("=", " ") for text in apart)]
    return ", ".join(words), policy.nominal_budget


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % percentile bootstrap of a mean over windows `[windows]`, which are resampled."""
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    low, high = np.quantile(values[draws].mean(axis=1), (0.025, 0.975))
    return float(low), float(high)


def mass_table(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Mean over windows of the kept share, a row for each rule, budget and layer; layer -1 is the mean of all layers
    but the first, which the policies leave dense, with its interval.
    """
    masses: dict[tuple[str, int], list[list[float]]] = {}
    for record in records:
        for name, layers in record["held"].items():
            masses.setdefault(rule_and_budget(name), []).append(layers)
    rows = []
    for (rule, budget), of_windows in masses.items():
        layers = np.array(of_windows)  # [windows, layers]
        searched = layers[:, 1:].mean(axis=1)
        low, high = interval(searched)
        row = {"rule": rule, "budget": budget, "windows": len(layers)}
        rows.append({**row, "layer": -1, "mass": float(searched.mean()), "low": low, "high": high})
        rows += [{**row, "layer": layer, "mass": float(mass)} for layer, mass in enumerate(layers.mean(axis=0))]
    return _rounded(rows)


def perplexity_table(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Perplexity by source (`all`: of every one), rule and budget, and its ratio to dense's on the same windows, with
    the ratio's interval. Only windows that every policy has read count.
    """
    frame: Any = pd.DataFrame(records)
    if not len(frame):
        return frame
    rows = []
    by_source: list[Any] = [("all", frame), *frame.groupby("source")]
    for source, part in by_source:
        nll = part.pivot(index="unit", columns="policy", values="nll")
        nll = nll[list(dict.fromkeys(frame["policy"]))].dropna()
        more = nll.sub(nll["dense"], axis=0)
        for name in nll.columns if len(nll) else ():
            rule, budget = rule_and_budget(name)
            low, high = (float(np.exp(end)) for end in interval(more[name].to_numpy()))
            row = {"source": source, "rule": rule, "budget": budget, "windows": len(nll)}
            row |= {"perplexity": float(np.exp(nll[name].mean())), "ratio": float(np.exp(more[name].mean()))}
            rows.append({**row, "low": low, "high": high})
    return _rounded(rows)


def window_table(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Every window: where it stands, how much of it can be copied, and its perplexity under dense attention."""
    dense = [record for record in records if record["policy"] == "dense" and "repeated" in record]
    return _rounded(
        [
            {name: record[name] for name in ("unit", "source", "start", "repeated")}
            | {"perplexity": float(np.exp(record["nll"]))}
            for record in dense
        ]
    )


def needle_table(records: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Numbers found, by rule, budget, length and depth, with Wilson's 95 % interval, and their mean log-likelihood.

    Depth -1 is all depths, length -1 the lengths in which every budget was tried. Only haystacks that every policy has
    searched count.
    """
    records = list(records)
    policies: dict[int, set[str]] = {}
    for record in records:
        policies.setdefault(record["length"], set()).add(record["policy"])
    tried = Counter(record["unit"] for record in records)
    asked = [
        (*rule_and_budget(record["policy"]), record["length"], depth, right, likelihood)
        for record in records
        if tried[record["unit"]] == len(policies[record["length"]])
        for depth, right, likelihood in zip(record["depths"], record["right"], record["log_likelihood"], strict=True)
    ]
    if not asked:
        return pd.DataFrame()
    table = pd.DataFrame(asked, columns=["rule", "budget", "length", "depth", "right", "log_likelihood"])
    beyond = table[table["length"] > table["budget"].max()].assign(length=-1)
    whole: Any = pd.concat([table, table.assign(depth=-1.0), beyond.assign(depth=-1.0), beyond])
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
    return {name: make(parts[part]) for part, (name, make) in MAKERS.items()} | {"windows": window_table(parts["text"])}


MAKERS = {
    "agreement": ("agreement", agreement_table),
    "mass": ("mass", mass_table),
    "text": ("perplexity", perplexity_table),
    "needle": ("needles", needle_table),
}


def write_csv(by_name: dict[str, pd.DataFrame], folder: Path) -> None:
    """`selection_NAME.csv` of every table that is not empty."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in by_name.items():
        if len(table):
            write_atomic(folder / f"selection_{name}.csv", table.to_csv(index=False))


def markdown(by_name: dict[str, Any]) -> dict[str, str]:
    """Every table that is not empty, a row for each rule and a column for each budget, by what it shows."""
    parts = {}
    if len(table := by_name["agreement"]):
        rows = [
            [row["policy"], f"{row['largest_difference']:.1e}", f"{row['nll_masked']:.5f}", f"{row['nll_decoded']:.5f}"]
            for row in table.to_dict("records")
        ]
        heads = ["policy", "largest difference of logits", "NLL, masked forward", "NLL, decode steps"]
        parts["The masked forward beside decoding"] = lines_of(heads, rows)
    if len(table := by_name["mass"]):
        whole = table[table["layer"] == -1]
        forced = whole[whole["rule"] == BOUNDS[FORCED]]
        whole = whole[whole["rule"] != BOUNDS[FORCED]]
        parts["Attention mass kept, %"] = by_budget(whole, lambda row: f"{100 * row['mass']:.1f}")
        if len(forced):
            always = float(forced["mass"].iloc[0])
            pages = whole[whole["rule"].str.startswith(("block top-k", "random blocks", "best pages"))]
            title = f"Attention mass of the chosen pages, %, beside {100 * always:.1f} of those always kept"
            parts[title] = by_budget(pages, lambda row: f"{100 * (row['mass'] - always):.1f}")
    if len(table := by_name["windows"]):
        rows = [
            [row["source"], f"{row['start']:,}", f"{row['repeated']:.0%}", f"{row['perplexity']:.2f}"]
            for row in table.to_dict("records")
        ]
        parts["The windows: dense perplexity of each"] = lines_of(
            ["source", "from token", "repeated", "perplexity"], rows
        )
    if len(table := by_name["perplexity"]):
        for source, part in table.groupby("source"):
            sparse, dense = part[part["rule"] != "dense"], part[part["rule"] == "dense"].iloc[0]
            title = f"Perplexity ÷ dense's ({dense['perplexity']:.2f}), {source}, {dense['windows']} windows"
            parts[title] = by_budget(sparse, lambda row: f"{row['ratio']:.2f} ({row['low']:.2f}–{row['high']:.2f})")
    if len(table := by_name["needles"]):
        for length, part in table[table["depth"] == -1].groupby("length"):
            where = "prompts longer than every budget" if length == -1 else f"prompts of {length} tokens"
            title = f"Needles found of {part['asked'].max()} in {where}, and mean log-likelihood"
            parts[title] = by_budget(part, lambda row: f"{row['found']:.0f} ({row['log_likelihood']:.1f})")
    return parts


def by_budget(table: Any, cell: Callable[[Any], str]) -> str:
    """A Markdown table: a row per rule, a column per budget; dense's budget, 0, is headed `all`, beside a rule that has
    no fixed budget `not fixed`.
    """
    unlimited = "all" if set(table[table["budget"] == 0]["rule"]) <= {"dense"} else "not fixed"
    budgets = sorted(set(table["budget"]))
    cells = {(row["rule"], row["budget"]): cell(row) for row in table.to_dict("records")}
    rows = [[rule, *(cells.get((rule, budget), "") for budget in budgets)] for rule in dict.fromkeys(table["rule"])]
    return lines_of(["budget", *(str(budget or unlimited) for budget in budgets)], rows)


def lines_of(heads: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    marks = ["---", *["---:"] * (len(heads) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heads, marks, *rows))


def _rounded(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows).round(5)
