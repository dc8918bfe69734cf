"""What reports and figures say of the weights in their costs: shared by what fits, by a given batch, or free."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from kinetics_jax.analysis.frontier import cost_frontier
from kinetics_jax.analysis.samples import RunData, run_data
from kinetics_jax.config import ModelConfig
from kinetics_jax.report import report
from kinetics_jax.report.figures import allocation_figure, frontier_figure
from kinetics_jax.report.report import report_tables, write_report
from kinetics_jax.runs.folder import Run


def stored_run(size, tokens=8000):
    """Two samples of two problems, of Qwen3's sizes; the model is never loaded."""
    header = {
        "model": f"Qwen/Qwen3-{size}",
        "config": dataclasses.asdict(ModelConfig.named(size)),
        "policy": "dense",
        "sampling": {"max_tokens": tokens, "seed": 0},
        "dtype": "bfloat16",
        "task": "aime24",
        "n": 2,
    }
    problems = {name: {"id": name, "question": name, "answer": "1", "prompt": name} for name in ("p0", "p1")}
    samples = [
        {"problem": name, "sample": i, "seed": 0, "prompt_tokens": 100, "output_tokens": [1] * (tokens - i), "text": "",
         "finish_reason": "stop", "correct": bool(i), "answer": "1", "grader": "ok", "seconds": 1.0}
        for name in problems for i in range(2)
    ]  # fmt: skip
    return Run(Path(size), header, problems, samples)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "traffic” convention, on h200; weights shared by the batch that fits, "),
        ({"batch": 16}, "traffic” convention, on h200; weights shared by a batch of 16)"),
        ({"batch": None}, "traffic” convention, on h200; weights left out)"),
        ({"convention": "paper"}, "paper” convention, on h200; weights left out)"),
    ],
)
def test_the_report_says_which_weights_a_cost_holds(options, says):
    table = cost_frontier([run_data(stored_run(size)) for size in ("0.6B", "8B")], hardware="h200", **options)
    said = report._how_to_read(table)
    assert says in said
    if table["batch_rule"].iloc[0] == "fit":
        assert f"the batch that fits, {table['batch'].min()} … {table['batch'].max()} sequences" in said
    rows = report._frontier_table(table)
    assert "Without weights</th>" in rows
    assert "Batch</th>" in rows


@pytest.mark.slow
def test_what_does_not_fit_has_a_dash_and_no_mark(tmp_path):
    runs = [stored_run("0.6B"), stored_run("32B")]
    with pytest.warns(UserWarning, match="32B dense: not one sequence"):
        tables = report_tables(runs, hardware="l40s")
    write_report(tmp_path / "r.html", runs, tables, title="t", command="c")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "0 … " in page
    assert "(0: not one sequence fits, and the row has no cost)" in page
    assert ">nan<" not in page
    figure = frontier_figure(tables.frontier)
    assert np.all(np.isfinite(figure.axes[0].get_xlim()))


def test_axes_say_it_too():
    data: list[RunData] = [run_data(stored_run("0.6B"))]
    for batch, words in (
        (None, "weights left out"),
        ("fit", "weights shared by the batch that fits"),
        (8, "batch of 8"),
    ):
        table = cost_frontier(data, batch=batch)
        assert words in frontier_figure(table, width=3.3).axes[0].get_xlabel()
        allocated = table.assign(limit=[1e3, 2e3], choice="for_all")
        assert words in allocation_figure(allocated).axes[0].get_xlabel()
        allocated.attrs["law"] = "FLOPs"
        assert "weights" not in allocation_figure(allocated).axes[0].get_xlabel()


def test_a_table_without_anything_that_fits_still_draws():
    with pytest.warns(UserWarning, match="not one sequence"):
        table = cost_frontier([run_data(stored_run("32B"))], hardware="l40s")
    assert not table["on_frontier"].any()
    assert frontier_figure(table).axes
