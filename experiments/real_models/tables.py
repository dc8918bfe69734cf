"""The tables of docs/real_models.md, from its JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from real_models.compare import rows_of
from real_models.prices import CHIPS

PRICES = {"none": "none", "fit": "the batch that fits", "alone": "batch 1"}
FIT = "eFLOPs, batch that fits"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def number(value: float, digits: int = 1) -> str:
    """With so many decimals; zero has no sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}"


def ends(row: Mapping[str, Any], digits: int = 2, low: str = "low", high: str = "high", times: float = 1) -> str:
    return f"[{number(times * row[low], digits)}, {number(times * row[high], digits)}]"


def factor(row: Mapping[str, Any]) -> str:
    """A ratio with its interval."""
    return f"{number(row['ratio'], 2)} {ends(row)}"


def percent(row: Mapping[str, Any], name: str, low: str = "low", high: str = "high") -> str:
    """A share with its interval, in percent or points."""
    return f"{number(100 * row[name])} {ends(row, 1, low, high, times=100)}"


def whole(share: float) -> str:
    return f"{100 * share:.0f}"


def level_of(found: Mapping[str, Any], accuracy: float) -> dict[str, Any]:
    """The row of one accuracy. Raises StopIteration if there is none."""
    return next(row for row in rows_of(found["levels"]) if abs(row["accuracy"] - accuracy) < 1e-9)


def shapes(shapes: Sequence[Mapping[str, Any]]) -> str:
    return table(
        ["model", "layers", "KV heads", "matrix parameters, 10⁹", "KV elements a token", "of them per 10⁶ parameters"],
        [
            [
                row["model"],
                str(row["layers"]),
                str(row["kv_heads"]),
                f"{row['matmul_parameters'] / 1e9:.2f}",
                f"{row['kv_elements']:,}",
                f"{row['kv_per_million_parameters']:.1f}",
            ]
            for row in shapes
        ],
    )


def models(strata: Mapping[str, Any]) -> str:
    fit = " / ".join(map(str.upper, CHIPS))
    return table(
        ["stratum", "model", "solved, %", "tokens, mean", "median", "of ≥ 8,000, %", "their tokens, %", f"fit {fit}"],
        [
            [
                name,
                row["model"],
                percent(row, "accuracy"),
                f"{row['mean_tokens']:,.0f}",
                f"{row['median_tokens']:,.0f}",
                number(100 * row["at_8000"]),
                whole(row["tokens_at_8000"]),
                " / ".join(str(row["batch_that_fits"][chip]) for chip in CHIPS),
            ]
            for name, stratum in strata.items()
            for row in stratum["models"]
        ],
    )


def neighbours(strata: Mapping[str, Any]) -> str:
    return table(
        ["stratum", "larger", "smaller", "larger − smaller, points"],
        [
            [name, row["larger"], row["smaller"], percent(row, "difference")]
            for name, stratum in strata.items()
            for row in stratum["neighbours"]
        ],
    )


def overall(strata: Mapping[str, Any]) -> str:
    return table(
        ["chip", "reads of the weights"]
        + [f"`{name}`: {what}" for name in strata for what in ("differ", "redraws", "unseen")],
        [
            [chip.upper(), PRICES[weights]]
            + [
                cell
                for stratum in strata.values()
                for found in [stratum["laws"][chip][weights]["overall"]]
                for cell in (
                    f"{found['levels_that_differ']} of {found['levels']}",
                    factor(found),
                    factor(found["unseen"]),
                )
            ]
            for chip in CHIPS
            for weights in PRICES
        ],
    )


