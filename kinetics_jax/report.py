"""One self-contained HTML page about a set of runs. Equal inputs give equal bytes."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinetics_jax.figures import frontier_figure, pass_at_k_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

__all__ = ["frontier_figure", "pass_at_k_figure", "pick_samples", "write_report"]

CSS = """
:root { color-scheme: light dark; --ink: #222; --ground: #fff; --faint: #ddd; --soft: #f4f5f6; --mark: #eaf3ea; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --ground: #16191d; --faint: #3a3f45; --soft: #21252a; --mark: #1e3226; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 56rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
img { width: 100%; max-width: 40rem; height: auto; display: block; margin: 0 auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--faint); text-align: right; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; } .text { text-align: left; }
td.text + td.text { white-space: normal; min-width: 10rem; }
tr.on td { background: var(--mark); }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  font-size: .8rem; }
details { border-top: 1px solid var(--faint); padding: .6rem 0; }
summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
"""


def write_report(
    path: str | Path,
    *,
    title: str,
    table: pd.DataFrame,
    samples: Sequence[Mapping[str, Any]],
    problems: Mapping[str, Mapping[str, Any]],
    command: str,
    runs: Sequence[Mapping[str, Any]],
) -> None:
    """Writes one HTML file: what was run, the frontier, pass@N, a few samples in full, and the command.

    `table` as made by `economics.frontier.frontier`. `samples`: records of samples.jsonl, each with the `model` and
    `attention` (spelling) of its run; a right and a wrong one of dense and of sparse attention are shown. `problems`:
    by id, with `question` and `answer`. `runs`: every run.json. The page needs no network and no script, follows the
    reader's light or dark theme, and holds neither dates nor timings. Raises OSError where it cannot be written.
    """
    frontier = _picture(frontier_figure(table), frontier_figure(table, dark=True), alt="Accuracy against cost")
    coverage = _picture(pass_at_k_figure(table), pass_at_k_figure(table, dark=True), alt="Accuracy against samples")
    shown = "".join(_sample(sample, problems) for sample in pick_samples(samples))
    page = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(title)}</title>
<style>{CSS}</style>
</head>
<body>
<h1>{_text(title)}</h1>
<h2>What was run</h2>
{_runs(runs)}
<h2>Accuracy against cost</h2>
{frontier}
<p>{_text(_how_to_read(table))}</p>
{_frontier_table(table)}
<h2>Accuracy against samples</h2>
{coverage}
<h2>Samples</h2>
{shown or "<p>None to show.</p>"}
<h2>Command</h2>
<pre>{_text(command)}</pre>
</body>
</html>
"""
    Path(path).write_text(page, encoding="utf-8", errors="backslashreplace")


