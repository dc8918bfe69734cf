"""Real samples: pass@k, and accuracy against tokens with intervals, from Epoch AI's graded mock-AIME runs.

    python experiments/epoch_frontier.py ../shared/data/traces/epoch_otis_mock_aime.csv --out figures

Data: Epoch AI (epoch.ai), CC BY 4.0: 126 runs of 98 models on 45 OTIS mock AIME problems, mostly 8 or 16 samples each,
with token counts for some. Only aggregates of it are kept here.

Tokens are as the makers report them. Google's counts seem to leave out hidden reasoning (a thousand tokens where others
take ten thousand), so its runs are drawn hollow and are not part of the envelope. Costs in eFLOPs are given only for
models whose shape is public and whose attention the cost model knows (grouped-query, not latent attention), with a
prompt of 200 tokens, since prompts are not recorded.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kinetics_jax.analysis.frontier import cost_frontier, pareto
from kinetics_jax.analysis.readers import read_all
from kinetics_jax.analysis.samples import Pool, RunData, pooled
from kinetics_jax.analysis.token_frontier import token_frontier
from kinetics_jax.attention.policies.base import AttentionPolicy
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.attention.policies.sliding_window import SlidingWindow
from kinetics_jax.config import PUBLISHED, ModelConfig
from kinetics_jax.report.figure_style import LIGHT, LIGHT_COLOURS, SMALL, handle, save_figure
from kinetics_jax.stats.bayes import bayesian_interval
from kinetics_jax.stats.estimators import pass_at_k
from kinetics_jax.stats.intervals import accuracy_interval

SOURCE = "Epoch AI (epoch.ai), CC BY 4.0"
NOTICE = f"{SOURCE} (https://creativecommons.org/licenses/by/4.0/); aggregated by experiments/epoch_frontier.py"
PROBLEMS = 45
PROMPT_TOKENS = 200
HARDWARE, CHIPS = "h100", 8  # the fewest that hold their weights in two bytes are 4 and 8
REFERENCE = "Qwen2.5-32B-Instruct"  # whose pass@k the data's own description quotes
CURVES = (REFERENCE, "phi-4", "gpt-4o-2024-11-20", "gemini-1.5-pro-002", "gemini-2.0-flash-001")
HIDDEN = "Google"  # whose counts leave reasoning out
MAKERS = {
    "anthropic": "Anthropic",
    "openai": "OpenAI",
    "google": "Google",
    "kimi": "Moonshot",
    "deepseek": "DeepSeek",
    "qwen": "Qwen",
    "zhipu": "Zhipu",
}
MARKERS = dict(zip(MAKERS.values(), "os^DvPX", strict=True))
COLOURS = dict(zip(MAKERS.values(), LIGHT_COLOURS, strict=False))

# Public shapes, as their config.json on the hub has them, and the attention that they were trained with.
GPT_OSS_120B = ModelConfig(
    vocab_size=201_088,
    hidden_size=2880,
    intermediate_size=2880,
    num_layers=36,
    num_heads=64,
    num_kv_heads=8,
    head_dim=64,
    num_experts=128,
    experts_per_token=4,
    moe_intermediate_size=2880,
    name="gpt-oss-120b",
)
EVERY_OTHER_LAYER = SlidingWindow(budget=128, sink_tokens=0, dense_layers=tuple(range(1, 36, 2)))
SHAPES: dict[str, tuple[ModelConfig, AttentionPolicy, str]] = {
    "qwen3-235b-a22b-thinking-2507": (
        dataclasses.replace(PUBLISHED["235B-A22B"], name="qwen3-235b-a22b-thinking-2507"),
        Dense(),
        "Qwen/Qwen3-235B-A22B-Thinking-2507, config.json",
    ),
    "gpt-oss-120b": (GPT_OSS_120B, EVERY_OTHER_LAYER, "openai/gpt-oss-120b, config.json"),
}


def short_name(name: str) -> str:
    """A model's name without the host and maker before it and the run after it."""
    return name.partition(" (")[0].rpartition("/")[2]


def undated(name: str) -> str:
    return re.sub(r"-20\d{6}$|-20\d\d-\d\d-\d\d$", "", name)


def maker(name: str) -> str:
    lowered = name.lower()
    return next((spoken for key, spoken in MAKERS.items() if key in lowered), "other")


def complete_runs(runs: list[RunData]) -> list[RunData]:
    """The runs with a token count for every sample and samples of every problem. Exits if there is none."""
    whole = [
        run
        for run in runs
        if len(set(run.problem)) == PROBLEMS and not np.any(np.isnan(np.array(run.output_tokens, np.float64)))
    ]
    if not whole:
        raise SystemExit("no run has complete token counts")
    return whole


