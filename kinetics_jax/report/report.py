"""One self-contained HTML page about a set of runs. Equal inputs give equal bytes."""

from __future__ import annotations

import base64
import collections
import dataclasses
import html
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_jax.analysis.ablations import budget_ablation, length_ablation
from kinetics_jax.analysis.counted import costs_lines
from kinetics_jax.analysis.frontier import cost_frontier, crossings, weights_in
from kinetics_jax.analysis.picked import COLUMNS
from kinetics_jax.analysis.rule_names import WORDS, rule_line, rule_of, short_name
from kinetics_jax.analysis.samples import Undecided, pooled, run_data
from kinetics_jax.costs.batching import weight_words
from kinetics_jax.costs.hardware import Hardware
from kinetics_jax.files import write_atomic
from kinetics_jax.report import interactive
from kinetics_jax.report.attention_names import attention_names
from kinetics_jax.report.figures import budget_figure, frontier_figure, length_figure, pass_at_k_figure
from kinetics_jax.runs.folder import Run
from kinetics_jax.runs.whole_run import run_agreement, run_speculation

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

WIDTH = 3.6  # inches; labels stay legible when a figure fills a phone
PERCENT = "% (95 % interval)"
ACCURACY = f"Accuracy, {PERCENT}"
TOKENS = "Tokens per sample"
CSS = """
:root { color-scheme: light dark; --ink: #222; --ground: #fff; --faint: #ddd; --soft: #f4f5f6; --mark: #eaf3ea;
  --quiet: #5c6167; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --ground: #16191d; --faint: #3a3f45; --soft: #21252a; --mark: #1e3226; --quiet: #a3a9b0; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 52rem; margin: 0 auto; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .6rem; }
img { width: 100%; max-width: 36rem; height: auto; display: block; margin: .5rem auto; }
.note { font-size: .9rem; color: var(--quiet); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1rem; margin: 0; }
dt { color: var(--quiet); } dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--faint); text-align: right; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; font-weight: 600; }
th.text, td.text { text-align: left; }
td.text + td.text { white-space: normal; min-width: 6rem; }
tr.on td { background: var(--mark); }
pre { background: var(--soft); padding: .7rem; margin: .5rem 0; overflow: auto; max-height: 24rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; }
details { border-top: 1px solid var(--faint); padding: .6rem 0; }
summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
@media (max-width: 30rem) {
  table { font-size: .75rem; } th, td { padding: .25rem .2rem; } td + td { white-space: normal; }
  td.text + td.text { min-width: 5.1rem; }
}
"""


@dataclasses.dataclass(frozen=True)
class Tables:
    """What a report shows: the tables of `analysis.frontier.cost_frontier`, `analysis.ablations.length_ablation` and
    `analysis.ablations.budget_ablation`.
    """

    frontier: pd.DataFrame
    length: pd.DataFrame
    budget: pd.DataFrame


def report_tables(
    runs: Sequence[Run],
    *,
    convention: str = "traffic",
    hardware: str | Hardware | None = None,
    intensity: float | None = None,
    trials: Sequence[int] | None = None,
    undecided: Undecided = "unsolved",
    rule: str = "pass",
    **costs: Any,
) -> Tables:
    """The tables of run folders as read; options, `costs` among them (batch, chips, bytes of an element), and errors as
    in `analysis.frontier.cost_frontier`, the decision `rule` too, which is the frontier's; `undecided` as in
    `analysis.samples.pooled`. The ablations are of one sample, of which every rule makes the same.
    """
    pools = pooled(map(run_data, runs), undecided=undecided)
    frontier = cost_frontier(
        pools, convention=convention, hardware=hardware, intensity=intensity, trials=trials, rule=rule, **costs
    )
    frontier.attrs["costs_from"] = costs_lines(pools)
    return Tables(
        frontier=frontier,
        length=length_ablation(pools),
        budget=budget_ablation(pools),
    )