def ranges(rows: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Runs of neighbouring accuracies at which the laws take different models, the same two."""
    runs: list[list[Mapping[str, Any]]] = []
    for row in rows:
        if row["by_flops"] == row["by_eflops"]:
            continue
        last = runs[-1][-1] if runs else None
        near = last is not None and row["accuracy"] - last["accuracy"] < 0.0101
        if near and last is not None and (last["by_flops"], last["by_eflops"]) == (row["by_flops"], row["by_eflops"]):
            runs[-1].append(row)
        else:
            runs.append([row])
    return runs


def differences(strata: Mapping[str, Any]) -> str:
    rows = []
    for name, stratum in strata.items():
        for weights, words in PRICES.items():
            for run in ranges(rows_of(stratum["laws"]["h100"][weights]["levels"])):
                most = max(run, key=lambda row: row["redraws_that_differ"])
                span = f"{whole(run[0]['accuracy'])}" + (f" … {whole(run[-1]['accuracy'])}" if len(run) > 1 else "")
                unseen = {"ratio": most["unseen"], "low": most["unseen_low"], "high": most["unseen_high"]}
                rows.append(
                    [
                        name,
                        words,
                        span,
                        f"{most['by_flops']} to {most['by_flops_cap']:,}",
                        f"{most['by_eflops']} to {most['by_eflops_cap']:,}",
                        whole(most["redraws_that_differ"]),
                        factor(most),
                        factor(unseen),
                        percent(most, "unseen_gain", "gain_low", "gain_high"),
                    ]
                )
    return table(
        [
            "stratum",
            "reads of the weights",
            "solved, %",
            "FLOPs take, tokens",
            "eFLOPs take, tokens",
            "redraws that differ, %",
            "FLOPs ÷ eFLOPs paid",
            "unseen",
            "unseen, points gained",
        ],
        rows,
    )


def what_if(family: Mapping[str, Any]) -> str:
    return table(
        ["stratum", "reads of the weights", "differ", "redraws", "unseen"],
        [
            [
                name,
                PRICES[weights],
                f"{found['levels_that_differ']} of {found['levels']}",
                factor(found),
                factor(found["unseen"]),
            ]
            for name, prices in family["qwen3_shapes"].items()
            for weights, comparison in prices.items()
            for found in [comparison["overall"]]
        ],
    )


def cost_row(pruned: Mapping[str, Any], chip: str, weights: str, pruning: str, law: str) -> dict[str, Any]:
    wanted = (chip, weights, pruning, law)
    return next(row for row in pruned["cost"] if tuple(row[k] for k in ("chip", "weights", "pruning", "law")) == wanted)


def passes(pruned: Mapping[str, Any]) -> str:
    return table(
        ["k", "whole cache, pass@k, %", "SnapKV", "SnapKV − whole, points", "loss below 2 points shown"],
        [
            [
                str(row["k"]),
                percent(row["dense"], "rate"),
                percent(row["snapkv"], "rate"),
                percent(row, "difference"),
                "yes" if row["noninferior"] else "no",
            ]
            for row in pruned["pass"]
        ],
    )


def pruned(pruned: Mapping[str, Any]) -> str:
    rows = []
    for law, weights in (("FLOPs", "none"), ("eFLOPs", "none"), ("eFLOPs", "fit")):
        for chip in CHIPS if law == "eFLOPs" else ("h100",):
            cells = [
                factor(
                    next(each for each in cost_row(pruned, chip, weights, pruning, law)["per_solved"] if each["k"] == k)
                )
                for pruning in ("once", "every")
                for k in (1, 16)
            ]
            rows.append(
                [law, chip.upper() if law == "eFLOPs" else "any", PRICES[weights] if law == "eFLOPs" else "–", *cells]
            )
    return table(
        [
            "law",
            "chip",
            "reads of the weights",
            "halved once: k = 1",
            "k = 16",
            "halved at every request: k = 1",
            "k = 16",
        ],
        rows,
    )


def pair(pair: Mapping[str, Any]) -> str:
    return table(
        [
            "task",
            "problems",
            "tokens, Llama-8B ÷ Qwen-7B",
            "FLOPs",
            "eFLOPs, weights left out",
            "eFLOPs, batch that fits",
        ],
        [
            [row["task"], f"{row['problems']:,}"]
            + [factor(row[name]) for name in ("tokens", "FLOPs", "eFLOPs, no weights", FIT)]
            for row in pair["tasks"]
        ],
    )


def groups(loops: Mapping[str, Any]) -> str:
    return table(
        [
            "texts that",
            "texts",
            "tokens, mean",
            "of the tokens, %",
            "of the FLOPs",
            "of the eFLOPs, weights left out",
            FIT,
        ],
        [
            [group["group"], str(group["texts"]), f"{group['mean_tokens']:,.0f}"]
            + [percent(share, "share") for share in group["shares"].values()]
            for group in loops["groups"]
        ],
    )


def caps(loops: Mapping[str, Any]) -> str:
    return table(
        ["cap", "kept of what ends, %", "of tokens, %", "of FLOPs", "of eFLOPs, weights left out", f"of {FIT}"],
        [
            [f"{row['cap']:,}", percent(row["kept"], "share")]
            + [percent(share, "share") for share in row["spent"].values()]
            for row in loops["caps"]
        ],
    )