def pick_samples(samples: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One right and one wrong sample of dense attention, then of sparse attention, where there are any.

    Of the first run (model and attention) that has one, the lowest problem and sample: the order in which samples
    happened to end does not matter.
    """
    runs: dict[tuple[str, str], int] = {}
    samples = list(samples)
    for sample in samples:
        runs.setdefault((sample["model"], sample["attention"]), len(runs))
    first: dict[tuple[bool, bool], Mapping[str, Any]] = {}
    for sample in sorted(samples, key=lambda s: (runs[s["model"], s["attention"]], s["problem"], s["sample"])):
        if sample["correct"] is not None:
            first.setdefault((sample["attention"] != "dense", not sample["correct"]), sample)
    return [first[key] for key in sorted(first)]


def _picture(light: Figure, dark: Figure, *, alt: str) -> str:
    return (
        f'<picture><source media="(prefers-color-scheme: dark)" srcset="{_png(dark)}">'
        f'<img src="{_png(light)}" alt="{_text(alt)}"></picture>'
    )


def _png(figure: Figure) -> str:
    """The figure as a data URI, without the version that matplotlib would write into it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _text(value: Any) -> str:
    return html.escape(str(value), quote=True)


def _how_to_read(table: pd.DataFrame) -> str:
    convention, chip, intensity = (table.attrs.get(name) for name in ("convention", "hardware", "intensity"))
    priced = f"on {chip}" if chip else f"at {intensity:g} FLOP/byte" if intensity else "unrecorded hardware"
    ungraded = sum(table.drop_duplicates(["model", "attention"])["ungraded"])
    left_out = f" {ungraded} sample(s) without a grade count for cost, not for accuracy." if ungraded else ""
    return (
        "Each point is N samples of one model under one attention. Accuracy is pass@N: the share of problems with at "
        "least one right answer among N samples, estimated without bias from all samples drawn. Bars are 95 % "
        "intervals from redrawing problems. Cost counts arithmetic and memory reads per problem, in Tera-eFLOPs "
        f"(“{convention}” convention, {priced}). The table lists the frontier: rows that no other row matches in "
        f"accuracy at less cost.{left_out}"
    )


def _frontier_table(table: pd.DataFrame) -> str:
    """The rows on the frontier by cost, and behind a fold all of them."""
    heads = ("Model", "Attention", "N", "Accuracy", "95 % interval", "Tokens per sample", "Cost", "Compute", "Memory")
    rows = [(_frontier_cells(row), "on" if row["on_frontier"] else "") for row in table.to_dict("records")]
    costs = table["cost"].tolist()
    best = [(rows[i][0], "") for i in sorted(range(len(rows)), key=costs.__getitem__) if rows[i][1]]
    every = _table(heads, rows, text_columns=2)
    return (
        f"{_table(heads, best, text_columns=2)}\n<details><summary>All {len(rows)} rows</summary>\n{every}\n</details>"
    )


def _frontier_cells(row: Mapping[Any, Any]) -> tuple[str, ...]:
    return (
        row["model"],
        row["attention"],
        str(row["N"]),
        f"{100 * row['accuracy']:.1f} %",
        "–" if row["low"] != row["low"] else f"{100 * row['low']:.1f} – {100 * row['high']:.1f}",
        f"{row['mean_output_tokens']:.0f}",
        *(_number(row[name]) for name in ("cost", "compute", "memory")),
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _table(heads: Sequence[Any], rows: Iterable[tuple[Sequence[Any], str]], *, text_columns: int) -> str:
    """Rows of (cells, CSS class); the first `text_columns` are text, which may break after commas and colons."""

    def line(tag: str, cells: Sequence[Any]) -> str:
        texts = [_text(cell) for cell in cells]
        texts[:text_columns] = [text.replace(",", ",<wbr>").replace(":", ":<wbr>") for text in texts[:text_columns]]
        classes = [' class="text"'] * text_columns + [""] * len(cells)
        return "".join(f"<{tag}{kind}>{text}</{tag}>" for kind, text in zip(classes, texts, strict=False))

    body = "\n".join(f'<tr class="{mark}">{line("td", cells)}</tr>' for cells, mark in rows)
    return f'<div class="wide"><table>\n<tr>{line("th", heads)}</tr>\n{body}\n</table></div>'


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    """What all runs share as a list, what differs as a table with a row per run."""
    flat = [_flatten({k: v for k, v in run.items() if k not in ("schema", "config", "command")}) for run in runs]
    names = list(dict.fromkeys(name for run in flat for name in run))
    same = [name for name in names if all(run.get(name) == flat[0].get(name) for run in flat)]
    differs = [name for name in names if name not in same]
    shared = _table(("Setting", "Value"), [((name, flat[0][name]), "") for name in same], text_columns=2)
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


def _sample(sample: Mapping[str, Any], problems: Mapping[str, Mapping[str, Any]]) -> str:
    problem = problems.get(sample["problem"], {})
    verdict = "Right" if sample["correct"] else "Wrong"
    tokens = sample["output_tokens"]
    count = tokens if isinstance(tokens, int) else len(tokens)
    answer = "not found" if sample.get("answer") is None else sample["answer"]
    heading = f"{verdict}: {sample['model']}, {sample['attention']}, {sample['problem']}, sample {sample['sample']}"
    return f"""<details open>
<summary>{_text(heading)}</summary>
<p>Answer {_text(answer)}, expected {_text(problem.get("answer", "–"))}; {count} tokens, ended by \
{_text(sample.get("finish_reason"))}.</p>
<pre>{_text(problem.get("question", "–"))}</pre>
<pre>{_text(sample["text"])}</pre>
</details>
"""