def write_report(path: str | Path, runs: Sequence[Run], tables: Tables, *, title: str, command: str) -> None:
    """Writes one HTML file: what was run, the frontier, pass@N, the ablations, a few samples in full, and the command.

    `tables` as made by `report_tables` of the same `runs`. Of the samples a right and a wrong one of dense and of
    sparse attention are shown. The page needs no network, follows the reader's light or dark theme, and holds neither
    dates nor timings. One section, the frontier to explore, has scripts, which are inside the page; all else needs
    none. It is renamed into place when whole. Raises FileError if it cannot be written.
    """
    sparse = bool(tables.budget["budget"].notna().any())
    sections = {
        "What was run": _overview(runs),
        "Accuracy against cost": (
            f"{_picture(frontier_figure, tables.frontier, alt='Accuracy against cost')}\n"
            f"<p>{_text(_how_to_read(tables.frontier))}{_costs_from(tables.frontier)}</p>\n{_frontier_table(tables.frontier)}"
        ),
        "Explore the frontier": interactive.interactive_frontier(tables.frontier),
        "Accuracy against samples": (
            f"{_picture(pass_at_k_figure, tables.frontier, alt='Accuracy against samples')}\n"
            f"<p>{_text(rule_line(rule_of(tables.frontier)))} It is estimated without bias from all samples of a "
            f"problem; bands are 95 % intervals from redrawing problems. "
            f"{_text(' '.join(tables.frontier.attrs.get('picks', ())[1:]))}</p>\n"
            f"{_coverage_table(tables.frontier)}{_picks_tables(tables.frontier)}"
        ),
        "Shorter answers": (
            f"{_picture(length_figure, tables.length, alt='Accuracy against a cap on generated tokens')}\n"
            "<p>Accuracy of one sample had generation been capped. An answer not finished within the cap counts as "
            "wrong, and a sample is charged the tokens up to the cap. Texts are not cut and graded again, which could "
            f"only find more right answers.</p>\n{_length_table(tables.length)}"
        ),
        "Smaller attention budgets": (
            f"{_picture(budget_figure, tables.budget, alt='Accuracy against attention budget')}\n"
            "<p>Accuracy of one sample against the tokens that a decode step may attend to; lines across are dense "
            "attention. The difference from dense attention is paired: its interval redraws the same problems for "
            f"both.</p>\n{_budget_table(tables.budget)}"
            if sparse
            else "<p>No sparse attention was run.</p>"
        ),
        "Samples": "".join(_sample(run, sample) for run, sample in pick_samples(runs)) or "<p>None to show.</p>",
        "Command": f"<pre>{_text(command)}</pre>",
        "Details": (
            f"{_fold('How samples ended', _endings(runs))}\n"
            f"{_fold('All settings', _settings([r.header for r in runs]))}"
        ),
    }
    body = "\n".join(f"<h2>{heading}</h2>\n{content}" for heading, content in sections.items())
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{CSS}{interactive.CSS}</style>
</head>
<body>
<h1>{_text(title)}</h1>
{body}
</body>
</html>
"""
    write_atomic(Path(path), page)


def pick_samples(runs: Iterable[Run]) -> list[tuple[Run, Mapping[str, Any]]]:
    """One right and one wrong sample of dense attention, then of sparse attention, each with its run, if there is one.

    Of the first run that has one, the lowest problem and sample: the order in which samples happened to end does not
    matter.
    """
    first: dict[tuple[bool, bool], tuple[Run, Mapping[str, Any]]] = {}
    for run in runs:
        for sample in sorted(run.samples, key=lambda s: (s["problem"], s["sample"])):
            if sample["correct"] is not None:
                first.setdefault((run.header["policy"] != "dense", not sample["correct"]), (run, sample))
    return [first[key] for key in sorted(first)]


def _picture(draw: Callable[..., Figure], table: pd.DataFrame, *, alt: str) -> str:
    light, dark = (_png(draw(table, dark=dark, width=WIDTH)) for dark in (False, True))
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        f'<img src="{light}" alt="{_text(alt)}"></picture>'
    )


def _png(figure: Figure) -> str:
    """The figure as a data URI, without the version that matplotlib would write into it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=300, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _breaking(value: Any) -> str:
    """Text that may break after commas and colons, for long spellings in narrow columns."""
    return _text(value).replace(",", ",<wbr>").replace(":", ":<wbr>")


def _fold(heading: str, content: str) -> str:
    return f"<details><summary>{_text(heading)}</summary>\n{content}\n</details>"