def distinguish_runs(runs: list[RunData]) -> tuple[list[RunData], dict[str, str]]:
    """Runs under short names, those of one model as a, b, … from few tokens to many; and each name's maker."""
    by_model: dict[str, list[RunData]] = {}
    for run in runs:
        by_model.setdefault(undated(short_name(run.model)), []).append(run)
    named, makers = [], {}
    for model, group in by_model.items():
        ordered = sorted(group, key=lambda run: float(np.mean(np.array(run.output_tokens, np.float64))))
        letters = [""] if len(group) == 1 else [f" {letter}" for letter in "abcdefgh"]
        for run, letter in zip(ordered, letters, strict=False):
            named.append(dataclasses.replace(run, model=model + letter))
            makers[model + letter] = maker(run.model)
    return named, makers


def pass_table(pools: list[Pool]) -> pd.DataFrame:
    """Pass@k of every pool, at powers of two, with the bootstrap's and the Bayesian 95 % interval."""
    rows = []
    for pool in pools:
        graded = np.array([problem.graded for problem in pool.problems.values()])
        right = np.array([problem.right for problem in pool.problems.values()])
        counts = np.array([2**i for i in range(int(graded.min()).bit_length())])
        solved = pass_at_k(graded[:, None], right[:, None], counts[None])
        low, high = accuracy_interval(solved)
        bayes_low, bayes_high = bayesian_interval(graded, right, k=counts)
        rows += [
            {
                "model": pool.model,
                "k": int(k),
                "samples": int(graded.sum()),
                "accuracy": float(np.mean(solved[:, i])),
                "low": float(low[i]),
                "high": float(high[i]),
                "bayes_low": float(bayes_low[i]),
                "bayes_high": float(bayes_high[i]),
            }
            for i, k in enumerate(counts)
        ]
    return pd.DataFrame(rows)


def costs(runs: list[RunData]) -> pd.DataFrame:
    """Accuracy against eFLOPs of the runs whose model's shape is public, the weights at the batch that fits."""
    known = [
        dataclasses.replace(
            run,
            config=SHAPES[run.model][0],
            attention=SHAPES[run.model][1],
            prompt_tokens=[PROMPT_TOKENS] * len(run.problem),
        )
        for run in runs
        if run.model in SHAPES
    ]
    return cost_frontier(known, hardware=HARDWARE, chips=CHIPS)


def draw_tokens(table: pd.DataFrame, path: Path) -> None:
    figure = blank(3.4, 3.3)
    axes = figure.add_subplot()
    on = table.loc[table["on_frontier"]].sort_values(by="tokens")
    grey = {"color": LIGHT["envelope"], "lw": 4, "alpha": 0.4, "solid_capstyle": "round"}
    axes.plot(on["tokens"], 100 * on["accuracy"], drawstyle="steps-post", zorder=1, **grey)
    for name, rows in table[table["N"] == 1].groupby("maker", sort=False):
        colour, hollow = COLOURS[str(name)], name == HIDDEN
        axes.vlines(rows["tokens"], 100 * rows["low"], 100 * rows["high"], colors=colour, lw=0.8, alpha=0.4, zorder=2)
        axes.plot(
            rows["tokens"],
            100 * rows["accuracy"],
            color=colour,
            marker=MARKERS[str(name)],
            mfc="white" if hollow else colour,
            mec=colour if hollow else "white",
            mew=0.8 if hollow else 0.4,
            ms=4.5,
            lw=0,
            zorder=3,
        )
    more = on[on["N"] > 1]
    axes.plot(more["tokens"], 100 * more["accuracy"], ".", color=LIGHT["ink"], ms=3.5, zorder=4)
    for row in on.drop_duplicates("model", keep="first").to_dict(orient="records"):
        if row["accuracy"] > 0.05:
            spot, words = (row["tokens"], 100 * row["accuracy"]), row["model"].removesuffix("-pre-release")
            axes.annotate(words, spot, (-5, -6), textcoords="offset points", ha="right", fontsize=SMALL - 1)
    axes.set_xscale("log")
    axes.set_xlim(180, 42_000)
    axes.set(xlabel="Output tokens of an attempt at a problem (as reported)", ylabel="Problems solved (%)")
    finish(axes)
    makers = [
        handle(
            lw=0,
            color=COLOURS[name],
            marker=MARKERS[name],
            ms=4,
            mfc="white" if name == HIDDEN else COLOURS[name],
            mew=0.8 if name == HIDDEN else 0,
            label=f"{name} (no envelope)" if name == HIDDEN else name,
        )
        for name in COLOURS
        if name in set(table["maker"])
    ]
    makers += [
        handle(label="envelope, any N", **grey),
        handle(lw=0, marker=".", color=LIGHT["ink"], label="best of N > 1"),
    ]
    below(figure, makers, 3)
    save_figure(figure, path)


