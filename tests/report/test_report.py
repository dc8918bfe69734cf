"""The report: the same bytes for the same inputs, nothing unescaped, nothing fetched; the figures draw every row."""

import dataclasses
import html.parser
import re
from pathlib import Path

import numpy as np
import pytest

from kinetics_jax.analysis.ablations import budget_ablation, length_ablation
from kinetics_jax.analysis.samples import run_data
from kinetics_jax.attention.policies.block_topk import BlockTopK
from kinetics_jax.attention.policies.dense import Dense
from kinetics_jax.config import ModelConfig
from kinetics_jax.report.figures import budget_figure, frontier_figure, length_figure, pass_at_k_figure
from kinetics_jax.report.report import pick_samples, report_tables, write_report
from kinetics_jax.runs.folder import Run

NASTY = "<script>alert('&\"')</script>"
SPARSE = BlockTopK(budget=64)
SMALLER = BlockTopK(budget=48)
SIZES = {"tiny": "0.6B", NASTY: "8B"}


def record(problem="p0", sample=0, correct=True, **more):
    return {
        "problem": problem,
        "sample": sample,
        "seed": 0,
        "prompt_tokens": 30,
        "output_tokens": [1, 2, 3],
        "text": f"so {NASTY}",
        "finish_reason": "stop",
        "correct": correct,
        "answer": NASTY,
        "grader": "ok",
        "seconds": 12.345,
        **more,
    }


def make_run(model, attention, samples, *, problems=("p0",), size="0.6B", n=0, **more):
    run = {
        "schema": 1,
        "model": model,
        "config": dataclasses.asdict(ModelConfig.named(size)),
        "policy": str(attention),
        "sampling": {"temperature": 0.6, "top_p": 1.0, "max_tokens": 900, "seed": 0},
        "dtype": "float32",
        "device": "cpu",
        "task": NASTY,
        "n": n,
        **more,
    }
    snapshot = {name: {"id": name, "question": NASTY, "answer": "42", "prompt": NASTY} for name in problems}
    return Run(Path(f"{model} {attention}"), run, snapshot, samples)


@pytest.fixture(scope="module")
def runs():
    rng = np.random.default_rng(0)
    names = [f"p{i}" for i in range(4)]
    return [
        make_run(
            model,
            attention,
            [
                record(name, j, bool(rng.random() < 0.4), output_tokens=[7] * int(rng.integers(100, 900)))
                for name in names
                for j in range(4)
            ],
            problems=names,
            size=size,
            n=4,
        )
        for model, size in reversed(SIZES.items())
        for attention in (Dense(), SPARSE, SMALLER)
    ]


@pytest.fixture(scope="module")
def tables(runs):
    return report_tables(runs)


def write(path, runs, tables=None):
    write_report(path, runs, tables or report_tables(runs), title=NASTY, command=f"kinetics demo --out {NASTY}")
    return path.read_text(encoding="utf-8")


