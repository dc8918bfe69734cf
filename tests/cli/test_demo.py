"""The demo, whole: what it writes, that a seed fixes it, that an interrupted one continues."""

import contextlib
import dataclasses
import json
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from command_line import kinetics

from kinetics_jax import assets
from kinetics_jax.assets import builtin_models
from kinetics_jax.cli import demo_grid
from kinetics_jax.cli.demo import demo
from kinetics_jax.errors import UserError


@contextlib.contextmanager
def no_bar(title: str):
    yield lambda progress: None


def small_grid(monkeypatch) -> None:
    grid = demo_grid.DemoGrid([builtin_models()[0]], budgets=(32,), problems=6, samples=2)
    monkeypatch.setattr(demo_grid, "demo_grid", lambda *, quick: grid)


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory):
    """A small demo as it ends."""
    out = tmp_path_factory.mktemp("demo") / "a"
    with pytest.MonkeyPatch.context() as monkeypatch:
        small_grid(monkeypatch)
        demo_grid.run_demo(out, quick=True, seed=0, bar=no_bar)
    return out


def contents(folder) -> dict[str, object]:
    """Every file of a demo; samples without their wall time."""
    files: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.name == "samples.jsonl":
            records = [json.loads(line) for line in path.read_text().splitlines()]
            files[str(path.relative_to(folder))] = [{**record, "seconds": None} for record in records]
        elif path.is_file():
            files[str(path.relative_to(folder))] = path.read_bytes()
    return files


@pytest.mark.slow
def test_a_seed_fixes_every_file(small_demo, tmp_path, monkeypatch):
    small_grid(monkeypatch)
    (table,) = demo_grid.run_demo(tmp_path / "b", quick=True, seed=0, bar=no_bar).values()
    demo_grid.run_demo(tmp_path / "c", quick=True, seed=1, bar=no_bar)
    first, second, other = contents(small_demo), contents(tmp_path / "b"), contents(tmp_path / "c")
    assert first == second
    assert first.keys() == other.keys()
    runs = [name for name in first if name.endswith("samples.jsonl")]
    assert len(runs) == 2
    assert all(first[name] != other[name] for name in runs)
    names = {f"{name}.{kind}" for name in ("frontier", "length", "budget") for kind in ("csv", "png")}
    assert {*names, "pass_at_k.png", "report.html"} == {name for name in first if "/" not in name}
    assert list(table["N"]) == [1, 2, 1, 2]
    pd.testing.assert_frame_equal(pd.read_csv(small_demo / "frontier.csv"), table, check_exact=False)
    budgets = pd.read_csv(small_demo / "budget.csv")
    assert list(budgets["kind"]) == ["dense", "block_topk"]
    assert list(budgets["accuracy"].round(9)) == list(table.loc[table["N"] == 1, "accuracy"].round(9))


@pytest.mark.slow
def test_an_interrupted_demo_continues_to_the_same_files(small_demo, tmp_path, monkeypatch):
    small_grid(monkeypatch)
    cut = shutil.copytree(small_demo, tmp_path / "cut")
    runs = sorted(cut.glob("*/samples.jsonl"))
    lines = runs[0].read_bytes().splitlines(keepends=True)
    runs[0].write_bytes(b"".join(lines[:5]))
    (cut / "report.html").unlink()
    done = kinetics("demo", "--quick", "--out", cut)
    assert "on_frontier" in done.stdout
    assert "tokens/s" in done.stderr

    def in_order(files):
        by_sample = lambda records: sorted(records, key=lambda r: (r["problem"], r["sample"]))  # noqa: E731
        return {name: by_sample(value) if isinstance(value, list) else value for name, value in files.items()}

    assert in_order(contents(cut)) == in_order(contents(small_demo))


