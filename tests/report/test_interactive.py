"""The frontier to explore: its data, what cannot break out of it, and the figure in a real browser."""

import json
import shutil

import pandas as pd
import pytest

from kinetics_jax.files import write_atomic
from kinetics_jax.report.interactive import figure_data, interactive_frontier

NASTY = "</script><script>document.title='broken'</script>&\"'"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SPARSE = "block_topk:budget=64,page_size=16"


def row(model, attention, n, cost, accuracy, **more):
    return {
        "model": model,
        "parameters": {"small": 1e6, NASTY: 4e6}[model],
        "attention": attention,
        "N": n,
        "cost": cost,
        "compute": 0.25 * cost,
        "memory": 0.75 * cost,
        "accuracy": accuracy,
        "low": accuracy - 0.05,
        "high": accuracy + 0.1,
        "mean_output_tokens": 300.0,
        "on_frontier": False,
        **more,
    }


@pytest.fixture(scope="module")
def table():
    return pd.DataFrame(
        [
            row("small", "dense", 2, 4.0, 0.4),
            row("small", "dense", 1, 2.0, 0.3),
            row("small", SPARSE, 1, 1.0, 0.25, batch=7),
            row(NASTY, "dense", 1, 8.0, 0.6),
            row(NASTY, SPARSE, 1, 3.0, 0.55),
        ]
    )


def test_what_a_majority_picks_is_shown_beside_the_point(table):
    votes = {"majority": 0.5, "majority_low": 0.25, "majority_high": 0.75}
    rows = pd.DataFrame([row("small", "dense", 4, 4.0, 0.8, **votes), row("small", SPARSE, 4, 4.0, 0.8)])
    points = {line["attention"]: line["points"][0] for line in figure_data(rows)["lines"]}
    voted, mute = points["dense"], points[SPARSE]
    assert voted["text"][1:3] == [
        "pass@4 80.0 % (95 % interval 75.0 … 90.0)",
        "majority of 4 50.0 % (95 % interval 25.0 … 75.0)",
    ]
    assert (voted["hover"], mute["hover"]) == (3, 2)
    assert figure_data(rows)["accuracy"] == "Problems solved, pass@N (any of N right, %)"
    decided = figure_data(rows.assign(rule="best-of-verifier", communication=1.0))
    assert decided["accuracy"] == "Right by a verifier's best score of N (%)"
    text = next(line["points"][0]["text"] for line in decided["lines"] if line["attention"] == SPARSE)
    assert text[1].startswith("best score of 4 80.0 %")
    assert text[2].endswith("communication 1")
    assert "point.text.slice(0, point.hover)" in interactive_frontier(rows)


def test_the_data_holds_every_row_once(table):
    data = figure_data(table)
    assert [model["name"] for model in data["models"]] == ["small", NASTY]  # by size
    points = {(line["model"], line["attention"]): line["points"] for line in data["lines"]}
    assert [(p["x"], p["y"]) for p in points["small", "dense"]] == [(2.0, 30.0), (4.0, 40.0)]  # by N
    assert sum(map(len, points.values())) == len(table)
    text = points["small", SPARSE][0]["text"]
    assert text[0] == "small, block top-k, budget 64, N = 1"
    assert text[1] == "pass@1 25.0 % (95 % interval 20.0 … 35.0)"
    assert text[-1].endswith("weights shared by 7 sequences")
    assert points["small", SPARSE][0]["hover"] == 2
    assert "<" not in "".join(points[NASTY, "dense"][0]["text"])  # they are shown as HTML


def test_nothing_breaks_out_of_the_data(table):
    part = interactive_frontier(table)
    assert part == interactive_frontier(table)
    assert part.count("</script>") == 3  # those that close the three elements
    data = part.partition('id="explore-data">')[2].partition("</script>")[0]
    assert json.loads(data) == json.loads(json.dumps(figure_data(table)))


@pytest.fixture(scope="module")
def page(table, tmp_path_factory):
    """The part in a page of its own, opened at the width of a phone; whatever it asks for or complains of is kept."""
    if CHROMIUM is None:
        pytest.skip("no Chromium on the PATH")
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[browser]'")
    path = tmp_path_factory.mktemp("page") / "page.html"
    head = '<!DOCTYPE html><html><head><meta charset="utf-8"><title>whole</title></head><body>'
    write_atomic(path, f"{head}{interactive_frontier(table)}</body></html>")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 390, "height": 844}, has_touch=True)
        opened.asked, opened.complaints = [], []
        opened.on("request", lambda request: opened.asked.append(request.url))
        opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
        opened.on("console", lambda message: opened.complaints.append(message.text))
        opened.goto(path.as_uri())
        opened.wait_for_selector("#explore .scatterlayer .point")
        yield opened
        browser.close()


def points(page):
    return page.locator("#explore .scatterlayer .point")


@pytest.mark.slow  # a browser starts
def test_it_draws_on_a_phone_and_asks_for_nothing(page):
    assert [url for url in page.asked if not url.startswith(("data:", "blob:"))] == [page.url]
    assert page.complaints == []
    assert page.title() == "whole"
    assert points(page).count() == 5
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.slow
def test_a_tap_tells_the_configuration(page):
    box = points(page).first.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function("document.querySelector('#explore output').textContent.includes('pass@')")
    said = page.locator("#explore output").inner_text()
    assert said.splitlines()[0] == "small, block top-k, budget 64, N = 1"
    assert "95 % interval 20.0 … 35.0" in said
    assert page.locator("#explore .hoverlayer .hovertext").count() == 1


@pytest.mark.slow
def test_filters_take_lines_away_and_bring_them_back(page):
    sparse = page.locator("#explore input[data-attention^=block]")
    sparse.uncheck()
    assert points(page).count() == 3
    page.locator("#explore input[data-model=small]").uncheck()
    assert points(page).count() == 1
    sparse.check()
    page.locator("#explore input[data-model=small]").check()
    assert points(page).count() == 5