class Tags(html.parser.HTMLParser):
    """Every start tag with its attributes, and every piece of text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source", "wbr", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.mark.slow
def test_the_report_is_deterministic(tmp_path, runs, tables):
    page = write(tmp_path / "a.html", runs, tables)
    assert page == write(tmp_path / "b.html", runs)
    assert "12.345" not in page  # no timings
    assert str(tmp_path) not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


@pytest.mark.slow
def test_the_report_escapes_and_fetches_nothing(tmp_path, runs, tables):
    page = write(tmp_path / "report.html", runs, tables)
    assert "<script>alert" not in page
    tags = Tags(page)
    assert not tags.open  # all that was opened was closed
    kinds = {tag for tag, _ in tags.tags}
    assert not kinds & {"link", "iframe"}
    scripts = [attrs for tag, attrs in tags.tags if tag == "script"]
    assert len(scripts) == 3  # the data, the library and the program of the frontier to explore, inside the page
    assert not [key for _, attrs in tags.tags for key in attrs if key.startswith("on")]
    sources = [value for _, attrs in tags.tags for key, value in attrs.items() if key in ("src", "srcset", "href")]
    assert len(sources) == 8  # four figures, each for light and for dark
    assert len(set(sources)) == 8
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    without_scripts = re.sub(r"<script[^>]*>.*?</script>", "", page, flags=re.DOTALL)
    assert "@import" not in without_scripts
    assert "url(" not in without_scripts


@pytest.mark.slow
def test_the_report_tells_what_was_run(tmp_path, runs, tables):
    page = write(tmp_path / "report.html", runs, tables)
    text = "".join(Tags(page).texts)
    headings = (
        "What was run",
        "Accuracy against cost",
        "Accuracy against samples",
        "Shorter answers",
        "Smaller attention budgets",
        "Samples",
        "Command",
        "All settings",
    )
    places = [text.index(f"{heading}\n") for heading in headings]
    assert places == sorted(places)
    for part in (
        NASTY,
        str(SPARSE),
        f"4 of task {NASTY}",
        "4 of each problem, 96 in all",
        "temperature 0.6, at most 900 tokens, seed 0",
        "cpu (float32)",
        "sampling.temperature",
        "“traffic” convention, on h100",
        "block top-k, budget 48",
        "expected 42",
        "An answer not finished within the cap counts as wrong",
    ):
        assert part in text
    for verdict in ("Right", "Wrong"):
        for policy in (Dense(), SPARSE):
            assert text.count(f"{verdict}: {NASTY}, {policy}, p") == 1


@pytest.mark.slow
def test_tables_in_the_report_hold_the_numbers(tmp_path, runs, tables):
    text = "".join(Tags(write(tmp_path / "report.html", runs, tables)).texts)
    for row in tables.frontier.to_dict("records"):
        accuracy = f"{100 * row['accuracy']:.1f} ({100 * row['low']:.1f}\xa0…\xa0{100 * row['high']:.1f})"
        assert text.count(accuracy) >= 2  # among all rows, and in the table of pass@N
    for row in tables.length.to_dict("records"):
        assert f"{row['cap']}{100 * row['accuracy']:.1f} (" in text
    sparse = tables.budget[tables.budget["kind"] != "dense"]
    for row in sparse.to_dict("records"):
        low, high = 100 * row["difference_low"], 100 * row["difference_high"]
        assert f"{100 * row['difference']:+.1f} ({low:+.1f}\xa0…\xa0{high:+.1f})" in text


def test_long_and_odd_samples(tmp_path):
    """A sample that repeated itself, one without text or grade, half a surrogate pair, and a very long text."""
    samples = [
        record(sample=0, text="word " * 30_000 + "\ud83d", finish_reason="repetition", correct=False, answer=None),
        record(sample=1, text=None, correct=None, grader="timeout"),
        record(sample=2, finish_reason="length"),
    ]
    run = make_run("m", Dense(), samples, n=5)
    with pytest.warns(match="unfinished, 3 of 5 samples"), pytest.warns(match="1 of 3 samples are undecided"):
        tables = report_tables([run])
    page = write(tmp_path / "report.html", [run], tables)
    text = "".join(Tags(page).texts)
    assert "word word" in text
    assert "\\ud83d" in text
    assert "Answer not found, expected 42; 3 tokens, ended by repetition" in text
    assert "(unfinished: 5 were asked for)" in text
    assert "1 of 3 samples are undecided and count as unsolved" in text
    assert "stoplengthrepetitionUndecided" in text
    assert "mdense33.01111" in text  # samples, tokens per sample, each way to end, undecided
    assert "No sparse attention was run" in text
    assert "max-height" in page  # long texts scroll within the page


def test_one_sample_of_each_kind_is_shown():
    first = make_run("m", SPARSE, [record(sample=4)])
    second = make_run("m", Dense(), [record(correct=None), record(sample=3), record(sample=2), record("p1", 1, False)])
    third = make_run("n", Dense(), [record(sample=0)])
    shown = pick_samples([first, second, third])
    assert [(run.path, sample["correct"], sample["sample"]) for run, sample in shown] == [
        (second.path, True, 2),
        (second.path, False, 1),
        (first.path, True, 4),
    ]
    backwards = dataclasses.replace(second, samples=second.samples[::-1])
    assert pick_samples([first, backwards])[0][1] == shown[0][1]  # samples end in any order
    assert pick_samples([]) == []


FIGURES = ((frontier_figure, "frontier", "cost"), (pass_at_k_figure, "frontier", "N"), (length_figure, "length", "cap"))


@pytest.mark.parametrize("width", [3.4, 5.0])
@pytest.mark.parametrize(("draw", "name", "column"), [*FIGURES, (budget_figure, "budget", "budget")])
def test_figures_draw_every_row_and_fit(tables, draw, name, column, width):
    table = getattr(tables, name)
    figure = draw(table, width=width)
    figure.draw_without_rendering()
    points = {tuple(point) for axes in figure.axes for line in axes.lines for point in line.get_xydata()}
    end = 2 * table["budget"].max() if column == "budget" else None
    for row in table.to_dict("records"):
        x = end if row[column] != row[column] else row[column]
        assert (x, 100 * row["accuracy"]) in points
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert box.y0 >= 0
    for axes in figure.axes:
        assert axes.get_window_extent().y0 > box.y1  # the legend hides nothing
        assert axes.get_window_extent().height > 0.2 * width * figure.dpi
    assert figure.get_size_inches()[0] == width


def test_models_are_coloured_by_size_and_budgets_marked_by_size(tables):
    """The runs begin with the larger model and the legend with the smaller one; a model keeps its colour."""
    texts = [text.get_text() for text in frontier_figure(tables.frontier).legends[0].get_texts()]
    assert list(filter(str.strip, texts)) == [
        "tiny",
        NASTY,
        "dense",
        "block top-k",
        "Pareto envelope",
        "budget 64",
        "budget 48",
    ]
    first = frontier_figure(tables.frontier).legends[0].get_lines()[0].get_color()
    small = tables.budget[tables.budget["model"] == "tiny"]
    lines = budget_figure(tables.budget).axes[0].lines
    drawn = {line.get_color() for line in lines if line.get_ydata()[-1] == 100 * small["accuracy"].iloc[0]}
    assert first in drawn


def test_a_kind_with_other_options_has_a_marker_of_its_own():
    policies = [f"block_topk:budget={budget},page_size={size}" for size in (8, 16) for budget in (64, 128)]
    runs = [make_run("m", policy, [record(sample=j, correct=bool(j % 2)) for j in range(4)]) for policy in policies]
    figure = budget_figure(budget_ablation([run_data(run) for run in runs]))
    sparse = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert len({line.get_marker() for line in sparse}) == 2
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {"block top-k, page size 8", "block top-k, page size 16"} <= set(texts)


def test_twenty_attentions_keep_a_legend_of_budgets_and_kinds():
    kinds = ("block_topk:budget={},page_size=16", "token_topk:budget={}", "random_blocks:budget={},page_size=16")
    policies = ["dense", *(kind.format(64 * i) for kind in kinds for i in range(1, 8))]
    runs = [make_run("m", policy, [record(sample=j, correct=bool(j % 2)) for j in range(4)]) for policy in policies]
    data = [run_data(run) for run in runs]
    for figure in (length_figure(length_ablation(data), width=3.4), budget_figure(budget_ablation(data), width=3.4)):
        figure.draw_without_rendering()
        texts = [text.get_text() for text in figure.legends[0].get_texts()]
        assert len(list(filter(str.strip, texts))) <= 1 + 4 + 7
        assert figure.legends[0].get_title().get_text() == "block top-k, random blocks: page size 16"
        assert figure.legends[0].get_window_extent().x1 <= figure.bbox.width


def test_figures_leave_no_global_state(tables):
    from matplotlib._pylab_helpers import Gcf

    frontier_figure(tables.frontier, dark=True)
    assert not Gcf.figs


@pytest.mark.slow
def test_a_table_of_one_problem_draws(tmp_path):
    run = make_run("m", SPARSE, [record(), record(sample=1, correct=None)])
    with pytest.warns(UserWarning, match="1 of 2 samples are undecided"):
        tables = report_tables([run], convention="paper", intensity=100.0)
    page = write(tmp_path / "report.html", [run], tables)
    assert "“paper” convention, at 100 FLOP/byte" in page
    assert "1 of 2 samples are undecided and count as unsolved" in page