def _overview(runs: Sequence[Run]) -> str:
    """The few facts a reader needs first; where runs differ, all values."""

    def values(name: str) -> list[Any]:
        return list(dict.fromkeys(run.header.get(name) for run in runs if run.header.get(name) is not None))

    drawn = sum(len(run.samples) for run in runs)
    wanted = sum(run.header.get("n", 0) * len(run.problems) for run in runs)
    facts = {
        "Models": ", ".join(map(_text, values("model"))),
        "Attention": "<br>".join(map(_breaking, values("policy"))),
        "Problems": f"{_several(len(run.problems) for run in runs)} of task {_text(', '.join(values('task')) or '–')}",
        "Samples": f"{_several(run.header.get('n', 0) for run in runs)} of each problem, {drawn:,} in all"
        + (f" (unfinished: {wanted:,} were asked for)" if drawn < wanted else ""),
        "Sampling": _text(_sampling([run.header.get("sampling", {}) for run in runs])),
        "Device": _text(", ".join(map(str, values("device"))) + f" ({', '.join(map(str, values('dtype')))})"),
    }
    return "<dl>\n" + "\n".join(f"<dt>{name}</dt><dd>{fact}</dd>" for name, fact in facts.items()) + "\n</dl>"


def _several(values: Iterable[Any]) -> str:
    return " or ".join(str(value) for value in dict.fromkeys(values))


def _sampling(settings: Sequence[Mapping[str, Any]]) -> str:
    """`temperature 0.6, top p 0.95, at most 72 tokens, seed 0`, filters that are off left out."""
    off = {"top_p": 1, "top_k": 0, "min_p": 0, "repetition_window": 0}
    parts = []
    for name in dict.fromkeys(name for setting in settings for name in setting):
        values = list(dict.fromkeys(setting[name] for setting in settings if name in setting))
        if values != [off.get(name)]:
            text = _several(values)
            parts.append(f"at most {text} tokens" if name == "max_tokens" else f"{name.replace('_', ' ')} {text}")
    return ", ".join(parts) or "not recorded"


def _costs_from(frontier: pd.DataFrame) -> str:
    """Which attentions are priced by what their samples counted, in sentences."""
    return "".join(f" {_text(line)}." for line in frontier.attrs.get("costs_from", ()))


def _how_to_read(table: pd.DataFrame) -> str:
    convention, chip, intensity = (table.attrs.get(name) for name in ("convention", "hardware", "intensity"))
    priced = f"on {chip}" if chip else f"at {intensity:g} FLOP/byte" if intensity else "unrecorded hardware"
    per_run = table.drop_duplicates(["model", "attention"])
    undecided, samples = sum(per_run["undecided"]), sum(per_run["samples"])
    counted = "are left out of accuracies (dropped, as asked)" if "dropped" in table else "count as unsolved"
    left_out = f" {undecided} of {samples} samples are undecided and {counted}." if undecided else ""
    leads = crossings(table)
    led = f" It is led by {', '.join(f'{name} from {cost:.4g}' for cost, name in leads)}." if len(leads) > 1 else ""
    return (
        f"Each point is N samples of one model under one attention. {rule_line(rule_of(table))} It is estimated "
        "without bias from all samples drawn. Bars are 95 % intervals from redrawing problems. Cost counts arithmetic "
        f"and memory reads per problem, in Tera-eFLOPs (“{convention}” convention, {priced}; {_weights(table)}). The "
        f"table lists the frontier: rows that no other row matches in accuracy at less cost.{led}{left_out}"
    )


def _weights(table: pd.DataFrame) -> str:
    """What the costs hold of the weights, and how many sequences share them."""
    rule, batch = weights_in(table)
    batches = list(table["batch"].dropna())
    words = weight_words(rule, batch)
    if rule != "fit":
        return words
    none = " (0: not one sequence fits, and the row has no cost)" if 0 in batches else ""
    low, high = min(batches), max(batches)
    return f"{words}, {low:.0f}{'' if low == high else f' … {high:.0f}'} sequences{none}"


