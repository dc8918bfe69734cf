"""The report: the same bytes for the same inputs, nothing unescaped, nothing fetched; the figures draw every row."""

import html.parser

import numpy as np
import pytest

from kinetics_jax.config import ModelConfig
from kinetics_jax.economics.frontier import RunData, frontier
from kinetics_jax.policies import BlockTopK, Dense
from kinetics_jax.report import frontier_figure, pass_at_k_figure, pick_samples, write_report

NASTY = "<script>alert('&\"')</script>"
SPARSE = BlockTopK(budget=64)


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    runs = [
        RunData(
            model=model,
            attention=attention,
            config=ModelConfig.named("0.6B"),
            problem=[f"p{i}" for i in range(4) for _ in range(4)],
            sample=[j for _ in range(4) for j in range(4)],
            prompt_tokens=[30] * 16,
            output_tokens=rng.integers(100, 900, 16),
            correct=[bool(grade) for grade in rng.random(16) < 0.4],
        )
        for model in ("tiny", NASTY)
        for attention in (Dense(), SPARSE)
    ]
    return frontier(runs)


def record(attention, correct, **more):
    return {
        "problem": "p0",
        "sample": 1,
        "output_tokens": [1, 2, 3],
        "text": f"so {NASTY}",
        "finish_reason": "stop",
        "correct": correct,
        "answer": NASTY,
        "seconds": 12.345,
        "model": NASTY,
        "attention": str(attention),
        **more,
    }


def write(path, table):
    sampling = {"temperature": 0.6, "seed": 0}
    runs = [
        {"schema": 1, "model": name, "policy": str(policy), "sampling": sampling, "task": NASTY, "config": {"a": 1}}
        for name in ("tiny", NASTY)
        for policy in (Dense(), SPARSE)
    ]
    write_report(
        path,
        title=NASTY,
        table=table,
        samples=[record(policy, correct) for policy in (SPARSE, Dense()) for correct in (None, False, True, True)],
        problems={"p0": {"question": NASTY, "answer": "42"}},
        command=f"kinetics demo --out {NASTY}",
        runs=runs,
    )
    return path.read_text(encoding="utf-8")


class Tags(html.parser.HTMLParser):
    """Every start tag with its attributes, and every piece of text."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.open = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_the_report_is_deterministic(tmp_path, table):
    page = write(tmp_path / "a.html", table)
    assert page == write(tmp_path / "b.html", table)
    assert "12.345" not in page  # no timings
    assert str(tmp_path) not in page


def test_the_report_escapes_and_fetches_nothing(tmp_path, table):
    page = write(tmp_path / "report.html", table)
    assert "<script" not in page
    tags = Tags(page)
    assert not tags.open  # all that was opened was closed
    kinds = {tag for tag, _ in tags.tags}
    assert not kinds & {"script", "link", "iframe"}
    sources = [value for _, attrs in tags.tags for key, value in attrs.items() if key in ("src", "srcset", "href")]
    assert len(sources) == 4  # two figures, each for light and for dark
    assert len(set(sources)) == 4
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "@import" not in page
    assert "url(" not in page


def test_the_report_tells_what_was_run(tmp_path, table):
    page = write(tmp_path / "report.html", table)
    text = "".join(Tags(page).texts)
    headings = ("What was run", "Accuracy against cost", "Accuracy against samples", "Samples", "Command")
    places = [text.index(heading) for heading in headings]
    assert places == sorted(places)
    for part in (
        NASTY,
        str(SPARSE),
        "sampling.temperature",
        "“traffic” convention, on h100",
        "expected 42",
        "3 tokens",
    ):
        assert part in text
    for verdict in ("Right", "Wrong"):
        for policy in (Dense(), SPARSE):
            assert text.count(f"{verdict}: {NASTY}, {policy}, p0, sample 1") == 1


def test_one_sample_of_each_kind_is_shown():
    records = [record(SPARSE, True), record(Dense(), None), record(Dense(), False), record(Dense(), True, sample=2)]
    shown = pick_samples([*records, record(Dense(), True, sample=3)])
    kinds = [(sample["attention"], sample["correct"], sample["sample"]) for sample in shown]
    backwards = pick_samples([record(Dense(), True, sample=3), *reversed(records)])
    assert backwards[0] == shown[0]  # samples end in any order
    assert kinds == [("dense", True, 2), ("dense", False, 1), (str(SPARSE), True, 1)]
    assert pick_samples([]) == []


def test_figures_draw_every_row_and_fit(table):
    for draw, column in ((frontier_figure, "cost"), (pass_at_k_figure, "N")):
        for width in (3.4, 5.0):
            figure = draw(table, width=width)
            figure.canvas.draw()
            points = [tuple(point) for line in figure.axes[0].lines for point in line.get_xydata()]
            for row in table.to_dict("records"):
                assert (row[column], 100 * row["accuracy"]) in points
            box = figure.legends[0].get_window_extent()
            assert box.x0 >= 0
            assert box.x1 <= figure.bbox.width
            assert figure.get_size_inches()[0] == width


def test_figures_leave_no_global_state(table):
    from matplotlib._pylab_helpers import Gcf

    frontier_figure(table, dark=True)
    assert not Gcf.figs


def test_a_table_of_one_problem_draws(tmp_path):
    run = RunData("m", SPARSE, ModelConfig.named("0.6B"), ["a", "a"], [0, 1], [5, 5], [9, 9], [True, None])
    page = write(tmp_path / "report.html", frontier([run], convention="paper", intensity=100.0))
    assert "“paper” convention, at 100 FLOP/byte" in page
    assert "1 sample(s) without a grade" in page