def draw_pass(table: pd.DataFrame, path: Path) -> None:
    figure = blank(3.4, 2.7)
    axes = figure.add_subplot()
    handles = []
    for i, (name, colour, mark) in enumerate(zip(CURVES, LIGHT_COLOURS, "os^Dv", strict=False)):
        rows = table[table["model"] == name]
        at = rows["k"] * 1.045 ** (i - 2)  # side by side, so that intervals do not overlap
        axes.vlines(at, 100 * rows["low"], 100 * rows["high"], colors=colour, lw=1, alpha=0.5)
        style: dict[str, Any] = {"color": colour, "marker": mark, "ms": 3.8, "mew": 0, "lw": 1.2}
        axes.plot(at, 100 * rows["accuracy"], **style)
        handles.append(handle(label=name, **style))
    counts = sorted(set(table["k"]))
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(k) for k in counts])
    axes.minorticks_off()
    axes.set(xlabel="Samples per problem, k", ylabel="Problems solved, pass@k (%)")
    finish(axes)
    axes.set_ylim(0, 1.05 * 100 * max(table[table["model"].isin(CURVES)]["high"]))
    below(figure, handles, 2)
    save_figure(figure, path)


def blank(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor=LIGHT["ground"])


def finish(axes: Any) -> None:
    axes.xaxis.label.set(fontsize=SMALL + 0.5)
    axes.yaxis.label.set(fontsize=SMALL + 0.5)
    axes.tick_params(which="both", labelsize=SMALL)
    axes.grid(color=LIGHT["faint"], lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(-2, 102)


def below(figure: Any, handles: list[Any], columns: int) -> None:
    figure.legend(
        handles=handles,
        ncols=columns,
        loc="outside lower center",
        fontsize=SMALL,
        frameon=False,
        columnspacing=1.0,
        handletextpad=0.4,
        title=f"Data: {SOURCE}",
        title_fontproperties={"size": SMALL - 1},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="epoch_otis_mock_aime.csv")
    parser.add_argument("--out", type=Path, default=Path("epoch"), help="folder for figures, tables and summary.json")
    arguments = parser.parse_args()
    if not arguments.data.exists():
        raise SystemExit(
            f"{arguments.data}: no such file; it is Epoch AI's, CC BY 4.0, and not part of this repository"
        )
    evaluate(arguments.data, arguments.out)


def evaluate(data: Path, out: Path) -> None:
    """Tables, figures and summary.json of the samples in `data`, into the folder `out`; the main tables are printed."""
    out.mkdir(parents=True, exist_ok=True)
    runs = read_all([data])
    passes = pass_table(
        [pool for run in runs for pool in pooled([dataclasses.replace(run, model=short_name(run.model))])]
    )
    whole, makers = distinguish_runs(complete_runs(runs))
    tokens = token_frontier(whole)
    tokens["maker"] = [makers[name] for name in tokens["model"]]
    priced = (tokens["maker"] != HIDDEN).to_numpy()
    tokens["on_frontier"] = False
    tokens.loc[priced, "on_frontier"] = pareto(tokens.loc[priced, "tokens"], tokens.loc[priced, "accuracy"])
    cost = costs(whole)
    for name, table in (("pass_at_k", passes), ("tokens", tokens), ("cost", cost)):
        table.to_csv(out / f"epoch_{name}.csv", index=False)
    draw_tokens(tokens, out / "epoch_tokens.png")
    draw_pass(passes, out / "epoch_pass_at_k.png")
    reference = passes.loc[passes["model"] == REFERENCE]
    on = tokens.loc[tokens["on_frontier"]].sort_values(by="tokens")
    summary = {
        "source": NOTICE,
        "runs": len(runs),
        "samples": int(sum(len(run.problem) for run in runs)),
        "runs_with_complete_token_counts": len(whole),
        "left_out_of_the_envelope": sorted(name for name, its_maker in makers.items() if its_maker == HIDDEN),
        "pass_at_k": {REFERENCE: reference.drop(columns="model").to_dict(orient="records")},
        "token_frontier": on.drop(columns=["parameters", "on_frontier"]).to_dict(orient="records"),
        "cost": {
            "hardware": HARDWARE,
            "chips": CHIPS,
            "convention": "traffic",
            "prompt_tokens": PROMPT_TOKENS,
            "shapes": {name: source for name, (_, _, source) in SHAPES.items()},
            "rows": cost.drop(columns=["parameters", "problems", "undecided", "on_frontier"])
            .round(6)
            .to_dict(orient="records"),
        },
    }
    (out / "epoch_summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(reference.round(3).to_string(index=False))
    print(on[["model", "N", "accuracy", "low", "high", "tokens"]].round(3).to_string(index=False))
    shown = ["model", "N", "accuracy", "low", "high", "compute", "memory", "cost", "batch", "cost_without_weights"]
    print(cost[shown].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