def _frontier_table(table: pd.DataFrame) -> str:
    """The rows on the frontier by cost, and behind a fold all of them with what makes up their cost."""
    heads = ("Model", "Attention", "N", f"{_rule_head(table)}, {PERCENT}", "Cost")
    parts = ["compute", "memory", *(["communication"] if "communication" in table else [])]
    behind = (*heads, *map(str.capitalize, parts), "Without weights", "Batch", TOKENS)
    name = attention_names(table["attention"]).short

    def cells(row: Mapping[Any, Any], *more: str) -> tuple[str, ...]:
        return row["model"], name(row["attention"]), str(row["N"]), _accuracy(row), _number(row["cost"]), *more

    on = [row for row in table.sort_values(by="cost").to_dict("records") if row["on_frontier"]]
    every = [
        (
            cells(
                row,
                *(_number(row[name]) for name in (*parts, "cost_without_weights", "batch")),
                f"{row['mean_output_tokens']:.1f}",
            ),
            "on" if row["on_frontier"] else "",
        )
        for row in table.to_dict("records")
    ]
    best = _table(heads, [(cells(row), "") for row in on])
    return f"{best}\n{_fold(f'All {len(every)} rows', _table(behind, every))}"


def _rule_head(table: pd.DataFrame) -> str:
    """`Pass@N`, `Majority of N`: what the accuracies of a table are."""
    words = short_name(rule_of(table))
    return f"{words[0].upper()}{words[1:]}"


def _accuracy(row: Mapping[Any, Any]) -> str:
    return f"{100 * row['accuracy']:.1f} {_interval(row['low'], row['high'])}"


def _interval(low: float, high: float, sign: str = "") -> str:
    """In per cent, without a place to break; empty for NaN."""
    return "" if low != low else f"({100 * low:{sign}.1f}\N{NO-BREAK SPACE}…\N{NO-BREAK SPACE}{100 * high:{sign}.1f})"


def _coverage_table(table: pd.DataFrame) -> str:
    """Accuracy by N, by the table's rule, with its interval."""
    head = "pass@" if rule_of(table) == "pass" else "N = "
    return _fold(f"{_rule_head(table)} with 95 % intervals", _by_trials(table, "accuracy", "low", "high", head))


def _picks_tables(table: pd.DataFrame) -> str:
    """What every rule picks of N answers that can, with its interval."""
    return "".join(
        _fold(
            f"{short_name(rule).capitalize()}: {WORDS[rule].partition(' (')[2][:-1]}, with 95 % intervals",
            _by_trials(table, column, f"{column}_low", f"{column}_high", "N = "),
        )
        for column, rule in COLUMNS.items()
        if column in table
    )


def _by_trials(table: pd.DataFrame, accuracy: str, low: str, high: str, head: str) -> str:
    """A row per model and attention, a column per N."""
    trials = sorted(set(table["N"]))
    name = attention_names(table["attention"]).short
    rows: dict[tuple[str, str], dict[int, str]] = collections.defaultdict(dict)
    for row in table.to_dict("records"):
        if not math.isnan(row[accuracy]):
            cell = f"{100 * row[accuracy]:.1f} {_interval(row[low], row[high])}"
            rows[row["model"], name(row["attention"])][row["N"]] = cell
    heads = ("Model", "Attention", *(f"{head}{n}, %" for n in trials))
    return _table(heads, [((*key, *(cells.get(n, "–") for n in trials)), "") for key, cells in rows.items()])


def _length_table(table: pd.DataFrame) -> str:
    name = attention_names(table["attention"]).short
    rows = [
        ((row["model"], name(row["attention"]), str(row["cap"]), _accuracy(row), f"{row['mean_tokens']:.1f}"), "")
        for row in table.to_dict("records")
    ]
    return _fold(f"All {len(rows)} rows", _table(("Model", "Attention", "Cap", ACCURACY, TOKENS), rows))


def _budget_table(table: pd.DataFrame) -> str:
    name = attention_names(table["attention"]).short
    rows = []
    for row in table.to_dict("records"):
        apart = _interval(row["difference_low"], row["difference_high"], sign="+")
        apart = "–" if row["difference"] != row["difference"] else f"{100 * row['difference']:+.1f} {apart}"
        rows.append(((row["model"], name(row["attention"]), _accuracy(row), apart), ""))
    heads = ("Model", "Attention", ACCURACY, "Against dense, points (95 % interval)")
    return _fold(f"All {len(rows)} rows", _table(heads, rows))