def test_the_grid_runs_rivals_for_the_largest_model_only():
    grid = demo_grid.demo_grid(quick=False)
    *smaller, largest = ([str(policy) for policy in grid.policies(model)] for model in grid.models)
    assert len({tuple(policies) for policies in smaller}) == 1
    assert largest[: len(smaller[0])] == smaller[0]
    assert largest[len(smaller[0]) :] == [
        "sliding_window:budget=96,dense_layers=none",
        "sliding_window:budget=64,dense_layers=none",
        "random_blocks:budget=96,page_size=2,dense_layers=none",
        "random_blocks:budget=64,page_size=2,dense_layers=none",
    ]


@pytest.mark.exhaustive
def test_quick_demo_as_a_user_runs_it(tmp_path):
    began = time.monotonic()
    command = [sys.executable, "-m", "kinetics_jax", "demo", "--quick", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "on_frontier" in done.stdout
    assert "tokens/s" in done.stderr
    report = re.sub(r"<script.*?</script>", "", (tmp_path / "report.html").read_text(), flags=re.DOTALL)
    assert "http" not in report.replace("http://www.w3.org", "")
    for run in tmp_path.glob("*/run.json"):
        assert len((run.parent / "samples.jsonl").read_text().splitlines()) == 32 * 4
    print(f"quick demo: {time.monotonic() - began:.0f} s")


def test_the_ledger_family_has_a_grid_of_its_own():
    grids = demo_grid.family_grids("ledger", quick=False)
    assert list(grids) == ["ledger", "route"]
    for task, grid in grids.items():
        assert grid.task == task
        assert grid.models == assets.family_models("ledger")
        policies = dataclasses.replace(grid, models=["other"]).policies("this")
        assert [str(policy) for policy in policies] == [
            "dense",
            *(f"block_topk:budget={b},page_size=8,recent_pages=2,dense_layers=none" for b in (256, 128, 64, 48, 32)),
        ]
    assert demo_grid.family_grids("chase", quick=True) == {"": demo_grid.demo_grid(quick=True)}


def test_a_family_without_checkpoints_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(assets.FAMILIES, "ledger", tmp_path)
    with pytest.raises(UserError, match="--family ledger: this installation holds no checkpoint of it"):
        demo(family="ledger", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_ledger_demo_writes_a_report_for_each_task_and_continues(tmp_path, monkeypatch, capsys):
    from train_family import FAMILY
    from training.checkpoint import write_checkpoint
    from training.decoder import random_arrays

    from kinetics_jax.tasks import ledger

    config = FAMILY["ledger-23k"].config()
    words = ledger.vocabulary()
    params = random_arrays(config, 0)
    write_checkpoint(tmp_path / "family" / "ledger-tiny", config, words, ledger.EOS, ledger.UNK, params)
    monkeypatch.setitem(assets.FAMILIES, "ledger", tmp_path / "family")

    def small(task, *, quick):
        pages = {"page_size": 8, "recent_pages": 2, "max_tokens": 40}
        return demo_grid.DemoGrid(assets.family_models("ledger"), (32,), problems=2, samples=2, task=task, **pages)

    monkeypatch.setattr(demo_grid, "ledger_grid", small)
    for _ in range(2):
        demo(family="ledger", out=tmp_path / "out", as_json=True)
        rows = json.loads(capsys.readouterr().out)
        assert [row["task"] for row in rows] == ["ledger"] * 4 + ["route"] * 4
        assert {row["model"] for row in rows} == {"ledger-tiny"}
    for task in ("ledger", "route"):
        assert (tmp_path / "out" / task / "report.html").stat().st_size > 10_000
        records = (tmp_path / "out" / task).glob("*/samples.jsonl")
        assert [len(path.read_text().splitlines()) for path in records] == [4, 4]
        run = json.loads(next((tmp_path / "out" / task).glob("*/run.json")).read_text())
        assert (run["task"], run["sampling"]["temperature"]) == (task, 1.0)
    assert np.isfinite(pd.read_csv(tmp_path / "out" / "route" / "frontier.csv")["cost"]).all()