def _number(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(heads: Sequence[Any], rows: Iterable[tuple[Sequence[Any], str]], *, text_columns: int = 2) -> str:
    """Rows of (cells, CSS class); the first `text_columns` are text, which may break after commas and colons."""

    def line(tag: str, cells: Sequence[Any]) -> str:
        texts = [_breaking(cell) if i < text_columns else _text(cell) for i, cell in enumerate(cells)]
        classes = [' class="text"'] * text_columns + [""] * len(cells)
        return "".join(f"<{tag}{kind}>{text}</{tag}>" for kind, text in zip(classes, texts, strict=False))

    body = "\n".join(f'<tr class="{mark}">{line("td", cells)}</tr>' for cells, mark in rows)
    return f'<div class="wide"><table>\n<tr>{line("th", heads)}</tr>\n{body}\n</table></div>'


OF_RECORDS = {  # what records may hold of a run, by its column in the table of runs
    "agreement": "Agreement",
    "agreement_p5": "Agreement, 5th percentile",
    "accepted_length": "Tokens a round of speculation",
    "speculation_cost": "Its cost, of dense decoding",
}


def _endings(runs: Sequence[Run]) -> str:
    """Of each run: how many samples it has, how they ended, how many are undecided; where its records say so, how far
    it agrees with dense attention (mean over tokens, and their 5th percentile), and what speculation gave.
    """
    reasons = list(dict.fromkeys(("stop", "length", *sorted(s["finish_reason"] for r in runs for s in r.samples))))
    name = attention_names(run.header["policy"] for run in runs).short
    heads = ["Model", "Attention", "Samples", TOKENS, *reasons, "Undecided"]
    told = [run_agreement(run) | run_speculation(run) for run in runs]
    shown = {column: text for column, text in OF_RECORDS.items() if any(column in fields for fields in told)}
    heads += shown.values()
    rows = []
    for run, fields in zip(runs, told, strict=True):
        ended = collections.Counter(sample["finish_reason"] for sample in run.samples)
        tokens = sum(len(sample["output_tokens"]) for sample in run.samples) / max(len(run.samples), 1)
        undecided = sum(sample["correct"] is None for sample in run.samples)
        counts = [len(run.samples), f"{tokens:.1f}", *(ended[reason] for reason in reasons), undecided]
        counts += [f"{fields[column]:.3f}" if column in fields else "–" for column in shown]
        rows.append(((run.header["model"], name(run.header["policy"]), *counts), ""))
    return _table(heads, rows)


def _settings(runs: Sequence[Mapping[str, Any]]) -> str:
    """What all runs share as a list, what differs as a table with a row per run."""
    first, hidden = ("model", "policy"), ("schema", "config", "command")
    flat = [_flatten({k: run[k] for k in (*first, *run) if k not in hidden}) for run in runs]
    names = list(dict.fromkeys(name for run in flat for name in run))
    same = [name for name in names if all(run.get(name) == flat[0].get(name) for run in flat)]
    differs = [name for name in names if name not in same]
    shared = _table(("Setting", "Value"), [((name, flat[0][name]), "") for name in same])
    if not differs:
        return shared
    each = [([run.get(name, "–") for name in differs], "") for run in flat]
    return _table(differs, each, text_columns=len(differs)) + "<p>The same in every run:</p>" + shared


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, item in value.items():
        if isinstance(item, Mapping):
            flat |= _flatten(item, f"{prefix}{name}.")
        else:
            flat[prefix + name] = "–" if item is None else item
    return flat


def _sample(run: Run, sample: Mapping[str, Any]) -> str:
    problem = run.problems.get(sample["problem"], {})
    verdict = "Right" if sample["correct"] else "Wrong"
    model, attention = run.header["model"], run.header["policy"]
    heading = f"{verdict}: {model}, {attention}, {sample['problem']}, sample {sample['sample']}"
    answer = "not found" if sample["answer"] is None else sample["answer"]
    tokens = len(sample["output_tokens"])
    return f"""<details>
<summary>{_breaking(heading)}</summary>
<p>Answer {_text(answer)}, expected {_text(problem.get("answer", "–"))}; {tokens} tokens, ended by \
{_text(sample["finish_reason"])}.</p>
<p class="note">Question</p>
<pre>{_text(problem.get("question", "–"))}</pre>
<p class="note">Sample</p>
<pre>{_text("–" if sample["text"] is None else sample["text"])}</pre>
</details>
"""
